"""The error table: total, as the contract has it, and safe to show."""

from __future__ import annotations

import json

import pytest
from starlette.exceptions import HTTPException

from sightline import errors as e
from sightline.api import errors
from sightline.api.wire import encode
from sightline.errors import SightlineError


def classes(root: type[SightlineError] = SightlineError) -> list[type[SightlineError]]:
    return [c for child in root.__subclasses__() for c in (child, *classes(child))]


@pytest.mark.parametrize("cls", [c for c in classes() if c.__module__ == "sightline.errors"])
def test_every_error_has_a_row_and_its_object_is_whole(cls: type[SightlineError]) -> None:
    assert cls in errors.TABLE
    error = cls("Something is wrong.")
    shown = json.loads(encode(errors.to_error(error, "req_1")))
    assert list(shown) == ["error"]
    assert list(shown["error"]) == ["message", "type", "param", "code"]
    assert shown["error"]["message"] == "Something is wrong."
    assert shown["error"]["code"] == cls.code
    assert 400 <= errors.to_status(error) < 600
    assert (errors.to_status(error) >= 500) == (shown["error"]["type"] == "server_error")


def test_the_table_has_no_row_for_what_is_no_error() -> None:
    assert set(errors.TABLE) == {c for c in classes() if c.__module__ == "sightline.errors"}


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (e.InvalidRequest("x", param="n"), 400, "invalid_request_error", "n", None),
        (e.InvalidRequest("x", param="n", code="invalid_type"), 400, "invalid_request_error", "n", "invalid_type"),
        (e.InvalidRequest("x", code="invalid_json_schema"), 400, "invalid_request_error", None, "invalid_json_schema"),
        (e.UnsupportedFeature("x", param="n"), 400, "invalid_request_error", "n", "unsupported_parameter"),
        (e.ModelNotFound("x"), 404, "invalid_request_error", "model", "model_not_found"),
        (e.ContextLengthExceeded("x"), 400, "invalid_request_error", "messages", "context_length_exceeded"),
        (e.BodyTooLarge("x"), 413, "invalid_request_error", None, "request_too_large"),
        (e.ImageEncodingInvalid("x", param="p"), 400, "invalid_request_error", "p", "invalid_base64_image"),
        (e.ImageFormatUnsupported("x"), 400, "invalid_request_error", None, "invalid_image_format"),
        (e.ImageUnreadable("x"), 400, "invalid_request_error", None, "image_parse_error"),
        (e.ImageEmpty("x"), 400, "invalid_request_error", None, "empty_image_file"),
        (e.ImageFileTooLarge("x"), 400, "invalid_request_error", None, "image_file_too_large"),
        (e.ImageTooLarge("x"), 400, "invalid_request_error", None, "image_too_large"),
        (e.ImageTooSmall("x"), 400, "invalid_request_error", None, "image_too_small"),
        (e.ImageForbidden("x"), 400, "invalid_request_error", None, "invalid_image_url"),
        (e.ImageFetchFailed("x"), 400, "invalid_request_error", None, "failed_to_download_image"),
        (e.Unauthenticated("x"), 401, "invalid_request_error", None, "invalid_api_key"),
        (e.Forbidden("x"), 403, "invalid_request_error", None, None),
        (e.RateLimited("x"), 429, "rate_limit_error", None, "rate_limit_exceeded"),
        (e.QuotaExceeded("x"), 429, "insufficient_quota", None, "insufficient_quota"),
        (e.Overloaded("x"), 503, "server_error", None, "engine_overloaded"),
        (e.DeadlineExceeded("x"), 504, "server_error", None, "timeout"),
        (e.EngineUnavailable("x"), 503, "server_error", None, None),
        (e.EngineFailed("x"), 500, "server_error", None, None),
        (e.UpstreamFailed("x"), 500, "server_error", None, None),
        (HTTPException(404, "nothing here"), 404, "invalid_request_error", None, None),
        (HTTPException(405, headers={"Allow": "GET"}), 405, "invalid_request_error", None, None),
    ],
)
def test_as_the_contract_has_it(error: Exception, status: int, kind: str, param: str | None, code: str | None) -> None:
    shown = errors.to_error(error, "req_1").error
    assert (errors.to_status(error), shown.type, shown.param, shown.code) == (status, kind, param, code)


@pytest.mark.parametrize(
    ("error", "retry_after", "should_retry"),
    [
        (e.Overloaded("x", retry_after_s=3.2), "4", None),
        (e.Overloaded("x", retry_after_s=0), "1", None),
        (e.Overloaded("x", retry_after_s=1e6), "120", None),
        (e.RateLimited("x", retry_after_s=60), "60", None),
        (e.EngineUnavailable("x"), "1", None),
        (e.QuotaExceeded("x"), None, "false"),
        (e.EngineFailed("x"), None, None),
        (e.DeadlineExceeded("x"), None, None),
        (e.InvalidRequest("x"), None, None),
        (e.ModelNotFound("x"), None, None),
        (ValueError("x"), None, "false"),
    ],
)
def test_what_clients_are_told_of_trying_again(
    error: Exception, retry_after: str | None, should_retry: str | None
) -> None:
    headers = errors.to_headers(error)
    assert (headers.get("retry-after"), headers.get("x-should-retry")) == (retry_after, should_retry)


def test_a_bug_shows_nothing_but_the_request_id() -> None:
    shown = errors.to_error(KeyError("/secret/path at 10.0.0.1"), "req_77").error
    assert "secret" not in shown.message
    assert "req_77" in shown.message
    assert (shown.type, shown.param, shown.code) == ("server_error", None, None)
    assert errors.is_bug(KeyError())
    assert not errors.is_bug(e.EngineFailed("x"))
    assert not errors.is_bug(HTTPException(404))


def test_a_class_from_elsewhere_falls_back_to_its_base() -> None:
    class Odd(e.ImageError):
        pass

    assert errors.to_status(Odd("x")) == 400


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (e.InvalidRequest("Invalid 'a.top_k': it must be 1.", param="a.top_k"), "Invalid 'a.top_k': it must be 1."),
        (e.InvalidRequest("It must be 1.", param="top_k"), "a.top_k: It must be 1."),
        (e.UnsupportedFeature("The model 'top_k' has no top_k.", param="top_k"), "The model 'top_k' has no a.top_k."),
        (e.UnsupportedFeature("It has no seed.", param="seed"), "It has no a.seed."),
        (e.EngineFailed("A seed of doubt; GET /v1/models."), "A seed of doubt; GET /api/tags."),
        (e.ContextLengthExceeded("Too long; lower top_k.", param="messages"), "Too long; lower a.top_k."),
        (HTTPException(415, "The top_k body."), "The top_k body."),
    ],
)
def test_a_message_names_the_place_in_a_dialects_words(error: Exception, told: str) -> None:
    words = {"top_k": "a.top_k", "seed": "a.seed", "/v1/models": "/api/tags"}
    assert errors.to_message(error, "req_1", words) == told
