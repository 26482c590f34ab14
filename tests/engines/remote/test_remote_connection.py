"""One HTTP/1.1 connection: responses however they are cut, framed and ended, and what is no response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from sightline.engines.remote.connection import Broken, Connection, to_head
from sightline.engines.remote.upstream import Address, Limits, Upstream
from sightline.errors import UpstreamFailed

pytestmark = pytest.mark.anyio

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n"


@asynccontextmanager
async def answering(*responses: bytes, close: bool = False, size: int = 1 << 20) -> AsyncIterator[Connection]:
    """To a server that answers each request with the next of these, in pieces of so many bytes."""
    waiting = iter(responses)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for response in waiting:
            await reader.readuntil(b"\r\n\r\n")
            for start in range(0, len(response), size):
                writer.write(response[start : start + size])
                await writer.drain()
                await asyncio.sleep(0)
            if close:
                break
        else:
            await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    try:
        yield connection
    finally:
        connection.close()
        server.close()


async def ask(connection: Connection, *, silence_s: float = 5.0) -> bytes:
    deadline = asyncio.get_running_loop().time() + 30
    await connection.ask([to_head("GET", "/", {"Host": "x"})], silence_s=silence_s, deadline=deadline)
    body = b""
    while (piece := await connection.piece()) is not None:
        body += piece
    connection.rest()
    return body


@pytest.mark.parametrize("response", [LENGTH, CHUNKS], ids=["length", "chunks"])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_a_body_however_it_is_cut_and_the_next_one_on_the_same_connection(response: bytes, size: int) -> None:
    async with answering(response, LENGTH.replace(b"hello", b"again"), size=size) as connection:
        assert await ask(connection) == b"hello"
        assert connection.status == 200
        assert connection.reusable
        assert await ask(connection) == b"again"


async def test_a_body_that_ends_with_its_connection() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n\r\nhello", close=True) as connection:
        assert await ask(connection) == b"hello"
        assert not connection.reusable


@pytest.mark.parametrize("cut", range(1, len(CHUNKS)))
async def test_cut_off_anywhere_it_is_broken(cut: int) -> None:
    async with answering(CHUNKS[:cut], close=True) as connection:
        with pytest.raises(Broken):
            await ask(connection)


async def test_a_provisional_response_is_not_the_response() -> None:
    async with answering(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + LENGTH) as connection:
        assert await ask(connection) == b"hello"
        assert (connection.status, connection.headers) == (200, {"content-length": "5"})


@pytest.mark.parametrize(
    "response",
    [
        LENGTH + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        LENGTH + b"more",
        LENGTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    ],
    ids=["two responses", "more than it said", "closed"],
)
async def test_what_says_more_or_goodbye_is_not_used_again(response: bytes) -> None:
    async with answering(response) as connection:
        assert await ask(connection) == b"hello"
        assert not connection.reusable


@pytest.mark.parametrize(
    "response",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
    ],
    ids=["another protocol", "an upgrade", "two framings", "two lengths", "a head without an end"],
)
async def test_what_is_no_response(response: bytes) -> None:
    async with answering(response) as connection:
        with pytest.raises(Broken):
            await ask(connection)
        assert not connection.reusable


async def test_silence_is_timed_between_pieces_and_not_while_nobody_waits() -> None:
    async with answering(LENGTH[:-1]) as connection:
        with pytest.raises(TimeoutError):
            await ask(connection, silence_s=0.05)
    async with answering(LENGTH) as connection:
        await connection.ask(
            [b"GET / HTTP/1.1\r\n\r\n"], silence_s=0.02, deadline=asyncio.get_running_loop().time() + 30
        )
        due = asyncio.get_running_loop().time() + 0.06
        while asyncio.get_running_loop().time() < due:  # a reader that is slow itself
            await asyncio.sleep(0.01)
        assert await connection.piece() == b"hello"


async def test_a_server_faster_than_its_reader_has_to_wait() -> None:
    size = 64 * 1024 * 1024
    sent = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        while sent < size:
            writer.write(bytes(1 << 20))
            await writer.drain()
            sent += 1 << 20

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    _, connection = await asyncio.get_running_loop().create_connection(
        Connection, "127.0.0.1", server.sockets[0].getsockname()[1]
    )
    await connection.ask([b"GET / HTTP/1.1\r\n\r\n"], silence_s=5, deadline=asyncio.get_running_loop().time() + 30)
    before = -1
    while sent != before or not sent:  # until it makes no headway
        before = sent
        await asyncio.sleep(0.05)
    assert sent < size // 2
    read = 0
    while (piece := await connection.piece()) is not None:
        read += len(piece)
    assert read == size
    connection.close()
    server.close()


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\0"])
def test_a_header_is_one_line(value: str) -> None:
    with pytest.raises(ValueError, match="character"):
        to_head("GET", "/", {"A": value})
    with pytest.raises(ValueError, match="character"):
        to_head("GET", f"/{value}", {})


async def test_connections_that_nobody_uses_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.engines.remote.upstream._KEPT_S", 0.05)
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(LENGTH)
        await reader.read()
        left.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = Address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    upstream = Upstream(address, Limits(1.0, 1.0, 5.0), key=None, connections=1)
    assert (await upstream.get("models", upstream.deadline())).body == b"hello"
    await asyncio.wait_for(left.wait(), 5.0)
    await upstream.close()
    server.close()


async def test_a_redirect_is_not_followed() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = Address(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    upstream = Upstream(address, Limits(1.0, 1.0, 5.0), key=None, connections=1)
    with pytest.raises(UpstreamFailed, match="redirects"):
        await upstream.get("models", upstream.deadline())
    await upstream.close()
    server.close()
