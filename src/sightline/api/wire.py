"""Bytes and values: a body is read under a cap and parsed strictly; replies are encoded.

Python's `json` is the parser because it alone shows every pair of an object (duplicate keys) and every literal (NaN,
1e400) while it scans; on a body that is mostly one base64 string it costs half a millisecond more per megabyte than the
fastest. What it would accept too freely is refused here, and what would keep the interpreter lock for long (very many
small values) is refused before it starts.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from sightline.api.disconnect import ClientDisconnected
from sightline.config import MIB, HttpLimits
from sightline.errors import BodyTooLarge, InvalidRequest

MAX_JSON_VALUES = 50_000
"""In one body: commas, arrays, objects, each. A parser holds the interpreter lock while it makes values of them, so
this bounds how long nobody else is served (~50 ms)."""
MAX_INT_DIGITS = 20
_PARSE_OFF_LOOP_BYTES = MIB
_BODY_TIMEOUT_S = 60.0
"""For the whole body to arrive; a slow sender may not hold a connection longer."""
_LINGER_BYTES = 256 * MIB
"""Of a body that is too large, this much is read and thrown away, because most clients look for the answer only after
they have sent everything."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)

encode = msgspec.json.Encoder().encode
"""A value as one line of JSON."""


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(value), status, headers, media_type="application/json")


async def read_json(request: Request, limits: HttpLimits) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises `HTTPException` 415 and 408, `BodyTooLarge`, `InvalidRequest`; `ClientDisconnected` if nobody waits any more.
    """
    # Nothing but JSON's own media type: a web page of any origin can send the others to a local server unasked.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, "The body must be JSON, sent with Content-Type: application/json.")
    body = await _read_body(request, limits.max_body_bytes)
    if len(body) > _PARSE_OFF_LOOP_BYTES:
        value = await asyncio.to_thread(parse, body, max_depth=limits.max_json_depth)
    else:
        value = parse(body, max_depth=limits.max_json_depth)
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_type")
    return value


def parse(body: bytes, *, max_depth: int = 64) -> Any:
    """JSON as RFC 8259 has it, and stricter: UTF-8 only, no NaN or Infinity (nor numbers that become it), no duplicate
    keys, no lone surrogates, integers of at most 20 digits, `max_depth` levels, `MAX_JSON_VALUES` values.

    Raises `InvalidRequest`. Its message never quotes the body.
    """
    if not body:
        raise InvalidRequest("The body is empty; a JSON object was expected.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"The body is not UTF-8 (byte {error.start}).") from None
    for mark in (b",", b"[", b"{"):
        if _occurs_more_than(body, mark, MAX_JSON_VALUES) and _outside_strings(body, mark) > MAX_JSON_VALUES:
            raise InvalidRequest(f"The body holds more than {MAX_JSON_VALUES} JSON values.")
    try:
        value = _decoder.decode(text)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(
            f"The body is not valid JSON: {error.msg} (line {error.lineno}, column {error.colno})."
        ) from None
    # Only these can be nested too deeply or hold a lone surrogate: the walk is for the few.
    if _occurs_more_than(body, b"[", max_depth // 2) or _occurs_more_than(body, b"{", max_depth // 2) or b"\\u" in body:
        _check(value, max_depth)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise InvalidRequest("The body has an object with the same key twice.")
    return value


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_INT_DIGITS:
        raise InvalidRequest(f"The body has an integer of more than {MAX_INT_DIGITS} digits.")
    return int(digits)


def _real(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise InvalidRequest("The body has a number that is too large.")
    return value


def _constant(name: str) -> NoReturn:
    raise InvalidRequest(f"The body is not valid JSON: {name} is not a JSON value.")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_real, parse_constant=_constant)


def _check(value: Any, max_depth: int) -> None:
    """Raises `InvalidRequest` for nesting beyond `max_depth` and for strings that no UTF-8 can hold."""
    level = [value]
    depth = 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                _check_unicode(item)
            elif isinstance(item, list):
                below += item
            elif isinstance(item, dict):
                below += item.values()
                for key in item:
                    _check_unicode(key)
        depth += any(isinstance(item, list | dict) for item in level)
        if depth > max_depth:
            raise _too_deep(max_depth)
        level = below


def _check_unicode(text: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidRequest("The body has a string with half of a surrogate pair (\\ud800 to \\udfff).") from None


def _too_deep(max_depth: int) -> InvalidRequest:
    return InvalidRequest(f"The body is nested deeper than {max_depth} levels.")


def _occurs_more_than(body: bytes, byte: bytes, times: int) -> bool:
    """Like `body.count(byte) > times`, but at the speed of memchr where the byte is rare, as in base64."""
    at = -1
    for _ in range(times + 1):
        at = body.find(byte, at + 1)
        if at < 0:
            return False
    return True


def _outside_strings(body: bytes, mark: bytes) -> int:
    """How often `mark` stands outside strings, as far as it matters. Between strings this is Python, so that other
    threads get their turn."""
    count = start = 0
    for string in _STRING.finditer(body):
        count += body.count(mark, start, string.start())
        start = string.end()
        if count > MAX_JSON_VALUES:
            return count
    return count + body.count(mark, start)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > _LINGER_BYTES:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                chunk: bytes = message.get("body", b"")
                size += len(chunk)
                if size <= max_bytes:
                    chunks.append(chunk)
                else:
                    chunks.clear()
                    if size > _LINGER_BYTES:
                        break
                more = message.get("more_body", False)
    except TimeoutError:
        raise HTTPException(408, f"The body did not arrive within {_BODY_TIMEOUT_S:g} s.") from None
    if size > max_bytes:
        raise _too_large(max_bytes)
    return b"".join(chunks)


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the {max_bytes} bytes that this server takes.")
