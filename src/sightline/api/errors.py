"""Errors on the wire, in OpenAI's shape: one table from error class to status and type, and nothing else decides.

A `SightlineError` is shown as it is: its message is written for the client. A fault of HTTP itself (no such path, wrong
method, wrong media type) is Starlette's `HTTPException`. Everything else is a bug: the client gets a fixed message and
the request id, the log gets the traceback.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from sightline import errors as e
from sightline.api.wire import json_response
from sightline.errors import SightlineError
from sightline.routing import MAX_RETRY_AFTER_S

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
_WORD = re.compile(r"(?<![\w./'])/?\w+(?:/\w+)*(?![\w'])")
"""A name as messages write it, or a path. What they quote is left alone: it is a client's."""
_RETRIED_BY_SDKS = {409, 429}
"""And every status from 500, and 408, where that is right: OpenAI's SDKs repeat these unless `x-should-retry` says
otherwise."""


class ErrorObject(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(msgspec.Struct, frozen=True):
    error: ErrorObject


@dataclass(frozen=True, slots=True)
class Row:
    status: int
    type: str = INVALID_REQUEST
    param: str | None = None
    """What is at fault when the error itself does not say."""


TABLE: Mapping[type[SightlineError], Row] = {
    e.RequestError: Row(400),
    e.InvalidRequest: Row(400),
    e.UnsupportedFeature: Row(400),
    e.ModelNotFound: Row(404, param="model"),
    e.ObjectNotFound: Row(404),
    e.ContextLengthExceeded: Row(400, param="messages"),
    e.SchemaInvalid: Row(400, param="response_format.json_schema.schema"),
    e.BodyTooLarge: Row(413),
    e.FileTooLarge: Row(413),
    e.IdempotencyConflict: Row(422),
    e.ImageError: Row(400),
    e.ImageEncodingInvalid: Row(400),
    e.ImageFormatUnsupported: Row(400),
    e.ImageUnreadable: Row(400),
    e.ImageEmpty: Row(400),
    e.ImageFileTooLarge: Row(400),
    e.ImageTooLarge: Row(400),
    e.ImageTooSmall: Row(400),
    e.ImageForbidden: Row(400),
    e.ImageFetchFailed: Row(400),
    e.ImageFileNotFound: Row(400),
    e.AudioError: Row(400, param="file"),
    e.AudioFormatUnsupported: Row(400, param="file"),
    e.AudioUnreadable: Row(400, param="file"),
    e.AudioEmpty: Row(400, param="file"),
    e.AudioFileTooLarge: Row(400, param="file"),
    e.AudioTooLong: Row(400, param="file"),
    e.AudioTooShort: Row(400, param="file"),
    e.AccessError: Row(403),
    e.Unauthenticated: Row(401),
    e.Forbidden: Row(403),
    e.RateLimited: Row(429, "rate_limit_error"),
    e.QuotaExceeded: Row(429, "insufficient_quota"),
    e.CapacityError: Row(503, SERVER_ERROR),
    e.Overloaded: Row(503, SERVER_ERROR),
    e.DeadlineExceeded: Row(504, SERVER_ERROR),
    e.StorageUnavailable: Row(503, SERVER_ERROR),
    e.StorageFull: Row(507, SERVER_ERROR),
    e.EngineError: Row(500, SERVER_ERROR),
    e.EngineUnavailable: Row(503, SERVER_ERROR),
    e.EngineFailed: Row(500, SERVER_ERROR),
    e.UpstreamFailed: Row(500, SERVER_ERROR),
}
"""Wire contract, section 0. A test fails when a class of the error tree has no row."""


def is_bug(error: BaseException) -> bool:
    """Whether an error is nobody's decision, so that its traceback belongs in the log."""
    return not isinstance(error, SightlineError | HTTPException)


def to_status(error: Exception) -> int:
    match error:
        case SightlineError():
            return _row(error).status
        case HTTPException():
            return error.status_code
        case _:
            return 500


def to_error(error: Exception, request_id: str) -> ErrorBody:
    """The error object. `request_id` is shown only for bugs, whose message says nothing else."""
    match error:
        case SightlineError():
            row = _row(error)
            return ErrorBody(ErrorObject(error.message, row.type, error.param or row.param, error.code))
        case HTTPException():
            kind = INVALID_REQUEST if error.status_code < 500 else SERVER_ERROR
            return ErrorBody(ErrorObject(_http_message(error), kind, None, None))
        case _:
            message = f"The server had an error while it processed the request. Its log tells more: {request_id}."
            return ErrorBody(ErrorObject(message, SERVER_ERROR, None, None))


def to_message(error: Exception, request_id: str, words: Mapping[str, str] | None = None) -> str:
    """For dialects whose errors are no more than a message: it names the field or the picture itself.

    `words` has what a dialect calls things that OpenAI's calls otherwise, as messages of the service and of engines
    do: `{"max_tokens": "options.num_predict"}`. One that is plain English too (`stop`) is only replaced where the error
    is about it.
    """
    if not isinstance(error, SightlineError):
        return to_error(error, request_id).error.message
    words = {word: own for word, own in (words or {}).items() if not word.isalpha() or word == error.param}
    message = _WORD.sub(lambda found: words.get(found[0], found[0]), error.message)
    if isinstance(error, e.ContextLengthExceeded):
        return message  # it is about all that was sent
    place = words.get(error.param or "", error.param)
    return message if place is None or place in message else f"{place}: {message}"


def to_headers(error: Exception) -> dict[str, str]:
    """`retry-after` (whole seconds, 1..120) where waiting helps, exactly too for a rate or a queue (`retry-after-ms`);
    `x-should-retry` where a client would otherwise repeat what cannot succeed; what HTTP itself asks for (`allow` with
    a 405, `www-authenticate` with a 401, `connection: close` when a body was not read to its end)."""
    headers = dict((error.headers if isinstance(error, HTTPException) else None) or {})
    status = to_status(error)
    if status in (408, 413):
        headers["connection"] = "close"
    if isinstance(error, SightlineError) and error.retryable and status in (429, 503):
        seconds = getattr(error, "retry_after_s", 1.0)
        headers["retry-after"] = str(min(MAX_RETRY_AFTER_S, max(1, math.ceil(seconds))))
    if isinstance(error, e.RateLimited | e.Overloaded) and error.retryable:
        headers["retry-after-ms"] = str(math.ceil(min(MAX_RETRY_AFTER_S, error.retry_after_s) * 1000))
    if isinstance(error, e.Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    retryable = isinstance(error, SightlineError) and error.retryable
    if (status >= 500 or status in _RETRIED_BY_SDKS) and not retryable:
        headers["x-should-retry"] = "false"
    return headers


def to_response(error: Exception, request_id: str) -> Response:
    """In OpenAI's shape: what a client gets wherever no other dialect is spoken."""
    return json_response(to_error(error, request_id), to_status(error), to_headers(error))


def _row(error: SightlineError) -> Row:
    return next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)


def _http_message(error: HTTPException) -> str:
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        return f"This path does not take that method. It takes: {(error.headers or {}).get('Allow', 'none')}."
    return error.detail
