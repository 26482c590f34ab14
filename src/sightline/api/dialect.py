"""A wire dialect as the application knows it: its routes, the paths that are its own, and how it tells errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from starlette.responses import Response
from starlette.routing import Route

from sightline.api import errors

ToResponse = Callable[[Exception, str], Response]
"""From an error and the request's id to the answer; status and headers by `api/errors.py`, the shape the dialect's."""


@dataclass(frozen=True, slots=True)
class Dialect:
    routes: Sequence[Route]
    paths: tuple[str, ...] = ()
    """Prefixes of the paths whose errors have its shape, also where there is no such route: `/api/` takes in all below
    it, `/v1/messages` itself and all below it. Everything else is told in OpenAI's."""
    to_error_response: ToResponse = errors.to_response
    name: str = "openai"
    """In metrics and logs."""

    def speaks(self, path: str) -> bool:
        return any(path == p or path.startswith(p if p.endswith("/") else p + "/") for p in self.paths)
