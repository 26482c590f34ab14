"""Forms in a body: what is read, what is refused, and that no content makes reading slow."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import msgspec
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request

from sightline.api.disconnect import ClientDisconnected
from sightline.api.fields import boolean, number, read
from sightline.api.forms import MAX_FIELD_BYTES, MAX_FIELDS, from_text, reading_form
from sightline.config import HttpLimits
from sightline.errors import BodyTooLarge, InvalidRequest, SightlineError

pytestmark = pytest.mark.anyio


def encoded(data: Any = None, files: Any = None) -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://x/", data=data, files=files or {"file": ("a.wav", b"RIFF", "audio/wav")})
    return request.read(), request.headers["content-type"]


@asynccontextmanager
async def reading(body: bytes, content_type: str, *, chunk: int = 7, leaves: bool = False, **kwargs: Any) -> Any:
    pieces = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]

    async def receive() -> dict[str, Any]:
        if not pieces:
            return {"type": "http.disconnect"}
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces) or leaves}

    headers = [(b"content-type", content_type.encode("latin-1"))]
    request = Request({"type": "http", "method": "POST", "headers": headers, "path": "/"}, receive)
    limits = HttpLimits(**{k: kwargs.pop(k) for k in ("max_body_bytes",) if k in kwargs})
    async with reading_form(request, limits, **kwargs) as form:
        yield form


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
async def test_texts_lists_and_the_file_arrive_however_the_body_is_cut(chunk: int) -> None:
    body, kind = encoded(
        {"prompt": "été\r\n--", "granularities[]": ["word", "segment"]}, {"file": ("../é.wav", b"\0\r\n--\xff")}
    )
    async with reading(body, kind, chunk=chunk) as form:
        assert form.fields == {"prompt": "été\r\n--", "granularities": ["word", "segment"]}
        file = form.file("file")
        assert (file.filename, file.size, await file.read()) == ("../é.wav", 6, b"\0\r\n--\xff")


async def test_a_large_file_lies_on_disk_and_is_gone_afterwards() -> None:
    content = bytes(range(256)) * (12 * 1024)
    body, kind = encoded({}, {"file": ("big", content)})
    async with reading(body, kind, chunk=1 << 16) as form:
        file = form.file("file")
        assert file._file.file._rolled  # type: ignore[attr-defined]
        assert await file.read() == content
        assert b"".join([c async for c in file.chunks(1000)]) == content
    assert file._file.file.closed


class Body(msgspec.Struct, frozen=True, kw_only=True):
    temperature: Annotated[float, from_text(number(0, 1))] = 0.0
    stream: Annotated[bool, from_text(boolean)] = False


async def test_numbers_and_booleans_are_read_from_their_text() -> None:
    async with reading(*encoded({"temperature": "0.25", "stream": "true"})) as form:
        assert read(Body, form.fields) == Body(temperature=0.25, stream=True)


@pytest.mark.parametrize(
    "given", [{"temperature": "warm"}, {"temperature": "1.5"}, {"stream": "1"}, {"stream[]": "true"}]
)
async def test_other_text_is_refused_by_the_fields_own_rule(given: dict[str, str]) -> None:
    async with reading(*encoded(given)) as form:
        with pytest.raises(InvalidRequest) as caught:
            read(Body, form.fields)
    assert caught.value.param == next(iter(given)).removesuffix("[]")


REFUSED: list[tuple[str, Callable[[], tuple[bytes, str]], type[Exception], str]] = [
    ("json", lambda: (b"{}", "application/json"), HTTPException, "multipart/form-data"),
    ("no boundary", lambda: (encoded()[0], "multipart/form-data"), HTTPException, "boundary"),
    ("nothing", lambda: (b"", "multipart/form-data; boundary=x"), InvalidRequest, "closing boundary"),
    ("cut", lambda: (encoded()[0][:-12], encoded()[1]), InvalidRequest, ""),
    ("other boundary", lambda: (encoded()[0], "multipart/form-data; boundary=x"), InvalidRequest, "cannot be read"),
    ("a field twice", lambda: encoded({"model": ["a", "b"]}), InvalidRequest, "'model'"),
    ("field and list", lambda: encoded({"a": "1", "a[]": "2"}), InvalidRequest, "'a'"),
    ("a file twice", lambda: encoded({}, [("file", b"a"), ("file", b"b")]), InvalidRequest, "'file'"),
    ("too many files", lambda: encoded({}, [(f"f{i}", b"a") for i in range(3)]), InvalidRequest, "files"),
    ("too many fields", lambda: encoded({f"f{i}": "" for i in range(MAX_FIELDS + 1)}), InvalidRequest, "fields"),
    ("a long field", lambda: encoded({"prompt": "x" * (MAX_FIELD_BYTES + 1)}), InvalidRequest, "size"),
    ("too large", lambda: encoded({}, {"file": b"x" * 5000}), BodyTooLarge, "larger than"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "says"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
async def test_what_cannot_be_read_is_refused_with_a_reason(
    make: Callable[[], tuple[bytes, str]], error: type[Exception], says: str
) -> None:
    limit = 4096 if error is BodyTooLarge else 64 << 20
    with pytest.raises(error) as caught:
        async with reading(*make(), chunk=1 << 16, max_body_bytes=limit, max_files=2):
            pass
    message = caught.value.message if isinstance(caught.value, SightlineError) else str(caught.value)
    assert says in message


async def test_a_file_that_is_missing_or_text_is_named() -> None:
    async with reading(*encoded({"upload": "x"})) as form:
        with pytest.raises(InvalidRequest, match="Missing required parameter: 'audio'"):
            form.file("audio")
        with pytest.raises(InvalidRequest, match="'upload': expected a file"):
            form.file("upload")


async def test_a_client_that_leaves_ends_the_reading() -> None:
    body, kind = encoded()
    with pytest.raises(ClientDisconnected):
        async with reading(body[:-20], kind, leaves=True):
            pass


@pytest.mark.parametrize("piece", [b"\r", b"\n", b"\r\n", b"\r\n-", b"-", b"\r\n--b\r", b"\r\n--boundar"])
async def test_no_content_is_slow_to_read(piece: bytes) -> None:
    content = piece * ((2 << 20) // len(piece))
    body = (
        b'--boundary\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n%b\r\n--boundary--\r\n'
        % content
    )
    began = time.process_time()
    async with reading(body, "multipart/form-data; boundary=boundary", chunk=1 << 16) as form:
        assert form.file("file").size == len(content)
    assert time.process_time() - began < 2.0
