"""What a server's refusal means to our client: by status and code, never by its text. Pure.

Nothing that a server wrote reaches a client: it may hold addresses, paths, other people's prompts.
"""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from sightline.errors import (
    BodyTooLarge,
    ContextLengthExceeded,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    SightlineError,
    UnsupportedFeature,
    UpstreamFailed,
)

MAX_RETRY_AFTER_S = 120.0
_TOO_LONG = {"context_length_exceeded", "exceed_context_size_error"}
"""Codes of OpenAI, and of all who follow it; llama.cpp's type."""
_UNSUPPORTED = {"unsupported_parameter"}


class Refusal(msgspec.Struct, frozen=True):
    """What is believed of an error reply."""

    status: int
    codes: frozenset[str] = frozenset()
    param: str | None = None
    """A field of ours that it names; None if it names anything else."""
    retry_after_s: float = 1.0


def read_refusal(status: int, body: bytes, retry_after: str | None, fields: frozenset[str]) -> Refusal:
    """`fields`: the names of the request's fields."""
    try:
        reply = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        reply = None
    return to_refusal(status, reply.get("error", reply) if isinstance(reply, dict) else None, retry_after, fields)


def to_refusal(
    status: int, error: Any, retry_after: str | None = None, fields: frozenset[str] = frozenset()
) -> Refusal:
    """`error` is OpenAI's error object; some servers have a text in its place, which tells us nothing."""
    said = error if isinstance(error, dict) else {}
    codes = frozenset(value for key in ("code", "type") if isinstance(value := said.get(key), str))
    param = said.get("param")
    name = param.partition("[")[0].partition(".")[0] if isinstance(param, str) else None
    return Refusal(status, codes, name if name in fields else None, _seconds(retry_after))


def in_success(refusal: Refusal) -> Refusal:
    """What a reply of status 200 means that is no answer: the error it names by a code, else that it is broken."""
    return msgspec.structs.replace(refusal, status=400 if refusal.codes & (_TOO_LONG | _UNSUPPORTED) else 502)


def status_in_stream(error: Any) -> int:
    """An error that comes when 200 has been said carries its status, if any, as a number for a code."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code <= 599 else 500


def to_error(refusal: Refusal, context_length: int | None = None, param: str = "messages") -> SightlineError:
    """Our error for a server's refusal of one request. `param`: what is too long, where something is."""
    status = refusal.status
    if 400 <= status < 500 and refusal.codes & _TOO_LONG:
        return too_long(context_length, param)
    if 400 <= status < 500 and refusal.codes & _UNSUPPORTED:
        return UnsupportedFeature(
            "The server behind this model does not support a field of this request.", param=refusal.param
        )
    if status in (401, 403):
        return EngineUnavailable("The server behind this model does not let us in. Its operator has been told.")
    if status == 404:  # our client has named a model that we serve: it is not at fault, and another may stand in
        return EngineUnavailable("The server behind this model does not have it. Its operator has been told.")
    if status in (429, 503):
        return Overloaded(
            "The server behind this model has too much to do. Try again later.", retry_after_s=refusal.retry_after_s
        )
    if status == 413:
        return BodyTooLarge(
            "The server behind this model does not take a request of this size. Send fewer or smaller pictures."
        )
    if 400 <= status < 500 and status not in (408, 409, 425):
        return InvalidRequest(
            f"The server behind this model refused this request (status {status}). "
            "A field has a value, or messages have a form, that it does not take.",
            param=refusal.param,
        )
    return UpstreamFailed(f"The server behind this model failed (status {status}).")


def too_long(context_length: int | None, param: str = "messages") -> ContextLengthExceeded:
    holds = "is too short for this" if context_length is None else f"holds {context_length} tokens"
    return ContextLengthExceeded(
        f"This model's context {holds}. Shorten the prompt, send fewer or smaller pictures, or lower max_tokens.",
        param=param,
    )


def _seconds(retry_after: str | None) -> float:
    """Of a Retry-After header: seconds or a date (RFC 9110, section 10.2.3), kept in 0..120."""
    if retry_after is None:
        return 1.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 1.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if seconds == seconds else 1.0
