"""What a client wrote becomes the bytes of a file, or a refusal that says what to do."""

from __future__ import annotations

import base64
import hashlib
import random
import socket
import threading
import timeit
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from sightline.config import ImageLimits
from sightline.errors import ImageEmpty, ImageEncodingInvalid, ImageFileTooLarge, ImageForbidden
from sightline.images import fetch as module
from sightline.images.fetch import Fetcher, File
from sightline.types import FileId

pytestmark = pytest.mark.anyio

LIMITS = ImageLimits(max_bytes=300_000)
CONTENT = bytes(range(256)) * 4
PAYLOAD = base64.b64encode(CONTENT).decode()


async def fetch(source: str | bytes, limits: ImageLimits) -> File:
    """As a server does whose operator has allowed nothing."""
    return await Fetcher(limits).fetch(source)


@pytest.mark.parametrize(
    "header",
    [
        "data:image/png;base64",
        "DATA:IMAGE/PNG;BASE64",
        "data:;base64",
        "data:image/png;charset=utf-8;name=a.png;base64",
        "data:image/svg+xml; base64",
        "Data:text/html;Base64",
    ],
)
async def test_a_data_uri_in_any_case_with_any_parameters(header: str) -> None:
    file = await fetch(f"{header},{PAYLOAD}", LIMITS)
    assert file.content == CONTENT
    assert file.digest == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


async def test_base64_takes_little_time() -> None:
    """Judged by the standard library's time, which a busy machine lengthens alike. Of a size for which no new pages are
    taken: those would cost both the same, and more than the decoding."""
    payload = base64.b64encode(random.Random(1).randbytes(360_000)).decode()

    uri = f"data:image/jpeg;base64,{payload}"

    def fastest_s(decode: Callable[[], object]) -> float:
        return min(timeit.repeat(decode, number=1, repeat=50))

    ours_s = fastest_s(lambda: module._from_data_uri(uri, 360_000))
    theirs_s = fastest_s(lambda: base64.b64decode(payload, validate=True))
    print(f"base64 of 360 KB: {ours_s * 1e3:.3f} ms; standard library {theirs_s * 1e3:.2f} ms")
    assert ours_s < theirs_s / 3


async def test_the_loop_goes_on_while_a_large_picture_is_read() -> None:
    limits = ImageLimits()
    uri = f"data:image/jpeg;base64,{base64.b64encode(bytes(15_000_000)).decode()}"
    loop_thread, seen = threading.get_ident(), []
    original = module._read

    def read(*arguments: Any) -> Any:
        seen.append(threading.get_ident())
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_read", read)
        await fetch(uri, limits)
        await fetch(f"data:;base64,{PAYLOAD}", limits)
    assert seen[0] != loop_thread  # a large one is for a thread
    assert seen[1] == loop_thread  # a hop would cost a small one more than it saves


@pytest.mark.parametrize("size", [1, 1000, 65_537, 299_999])
async def test_raw_bytes_and_data_uris_give_the_same_file(size: int) -> None:
    content = (CONTENT * 300)[:size]
    assert await fetch(content, LIMITS) == await fetch(f"data:;base64,{base64.b64encode(content).decode()}", LIMITS)


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png,{PAYLOAD}",
        "data:image/png;base64",
        "data:",
        f"data:image/png;base64x,{PAYLOAD}",
        f"data:image/png;base64,{PAYLOAD[:-1]}",
        f"data:image/png;base64,{PAYLOAD[:40]}\n{PAYLOAD[40:]}",
        f"data:image/png;base64, {PAYLOAD}",
        f"data:image/png;base64,{PAYLOAD}=",
        "data:image/png;base64,_-_-",
        "data:image/png;base64,%2B%2F==",
        "data:image/png;base64,\u20ac\u20ac\u20ac\u20ac",
        "data:image/png;base64,====",
        f"data:{'x' * 2000};base64,{PAYLOAD}",
    ],
)
async def test_malformed_data_uris(uri: str) -> None:
    with pytest.raises(ImageEncodingInvalid, match="base64"):
        await fetch(uri, LIMITS)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 5, 6, 7, 12, 600, 601])
async def test_a_large_one_is_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Each of which holds up other threads for a moment only."""
    content = (CONTENT * 2)[:size]
    whole = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    monkeypatch.setattr(module, "_PIECE", 8)
    assert module._from_data_uri(whole, 300_000) == content


@pytest.mark.parametrize("payload", ["AAAAAAA=AAAA", "AAAA====AAAAAAAA", "AAAAAAAAA", "AAAAAAAA=", "AAAAAAAA AAA"])
async def test_a_piece_is_as_strict_as_the_whole(monkeypatch: pytest.MonkeyPatch, payload: str) -> None:
    monkeypatch.setattr(module, "_PIECE", 8)
    with pytest.raises(ImageEncodingInvalid, match="base64"):
        await fetch(f"data:image/png;base64,{payload}", LIMITS)


@pytest.mark.parametrize("source", [b"", "data:image/png;base64,"])
async def test_nothing(source: str | bytes) -> None:
    with pytest.raises(ImageEmpty, match="0 bytes"):
        await fetch(source, LIMITS)


@pytest.mark.parametrize("as_uri", [True, False])
async def test_one_byte_over_the_limit(as_uri: bool) -> None:
    fits, over = bytes(300_000), bytes(300_001)
    sources: list[Any] = [fits, over]
    if as_uri:
        sources = [f"data:;base64,{base64.b64encode(content).decode()}" for content in sources]
    assert len((await fetch(sources[0], LIMITS)).content) == 300_000
    with pytest.raises(ImageFileTooLarge, match="300,000 bytes"):
        await fetch(sources[1], LIMITS)


async def test_what_is_too_large_is_never_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise AssertionError("decoded")

    monkeypatch.setattr(module.pybase64, "b64decode", fail)
    with pytest.raises(ImageFileTooLarge):
        await fetch("data:;base64," + "A" * 400_008, LIMITS)
    with pytest.raises(AssertionError, match="decoded"):
        await fetch("data:;base64," + "A" * 400_000, LIMITS)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/a.png",
        "https://127.0.0.1:{port}/a.png",
        "HTTP://localhost:{port}/",
        "http:/\\127.0.0.1:{port}/",
        "//127.0.0.1:{port}/a.png",
        "ftp://127.0.0.1:{port}/a.png",
        "gopher://127.0.0.1:{port}/",
        "file:///etc/passwd",
        "/etc/passwd",
        "../secret.png",
        "C:\\secret.png",
        "unix:/run/docker.sock",
        "blob:http://127.0.0.1:{port}/x",
        "javascript:alert(1)",
        " data:image/png;base64,AAAA",
        "dat\0a:image/png;base64,AAAA",
        "iVBORw0KGgo=",
        "",
    ],
)
async def test_nothing_else_is_touched(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        url = url.format(port=canary.getsockname()[1])
        with pytest.raises(ImageForbidden, match="data: URI") as caught:
            await fetch(url, LIMITS)
        with pytest.raises(BlockingIOError):  # nobody called
            canary.accept()
    assert len(url) < 3 or url not in caught.value.message


async def test_remote_pictures_are_off_and_the_message_says_so() -> None:
    with pytest.raises(
        ImageForbidden, match=r"^remote pictures are off on this server; send the picture as a data: URI"
    ):
        await fetch("https://example.com/cat.jpg", LIMITS)


async def test_the_same_text_is_read_once_and_for_each_tenant_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = module._read
    monkeypatch.setattr(module, "_read", lambda source, limits: read.append(source) or original(source, limits))
    fetcher, uri = Fetcher(LIMITS), f"data:image/png;base64,{PAYLOAD}"
    first = await fetcher.fetch(uri, tenant="a")
    again = await fetcher.fetch("".join(uri), tenant="a")
    assert first.content == again.content == CONTENT
    assert len(read) == 1
    assert fetcher.known(uri, "b") is None
    assert (await fetcher.fetch(uri, tenant="b")).content == CONTENT
    assert len(read) == 2


async def test_texts_that_look_alike_are_their_own_files() -> None:
    """Of one length, and alike where one looks first."""
    fetcher = Fetcher(LIMITS)
    for _ in range(2):
        for last in (b"\1", b"\2"):
            content = bytes(2999) + last
            file = await fetcher.fetch(f"data:;base64,{base64.b64encode(content).decode()}")
            assert file.content == content
            assert file.digest == f"sha256:{hashlib.sha256(content).hexdigest()}"


async def test_no_more_files_are_kept_than_there_is_room_for() -> None:
    fetcher = Fetcher(ImageLimits(cache_bytes=8 * 10_000))
    uris = [f"data:;base64,{base64.b64encode(bytes([seed]) * 1500).decode()}" for seed in range(4)]
    for uri in (*uris[:2], uris[0], uris[2], uris[3]):  # 3.5 KB each, and room for 10
        await fetcher.fetch(uri)
    assert [fetcher.known(uri, "") is not None for uri in uris] == [False, False, True, True]


async def test_a_file_is_no_text_whatever_its_id() -> None:
    """The name of a file at `/v1/files` is its client's to choose only in form."""
    fetcher, uri = Fetcher(LIMITS), f"data:;base64,{PAYLOAD}"
    await fetcher.fetch(uri)
    assert fetcher.known(uri, "") is not None
    assert fetcher.known(FileId(uri), "") is None
