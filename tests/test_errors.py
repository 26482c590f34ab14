"""The error tree: as drawn, and safe to send between processes."""

from __future__ import annotations

import re

import sightline.errors as errors
from sightline.errors import Overloaded, SightlineError


def classes(root: type[SightlineError] = SightlineError) -> list[type[SightlineError]]:
    """Of the package: other tests make some of their own."""
    own = [root] if root.__module__.startswith("sightline.") else []
    return own + [c for child in root.__subclasses__() for c in classes(child)]


def test_the_docstring_draws_every_class() -> None:
    drawn = set(re.findall(r"\b[A-Z][A-Za-z]+\b", (errors.__doc__ or "").split("No status codes")[0]))
    assert {c.__name__ for c in classes()} <= drawn


def test_an_instance_may_be_more_exact_than_its_class() -> None:
    error = errors.InvalidRequest("x", param="n", code="invalid_type")
    assert (error.code, error.param, errors.InvalidRequest.code) == ("invalid_type", "n", None)


def test_capacity_errors_may_be_tried_again_and_request_errors_not() -> None:
    assert Overloaded("full", retry_after_s=3).retry_after_s == 3
    assert all(c.retryable for c in classes(errors.CapacityError)[1:])
    assert not any(c.retryable for c in classes(errors.RequestError))
