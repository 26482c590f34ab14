"""Pictures by URL: the same file comes of it, and however a server misbehaves, the right code in time."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
import threading
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest

from sightline.config import MIB, FetchPolicy, ImageLimits
from sightline.errors import EngineUnavailable, ImageEmpty, ImageError, ImageFetchFailed, ImageFileTooLarge
from sightline.images import download
from sightline.images.fetch import Fetcher
from tests.images.web import (
    HOME,
    LOOPBACK,
    Answer,
    Names,
    Site,
    canary,
    fetcher,
    identity,
    reply,
    serving,
    trust,
    was_called,
)

pytestmark = pytest.mark.anyio

PICTURE = bytes(range(256)) * 400
# --- a picture -------------------------------------------------------------------------------------------------------


async def test_over_http_and_what_the_server_is_told() -> None:
    async with serving(reply(PICTURE, "content-type: image/png")) as site:
        file = await fetcher(site).fetch(f"HTTP://Pictures.test:{site.port}/a%20b.png?x=1&y=%2F#part")
        inline = await fetcher(site).fetch(PICTURE)
    assert file == inline
    assert file.content == PICTURE
    assert site.requests == [
        f"GET /a%20b.png?x=1&y=%2F HTTP/1.1\r\nHost: pictures.test:{site.port}\r\nAccept: image/*\r\n"
        "Accept-Encoding: identity\r\nUser-Agent: Sightline\r\nConnection: close\r\n\r\n".encode()
    ]


async def test_over_https_the_name_is_what_is_verified() -> None:
    asked: list[str | None] = []
    server = identity("pictures.test")
    server.sni_callback = lambda _, name, __: asked.append(name)
    async with serving(reply(PICTURE), server) as site:
        file = await fetcher(site, tls=trust()).fetch(f"https://pictures.test:{site.port}/a.png")
    assert file.content == PICTURE
    assert asked == ["pictures.test"]


async def test_a_certificate_for_another_name_or_of_nobody_we_know() -> None:
    async with serving(reply(PICTURE), identity("127.0.0.1", "elsewhere.test")) as site:
        for tls in (trust(), None):
            with pytest.raises(ImageFetchFailed, match="certificate"):
                await fetcher(site, tls=tls).fetch(f"https://pictures.test:{site.port}/a.png")
    assert site.requests == []


@pytest.mark.parametrize("framing", ["chunked", "until closed"])
async def test_however_its_body_is_framed(framing: str) -> None:
    chunks = [PICTURE[i : i + 7000] for i in range(0, len(PICTURE), 7000)]
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    head = b"HTTP/1.1 200 OK\r\n"
    whole = head + b"transfer-encoding: chunked\r\n\r\n" + body if framing == "chunked" else head + b"\r\n" + PICTURE
    async with serving(whole) as site:
        assert (await fetcher(site).fetch(f"http://pictures.test:{site.port}/")).content == PICTURE


async def test_the_declared_type_and_the_name_mean_nothing() -> None:
    async with serving(reply(PICTURE, "content-type: application/x-msdownload")) as site:
        assert (await fetcher(site).fetch(f"http://pictures.test:{site.port}/a.exe")).content == PICTURE


async def test_the_system_resolves_and_no_proxy_of_the_environment_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with canary() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        async with serving(reply(PICTURE)) as site:
            networks = ("127.0.0.0/8", "::1/128")
            policy = FetchPolicy(allow_hosts=(f"localhost:{site.port}",), allow_networks=networks)
            ours = Fetcher(ImageLimits(), policy)
            # The site is not on ::1, where localhost often leads first: the next address is tried.
            assert (await ours.fetch(f"http://localhost:{site.port}/")).content == PICTURE
            await ours.close()
        assert not was_called(proxy)


async def test_nothing_is_logged_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with serving(reply(PICTURE)) as site:
        await fetcher(site).fetch(f"http://pictures.test:{site.port}/secret.png")
    assert "secret" not in caplog.text
    assert "127.0.0.1" not in caplog.text


# --- servers that misbehave ------------------------------------------------------------------------------------------

_OK = b"HTTP/1.1 200 OK\r\n"
BOMB = gzip.compress(bytes(8 * MIB))


def after(start: bytes, then: bytes, every_s: float = 0.0) -> Answer:
    """`start`, then `then` without end."""

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        while True:
            writer.write(then)
            await writer.drain()
            await asyncio.sleep(every_s)

    return answer


async def _hangs(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()


async def _resets(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_OK + b"content-length: 1000\r\n\r\n" + bytes(10))
    await writer.drain()
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


MISBEHAVING: dict[str, tuple[Answer | bytes, type[ImageError], str]] = {
    "says nothing": (_hangs, ImageFetchFailed, "in time"),
    "drips its body": (after(_OK + b"\r\n", b"x", 0.05), ImageFetchFailed, "in time"),
    "drips its headers": (after(_OK, b"a: b\r\n", 0.05), ImageFetchFailed, "in time"),
    "always continues": (after(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), ImageFetchFailed, "in time"),
    "floods us with interim responses": (
        after(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        ImageFetchFailed,
        "proper HTTP",
    ),
    "sends crumbs": (
        after(_OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n" * 1000),
        ImageFetchFailed,
        "small chunks",
    ),
    "has endless headers": (after(_OK, b"a: " + b"b" * 1000 + b"\r\n"), ImageFetchFailed, "proper HTTP"),
    "has one endless header": (after(_OK + b"a: ", b"b" * 1000), ImageFetchFailed, "proper HTTP"),
    "has an endless body": (after(_OK + b"\r\n", bytes(9000)), ImageFileTooLarge, "1,048,576 bytes"),
    "has endless chunks": (
        after(_OK + b"transfer-encoding: chunked\r\n\r\n", b"400\r\n" + bytes(1024) + b"\r\n"),
        ImageFileTooLarge,
        "1,048,576 bytes",
    ),
    "announces too much": (
        after(_OK + b"content-length: 1048577\r\n\r\n", b"x", 0.05),
        ImageFileTooLarge,
        "1,048,576 bytes",
    ),
    "sends a bomb": (reply(BOMB, "content-encoding: gzip"), ImageFetchFailed, "compressed"),
    "sends a transfer bomb": (
        _OK + b"transfer-encoding: gzip, chunked\r\n\r\n" + BOMB,
        ImageFetchFailed,
        "proper HTTP",
    ),
    "promises more": (_OK + b"content-length: 1000\r\n\r\n" + bytes(10), ImageFetchFailed, "broke off"),
    "breaks a chunk off": (
        _OK + b"transfer-encoding: chunked\r\n\r\n400\r\nabc",
        ImageFetchFailed,
        "broke off",
    ),
    "closes at once": (b"", ImageFetchFailed, "broke off"),
    "resets": (_resets, ImageFetchFailed, "broke off"),
    "speaks no HTTP": (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", ImageFetchFailed, "proper HTTP"),
    "counts twice": (_OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\nxx", ImageFetchFailed, "proper HTTP"),
    "counts below zero": (_OK + b"content-length: -1\r\n\r\n", ImageFetchFailed, "proper HTTP"),
    "has no picture": (reply(b"not here: 10.0.0.1", status="404 Not Found"), ImageFetchFailed, "status 404"),
    "is broken": (reply(b"Traceback", status="500 Oh"), ImageFetchFailed, "status 500"),
    "sends a part": (reply(PICTURE, status="206 Partial Content"), ImageFetchFailed, "status 206"),
    "sends no content": (b"HTTP/1.1 204 No Content\r\n\r\n", ImageFetchFailed, "status 204"),
    "redirects nowhere": (reply(b"", status="302 Found"), ImageFetchFailed, "status 302"),
    "changes protocol": (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", ImageFetchFailed, "proper HTTP"),
    "sends a page": (reply(b"<html>", "content-type: Text/HTML; charset=utf-8"), ImageFetchFailed, "web page"),
    "sends an empty file": (reply(b""), ImageEmpty, "0 bytes"),
}


@pytest.mark.parametrize("what", MISBEHAVING)
async def test_a_server_that(what: str) -> None:
    answer, error, problem = MISBEHAVING[what]
    too_late = problem == "in time"
    ours_s = 0.3 if too_late else 10.0
    async with serving(answer) as site:
        began = time.monotonic()
        with pytest.raises(error, match=problem) as caught:
            await fetcher(site, connect_s=0.3, total_s=ours_s).fetch(f"http://pictures.test:{site.port}/a.png")
        took_s = time.monotonic() - began
        assert site.connections == 1
        assert (0.29 < took_s < 2) if too_late else took_s < 9
    assert not any(told in caught.value.message for told in ("127.0.0.1", "10.0.0.1", "pictures", "Traceback"))
    if error is ImageFetchFailed:
        assert caught.value.code == "failed_to_download_image"
        assert caught.value.message.endswith("send the picture as a data: URI.")


async def test_a_server_that_announces_less_is_taken_at_its_word() -> None:
    async with serving(_OK + b"content-length: 10\r\n\r\n" + PICTURE) as site:
        assert (await fetcher(site).fetch(f"http://pictures.test:{site.port}/")).content == PICTURE[:10]


async def test_a_body_that_is_gzip_by_itself_is_not_inflated() -> None:
    async with serving(reply(BOMB)) as site:
        assert (await fetcher(site).fetch(f"http://pictures.test:{site.port}/")).content == BOMB


async def test_exactly_the_limit_and_a_byte_more() -> None:
    for size in (5000, 5001):
        async with serving(_OK + b"\r\n" + bytes(size)) as site:
            ours = fetcher(site, max_bytes=5000)
            if size == 5000:
                assert len((await ours.fetch(f"http://pictures.test:{site.port}/")).content) == size
            else:
                with pytest.raises(ImageFileTooLarge):
                    await ours.fetch(f"http://pictures.test:{site.port}/")


async def test_endless_bodies_take_little_memory_and_give_it_back() -> None:
    errors = []
    async with serving(after(_OK + b"\r\n", bytes(65536))) as site:
        ours = fetcher(site, max_bytes=20 * MIB)
        tracemalloc.start()
        try:
            for _ in range(3):
                with pytest.raises(ImageFileTooLarge) as caught:
                    await ours.fetch(f"http://pictures.test:{site.port}/")
                errors.append(caught.value)  # whose traceback must not keep the body
            left, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert 20 * MIB < peak < 32 * MIB
    assert left < 2 * MIB


async def test_nobody_at_the_port_and_a_lookup_that_fails_or_hangs() -> None:
    with canary() as listener:
        port = listener.getsockname()[1]
    policy = FetchPolicy(allow_hosts=(f"a.test:{port}",), allow_networks=LOOPBACK, connect_s=0.2, total_s=0.3)

    async def fails(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    async def hangs(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(60)
        return HOME

    for resolver, problem in ((Names(a__test=[HOME]), "cannot be reached"), (fails, "looked up"), (hangs, "in time")):
        with pytest.raises(ImageFetchFailed, match=problem):
            await Fetcher(ImageLimits(), policy, resolver=resolver).fetch(f"http://a.test:{port}/")


async def test_a_lookup_that_hangs_in_its_thread_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **more: Any) -> Any:
        if host == b"hangs.test":
            answer.wait(30)
        return original("127.0.0.1", *arguments[:1], **more)

    monkeypatch.setattr(download.socket, "getaddrinfo", getaddrinfo)
    async with serving(reply(PICTURE)) as site:
        hosts = (f"hangs.test:{site.port}", f"answers.test:{site.port}")
        policy = FetchPolicy(allow_hosts=hosts, allow_networks=LOOPBACK, connect_s=0.3, total_s=0.3)
        ours = Fetcher(ImageLimits(), policy)
        hanging = asyncio.create_task(ours.fetch(f"http://hangs.test:{site.port}/"))
        await asyncio.sleep(0)
        assert (await ours.fetch(f"http://answers.test:{site.port}/")).content == PICTURE
        with pytest.raises(ImageFetchFailed, match="in time"):
            await hanging
        answer.set()
        await ours.close()


@pytest.mark.parametrize("dead", [1, 3, 8])
async def test_dead_addresses_leave_time_for_the_next(dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, tried = download.http.AnyIOBackend.connect_tcp, []

    async def connect_tcp(self: Any, host: str, port: int, timeout: float | None = None, **more: Any) -> Any:
        tried.append(host)
        if host == "127.0.0.1":
            return await original(self, host, port, timeout, **more)
        assert timeout is not None
        await asyncio.sleep(timeout)
        raise download.http.ConnectTimeout

    monkeypatch.setattr(download.http.AnyIOBackend, "connect_tcp", connect_tcp)
    async with serving(reply(PICTURE)) as site:
        addresses = [f"2606:4700::{i:x}" for i in range(1, dead + 1)] + HOME
        policy = FetchPolicy(allow_hosts=(f"a.test:{site.port}",), allow_networks=LOOPBACK, connect_s=0.5)
        ours = Fetcher(ImageLimits(), policy, resolver=Names(a__test=[addresses]))
        if dead < 8:
            assert (await ours.fetch(f"http://a.test:{site.port}/")).content == PICTURE
        else:
            with pytest.raises(ImageFetchFailed, match="in time"):
                await ours.fetch(f"http://a.test:{site.port}/")
    assert tried == addresses[:8]


# --- many, and none of them any more ---------------------------------------------------------------------------------


async def test_at_most_four_at_once() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.03)
        writer.write(reply(PICTURE))

    async with serving(answer) as site:
        ours = fetcher(site)
        files = await asyncio.gather(
            *(ours.fetch(f"http://pictures.test:{site.port}/{i}", tenant=str(i % 3)) for i in range(14))
        )
    assert [file.content for file in files] == [PICTURE] * 14
    assert (site.connections, site.most_open) == (14, 4)


async def test_waiting_for_a_turn_is_not_held_against_a_picture() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.15)
        writer.write(reply(PICTURE))

    async with serving(answer) as site:
        ours = fetcher(site, max_at_once=1, connect_s=0.4, total_s=0.4)
        files = await asyncio.gather(*(ours.fetch(f"http://pictures.test:{site.port}/{i}") for i in range(4)))
    assert len(files) == 4


async def test_once_closed_nothing_is_downloaded_any_more() -> None:
    async with serving(reply(PICTURE)) as site:
        policy = FetchPolicy(allow_hosts=(f"127.0.0.1:{site.port}",), allow_networks=LOOPBACK)
        for resolver in (None, Names()):
            ours = Fetcher(ImageLimits(), policy, resolver=resolver)
            await ours.fetch(f"http://127.0.0.1:{site.port}/")
            await ours.close()
            await ours.close()
            with pytest.raises(EngineUnavailable, match="shutting down"):
                await ours.fetch(f"http://127.0.0.1:{site.port}/")
    assert site.connections == 2


@pytest.mark.parametrize("start", [b"", _OK, _OK + b"content-length: 1000\r\n\r\nabc"], ids=["waiting", "head", "body"])
async def test_cancelling_closes_the_connection_at_once(start: bytes) -> None:
    closed = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        assert await reader.read() == b""
        closed.set()

    async with serving(answer) as site:
        ours = fetcher(site, max_at_once=1)
        task = asyncio.create_task(ours.fetch(f"http://pictures.test:{site.port}/"))
        await until(lambda: bool(site.requests))
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.wait_for(closed.wait(), 1)
        with pytest.raises(asyncio.CancelledError):
            await task
        again = asyncio.create_task(ours.fetch(f"http://pictures.test:{site.port}/"))
        await until(lambda: len(site.requests) == 2)  # its place is free again
        again.cancel()


async def test_cancelling_a_handshake_closes_the_connection_at_once() -> None:
    closed, greeted = asyncio.Event(), asyncio.Event()

    async def never_answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        greeted.set()
        await reader.read()
        closed.set()
        writer.close()

    server = await asyncio.start_server(never_answers, "127.0.0.1", 0)
    site = Site(never_answers)
    site.port = server.sockets[0].getsockname()[1]
    task = asyncio.create_task(fetcher(site, tls=trust(), connect_s=10).fetch(f"https://pictures.test:{site.port}/"))
    await asyncio.wait_for(greeted.wait(), 2)
    task.cancel()
    await asyncio.wait_for(closed.wait(), 1)
    assert task.cancelled() or task.cancelling()
    server.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(2):
        while not condition():
            await asyncio.sleep(0.005)
