"""Bytes and values: a body is read under a cap and parsed strictly; replies are encoded.

Python's `json` is the parser because it alone shows every pair of an object (duplicate keys) and every literal (NaN,
1e400) while it scans. What it would accept too freely is refused here, and what would keep the interpreter lock for
long is kept from it: very many small values are refused before it starts, and long strings (pictures in base64), which
it would scan byte by byte, are cut out of the body and put back into the value.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from sightline.api.bodies import LAND, Land, hold
from sightline.api.disconnect import ClientDisconnected
from sightline.api.large import Memory, room_for, to_text
from sightline.config import MIB, HttpLimits
from sightline.errors import BodyTooLarge, InvalidRequest
from sightline.jsonlines import to_json

MAX_JSON_VALUES = 50_000
"""In one body: commas, arrays, objects, each. A parser holds the interpreter lock while it makes values of them, so
this bounds how long nobody else is served (~50 ms)."""
MAX_INT_DIGITS = 20
_PARSE_OFF_LOOP_BYTES = MIB
_PARSE_OFF_LOOP_COMMAS = 2000
"""A body with more of either is parsed in a thread; of its bytes, those of long strings do not count."""
_CUT_OFF_LOOP_BYTES = 4 * MIB
"""A body with more is looked at in a thread from the start: to find the long strings and copy them takes 0.2 ms a MiB,
as a hop to a thread does."""
_MAX_SHORT_BYTES = 16 * MIB
"""Of a body, its long strings left out: over so much the parser, or the search for strings, goes in one step that holds
the interpreter lock (~2 ms a MiB)."""

_LONG_STRING_BYTES = 64 * 1024
"""Strings from this size on are cut out. The base64 of a smaller picture takes the parser 0.1 ms."""
_MAX_QUOTES = 20_000
_MAX_BACKSLASHES = 64
"""In a row. Looked at in search of long strings; what comes behind more of either is the parser's."""

_BACKSLASH = ord("\\")
_KEY_END = re.compile(rb"[ \t\n\r]*:")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)

encode = to_json
"""A value as one line of JSON."""


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(encode(value), status, headers, media_type="application/json")


async def read_json(request: Request, limits: HttpLimits, *, any_type: bool = False) -> dict[str, Any]:
    """The JSON object in a request's body. `any_type`: also where it is declared as something else, or as nothing,
    which some dialects' clients do; not of a browser, whose pages can send such a body to a local server unasked.

    Raises `HTTPException` 415 and 408, `BodyTooLarge`, `InvalidRequest`; `ClientDisconnected` if nobody waits any more.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and (not any_type or _is_of_a_page(request)):
        raise HTTPException(415, "The body must be JSON, sent with Content-Type: application/json.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(415, "The body must not be compressed: send it without Content-Encoding.")
    body, size = await _read_body(request, limits)
    if size > _CUT_OFF_LOOP_BYTES or _occurs_more_than(body, b",", _PARSE_OFF_LOOP_COMMAS):
        value = await asyncio.to_thread(parse, body, size, max_depth=limits.max_json_depth)
    elif len((cut := _cut_long_strings(body, size)).short) > _PARSE_OFF_LOOP_BYTES:
        value = await asyncio.to_thread(_parse_cut, cut, limits.max_json_depth)
    else:
        value = _parse_cut(cut, limits.max_json_depth)
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_type")
    return value


def _is_of_a_page(request: Request) -> bool:
    """Whether a browser sent it for a page: then it says from where (Fetch standard, "HTTP extensions")."""
    return "origin" in request.headers or "sec-fetch-site" in request.headers


Text = bytes | bytearray
Body = Text | Memory


def parse(body: Body, size: int | None = None, *, max_depth: int = 64) -> Any:
    """JSON as RFC 8259 has it, and stricter: UTF-8 only, no NaN or Infinity (nor numbers that become it), no duplicate
    keys, no lone surrogates, integers of at most 20 digits, `max_depth` levels, `MAX_JSON_VALUES` values.

    `size`: of the JSON, where `body` is larger; zeros follow it.

    Raises `InvalidRequest`. Its message never quotes the body.
    """
    return _parse_cut(_cut_long_strings(body, len(body) if size is None else size), max_depth)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A body with a short string in place of each long one."""

    short: Text
    strings: Mapping[str, str]
    """What these stand for."""
    body: Body
    size: int


def _parse_cut(cut: _Cut, max_depth: int) -> Any:
    """Part of `parse`."""
    if not cut.size:
        raise InvalidRequest("The body is empty; a JSON object was expected.")
    if not cut.strings:
        return _parse(cut.short, max_depth)
    try:
        value = _parse(cut.short, max_depth)
    except InvalidRequest:
        return _parse(cut.body[: cut.size], max_depth)  # to fail again, at a line and column of the body that was sent
    return _put_back([value], cut.strings)[0]


def _parse(body: Text, max_depth: int) -> Any:
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


def _cut_long_strings(body: Body, size: int) -> _Cut:
    """Only strings of printable ASCII without escapes are cut, which are what they look like; never a key. Each step
    over their bytes is one call at the speed of memory, so that other threads wait for none of them for long.

    Raises `InvalidRequest` where too much is left.
    """
    nonce, cut = secrets.token_hex(16), dict[str, str]()
    pieces: list[Text] = []
    kept = at = 0
    start: int | None = None
    for _ in range(_MAX_QUOTES):
        if (quote := body.find(b'"', at)) < 0:
            break
        at = quote + 1
        if start is None:
            start = at
            continue
        if body[quote - 1] == _BACKSLASH:  # never of another string: there is a quote before this one
            before = body[max(start, quote - _MAX_BACKSLASHES) : quote]
            if (backslashes := len(before) - len(before.rstrip(b"\\"))) == _MAX_BACKSLASHES:
                break
            if backslashes % 2:
                continue  # an escaped quote: the string goes on
        if quote - start >= _LONG_STRING_BYTES and _is_plain(body, start, quote) and not _KEY_END.match(body, at):
            name = f"{nonce}{len(cut)}"
            cut[name] = to_text(memoryview(body)[start:quote])
            pieces += [body[kept:start], name.encode()]
            kept = quote
        start = None
    if sum(map(len, pieces)) + size - kept > _MAX_SHORT_BYTES:
        raise InvalidRequest(
            f"The body holds more than {_MAX_SHORT_BYTES // MIB} MiB beside its long strings of plain characters."
        )
    return _Cut(b"".join([*pieces, body[kept:size]]), cut, body, size)


def _is_plain(body: Body, start: int, end: int) -> bool:
    if body.find(b"\\", start, end) >= 0:
        return False
    characters = np.frombuffer(body, np.uint8, end - start, start)
    return bool(characters.min() >= 0x20) and bool(characters.max() < 0x80)


def _put_back(value: Any, cut: Mapping[str, str]) -> Any:
    """Changes `value`, an array or an object which nobody else has seen yet."""
    for at, item in value.items() if isinstance(value, dict) else enumerate(value):
        if type(item) is str:
            if item in cut:
                value[at] = cut[item]
        elif type(item) is dict or type(item) is list:
            _put_back(item, cut)
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


def _occurs_more_than(body: Body, byte: bytes, times: int) -> bool:
    """Like `body.count(byte) > times`, but at the speed of memchr where the byte is rare, as in base64."""
    if len(body) <= times:
        return False
    at = -1
    for _ in range(times + 1):
        at = body.find(byte, at + 1)
        if at < 0:
            return False
    return True


def _outside_strings(body: Text, mark: bytes) -> int:
    """How often `mark` stands outside strings, as far as it matters. Between strings this is Python, so that other
    threads get their turn."""
    count = start = 0
    for string in _STRING.finditer(body):
        count += body.count(mark, start, string.start())
        start = string.end()
        if count > MAX_JSON_VALUES:
            return count
    return count + body.count(mark, start)


async def _read_body(request: Request, limits: HttpLimits) -> tuple[Body, int]:
    """The body, in memory that may be larger, and its size."""
    declared = request.headers.get("content-length", "")
    told = int(declared) if declared.isdecimal() and int(declared) <= limits.max_body_bytes else None
    if told is not None:
        hold(request.scope, told)
        if (land := request.scope.get(LAND)) is not None:
            return await _land(request, limits, land, told), told
    body = bytearray()
    async for chunk in body_chunks(request, limits):
        if told is None:
            hold(request.scope, len(chunk))
        body += chunk
    return body, len(body)


async def _land(request: Request, limits: HttpLimits, land: Land, num_bytes: int) -> Memory:
    body = room_for(num_bytes)
    clock = _Clock(request, limits, land(memoryview(body)[:num_bytes]))
    while (await clock.receive()).get("more_body", False):
        pass
    return body


async def body_chunks(request: Request, limits: HttpLimits) -> AsyncGenerator[bytes, None]:
    """A request's body as it arrives: within `body_s`, and a second more for each `min_body_rate` bytes of it.

    Raises `HTTPException` 408 for one that is too slow, `BodyTooLarge` before the first chunk where the client tells
    the length, else behind the first `max_body_bytes`, which have been given out by then; `ClientDisconnected` if
    nobody waits any more. What is left of the body is the server's to drop (`server/protocol.py`).
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.max_body_bytes:
        raise _too_large(limits.max_body_bytes)
    size, more = 0, True
    clock = _Clock(request, limits, lambda: size)
    while more:
        message = await clock.receive()
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limits.max_body_bytes:
            raise _too_large(limits.max_body_bytes)
        yield chunk
        more = message.get("more_body", False)


class _Clock:
    """For how long a body may take."""

    def __init__(self, request: Request, limits: HttpLimits, come: Callable[[], int]) -> None:
        """`come`: tells how many bytes of it have come."""
        self._request = request
        self._limits = limits
        self._come = come
        self._began = asyncio.get_running_loop().time()

    async def receive(self) -> Message:
        """The next message about the body. Raises `HTTPException` 408, `ClientDisconnected`."""
        limits, before = self._limits, -1
        while (size := self._come()) > before:
            before = size
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._began + limits.body_s + size / limits.min_body_rate):
                    message = await self._request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnected
                    return message
        raise HTTPException(
            408,
            f"The body took longer to arrive than {limits.body_s:g} s and a second for each {limits.min_body_rate} "
            "bytes. Send it faster, or send less: a smaller picture.",
        )


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than the {max_bytes} bytes that this server takes.")
