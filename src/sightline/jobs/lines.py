"""The lines of a batch's files (wire contract, section 6): input checked, output written. Pure."""

from __future__ import annotations

import codecs
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from sightline.jobs import Item, LineError, Result, Usage
from sightline.jsonlines import to_line

MAX_ERRORS: Final = 100
"""Told of one file."""
_CUSTOM_ID: Final = 512


class _Line(msgspec.Struct, frozen=True, kw_only=True):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    model: str
    stream: bool | None = None
    background: bool | None = None


class _Details(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class _Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Of every dialect that a batch may speak."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None
    input_tokens: int = 0
    output_tokens: int = 0
    input_tokens_details: _Details | None = None
    output_tokens_details: _Details | None = None


class _Error(msgspec.Struct, frozen=True, kw_only=True):
    message: str = ""


class _Reply(msgspec.Struct, frozen=True, kw_only=True):
    usage: _Usage | None = None
    error: _Error | None = None


_line = msgspec.json.Decoder(_Line)
_head = msgspec.json.Decoder(_Head)
_reply = msgspec.json.Decoder(_Reply)


@dataclass(slots=True)
class Reading:
    """An input file, line by line: its items, or what is wrong with it."""

    endpoint: str
    max_lines: int
    items: list[Item] = field(default_factory=list)
    """Those since they were last taken away."""
    errors: list[LineError] = field(default_factory=list)
    model: str | None = None
    count: int = 0
    _line: int = 0
    _seen: set[str] = field(default_factory=set)

    def feed(self, line: bytes) -> None:
        self._line += 1
        if self._line == 1:
            line = line.removeprefix(codecs.BOM_UTF8)  # as Windows' editors write; RFC 8259, section 8.1
        if not line.strip() or len(self.errors) >= MAX_ERRORS:
            return
        try:
            self._read(line)
        except _Wrong as wrong:
            self.errors.append(LineError(wrong.code, str(wrong), self._line, wrong.param))

    def end(self) -> None:
        if not self.count and not self.errors:
            self.errors.append(LineError("empty_file", "The input file holds no request. Write one a line."))

    def take(self) -> list[Item]:
        items, self.items = self.items, []
        return items

    def _read(self, raw: bytes) -> None:
        try:
            line = _line.decode(raw)
        except msgspec.ValidationError as error:
            raise _Wrong("invalid_json_line", f"This line is no request: {error}.") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            told = f"This line is not valid JSON: {_why(error)}. Each request is an object on one line, in UTF-8."
            raise _Wrong("invalid_json_line", told) from None
        if not 0 < len(line.custom_id) <= _CUSTOM_ID:
            raise _Wrong("invalid_custom_id", f"It has 1 to {_CUSTOM_ID} characters.", "custom_id")
        if line.custom_id in self._seen:
            raise _Wrong("duplicate_custom_id", f"{line.custom_id!r} stands in an earlier line too.", "custom_id")
        self._seen.add(line.custom_id)
        if line.method != "POST":
            raise _Wrong("invalid_method", "The method is POST.", "method")
        if line.url != self.endpoint:
            raise _Wrong("invalid_url", f"The batch is for {self.endpoint}, and so is each of its lines.", "url")
        self._check_body(bytes(line.body))
        _check_keys(raw, bytes(line.body))
        self.count += 1
        if self.count > self.max_lines:
            raise _Wrong("too_many_lines", f"A batch has at most {self.max_lines} requests.")
        self.items.append(Item(self.count - 1, line.custom_id, bytes(line.body)))

    def _check_body(self, body: bytes) -> None:
        try:
            head = _head.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            shown = str(error) if isinstance(error, msgspec.ValidationError) else _why(error)
            raise _Wrong("invalid_request_body", f"The body is no request: {shown}.", "body") from None
        for name in ("stream", "background"):
            if getattr(head, name):
                raise _Wrong("unsupported_parameter", f"A batch has no {name!r}; leave it out.", f"body.{name}")
        if self.model is None:
            self.model = head.model
        elif head.model != self.model:
            raise _Wrong(
                "mismatched_model", "All lines of a batch name one model; this is another's than the first's.", "model"
            )


def _check_keys(line: bytes, body: bytes) -> None:
    """No key stands twice in what is around the body, an object: one parser would take the first, another the last. The
    body itself, megabytes of pictures, is looked at by who answers it."""

    def see(pairs: list[tuple[str, object]]) -> None:
        if len({key for key, _ in pairs}) != len(pairs):
            raise _Wrong("invalid_json_line", "This line has an object with the same key twice.")

    try:
        json.loads(line.replace(body, b"{}", 1), object_pairs_hook=see)
    except (ValueError, RecursionError) as error:  # in a field that no request has, and msgspec has not looked at
        raise _Wrong("invalid_json_line", f"This line is not valid JSON: {_why(error)}.") from None


def _why(error: Exception) -> str:
    """What of JSON is wrong, and where: nothing of what it says."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 (byte {error.start})"
    why = str(error).removeprefix("JSON is malformed: ")
    return why[:1].lower() + why[1:]


class _Wrong(Exception):
    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


async def split_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """The lines that end in each chunk."""
    begun: list[bytes] = []  # of a line with pictures in it: joined once, not with each chunk
    async for chunk in chunks:
        first, *others = chunk.split(b"\n")
        begun.append(first)
        if others:
            yield [b"".join(begun), *others[:-1]]
            begun = [others[-1]]
    yield [b"".join(begun)]


def to_result_line(item: Item, result: Result) -> bytes:
    """One line of the output or the error file, with its line break."""
    response: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    if result.status_code is None:
        error = {"code": result.error_code or "", "message": result.error_message}
    else:
        body = msgspec.Raw(result.body)
        response = {"status_code": result.status_code, "request_id": result.request_id, "body": body}
    return to_line({"id": item.id, "custom_id": item.custom_id, "response": response, "error": error})


def to_usage(body: bytes) -> Usage:
    """What an answer tells of its tokens; nothing where it tells nothing."""
    try:
        told = _reply.decode(body).usage
    except msgspec.DecodeError:
        return Usage()
    if told is None:
        return Usage()

    def of(name: str, *details: _Details | None) -> int:
        return sum(getattr(found, name) for found in details if found is not None)

    return Usage(
        told.prompt_tokens + told.input_tokens,
        of("cached_tokens", told.prompt_tokens_details, told.input_tokens_details),
        told.completion_tokens + told.output_tokens,
        of("reasoning_tokens", told.completion_tokens_details, told.output_tokens_details),
    )


def to_message(body: bytes) -> str:
    """What an error in OpenAI's shape says; nothing where there is none."""
    try:
        error = _reply.decode(body).error
    except msgspec.DecodeError:
        return ""
    return "" if error is None else error.message
