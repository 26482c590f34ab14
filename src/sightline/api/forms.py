"""A body of `multipart/form-data` (RFC 7578): text fields for a schema of `fields.py`, and files.

    async with reading_form(request, limits) as form:
        body = read(Body, form.fields)      # struct of fields.py; rules for numbers and booleans: from_text(...)
        file = form.file("file")            # Upload
        content = await file.read()

A file is in memory while it is small and in an unnamed temporary file from 1 MiB on; both are gone at the end of the
block. What a client calls its file is data and never becomes a path.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from sightline.api.bodies import hold
from sightline.api.fields import Rule, described, invalid, missing, to_schema, wrong_type
from sightline.api.wire import body_chunks
from sightline.config import HttpLimits
from sightline.errors import InvalidRequest

T = TypeVar("T")

MAX_FIELDS: Final = 64
MAX_FIELD_BYTES: Final = 256 * 1024
_SHOWN = 64
_SCALAR = re.compile(r"true|false|-?[0-9]{1,20}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that a client sent. Readable inside the form's block."""

    filename: str
    """As the client has it: to be shown, never opened."""
    media_type: str
    """As the client declared it: to be shown, never believed."""
    size: int
    """In bytes."""
    _file: UploadFile
    _hold: Callable[[int], None]

    async def read(self) -> bytes:
        """All of it, off the event loop where it lies on disk. Raises `Overloaded` where there is no room for it."""
        self._hold(self.size)
        await self._file.seek(0)
        return await self._file.read()

    async def chunks(self, size: int = 1024 * 1024) -> AsyncIterator[bytes]:
        await self._file.seek(0)
        while chunk := await self._file.read(size):
            yield chunk


@dataclass(frozen=True, slots=True)
class Form:
    fields: Mapping[str, Any]
    """Texts by name; a list of texts where the name was sent with `[]` behind it, which is left out here."""
    files: Mapping[str, Upload]

    def file(self, name: str) -> Upload:
        """Raises `InvalidRequest` when it was not sent, or as text."""
        if name in self.fields:
            raise wrong_type(name, "a file", self.fields[name])
        try:
            return self.files[name]
        except KeyError:
            raise missing(name) from None


@asynccontextmanager
async def reading_form(request: Request, limits: HttpLimits, *, max_files: int = 1) -> AsyncGenerator[Form, None]:
    """The form in a request's body.

    Raises `HTTPException` 415 and 408, `BodyTooLarge`, `InvalidRequest` (for a body that is no form, ends early, holds
    a name twice or too many fields or files); `ClientDisconnected` if nobody waits any more.
    """
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type.lower() != b"multipart/form-data" or not options.get(b"boundary"):
        raise HTTPException(415, "The body must be a form, sent with Content-Type: multipart/form-data; boundary=...")
    body = _Watched(body_chunks(request, limits), options[b"boundary"])
    parser = MultiPartParser(
        request.headers, body.chunks(), max_files=max_files, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        data = await parser.parse()
    except MultiPartException as error:
        raise InvalidRequest(f"The form in the body cannot be read: {error.message}") from None
    try:
        if not body.is_complete:
            raise InvalidRequest("The form in the body ends before its closing boundary. Send it again, whole.")
        yield _to_form(data, partial(hold, request.scope))
    finally:
        await data.close()


def from_text(rule: Rule[T]) -> Rule[T]:
    """A rule of `fields.py` for a value that a form can only hold as text: `0.2`, `true`."""

    @described(to_schema(rule))
    def from_scalar(value: Any, at: str) -> T:
        return rule(_to_scalar(value), at)

    return from_scalar


def _to_scalar(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) and _SCALAR.fullmatch(value) else value


class _Watched:
    """Passes a body on and remembers its end, which tells a whole form from one that was cut: the parser does not."""

    def __init__(self, body: AsyncGenerator[bytes, None], boundary: bytes) -> None:
        self._body = body
        self._closing = b"--" + boundary + b"--"
        self._tail = b""
        self.is_complete = False

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        async for chunk in self._body:
            self._tail = (self._tail + chunk)[-len(self._closing) - 2 * _SHOWN :] if chunk else self._tail
            yield chunk
        self.is_complete = self._closing in self._tail


def _to_form(data: FormData, hold: Callable[[int], None]) -> Form:
    fields: dict[str, Any] = {}
    files: dict[str, Upload] = {}
    for given, value in data.multi_items():
        name, is_array = (given[:-2], True) if given.endswith("[]") else (given, False)
        if not name:
            raise InvalidRequest("A part of the form has no name.")
        if isinstance(value, UploadFile):
            _refuse_second(name, name in files or name in fields)
            files[name] = Upload(value.filename or "", value.content_type or "", value.size or 0, value, hold)
        elif is_array:
            _refuse_second(name, name in files or not isinstance(fields.get(name, []), list))
            fields.setdefault(name, []).append(value)
        else:
            _refuse_second(name, name in files or name in fields)
            fields[name] = value
    return Form(fields, files)


def _refuse_second(name: str, is_second: bool) -> None:
    if is_second:
        shown = name[:_SHOWN]
        raise invalid(shown, "was sent twice; send it once")
