"""A TCP proxy that harms what passes through it: what networks do to programs, on purpose, and the same each time.

    async with Proxy("127.0.0.1", 8000, seed=7) as proxy:
        proxy.answers = latency(0.5, 0.2)        # from the server to the client
        proxy.requests = reset_peer()            # from the client to the server
        ...                                      # another toxic, or None, at any moment

The names of the toxics are those of Toxiproxy (https://github.com/Shopify/toxiproxy#toxics).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

_PIECE = 64 * 1024
_REQUEST = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n")


@dataclass
class Link:
    """One direction of one connection."""

    writer: asyncio.StreamWriter
    back: asyncio.StreamWriter
    """To who sends in this direction."""
    chance: random.Random
    passed: int = 0
    """Bytes."""
    silent: bool = False
    """Not even an end is told any more."""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        self.passed += len(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Both sides get an RST."""
        for writer in (self.writer, self.back):
            if (sock := writer.get_extra_info("socket")) is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def close(self) -> None:
        """Both sides get an end that looks like any other."""
        for writer in (self.writer, self.back):
            writer.close()


Toxic = Callable[[bytes, Link], Awaitable[None]]
"""Does with what has come what it likes."""


def latency(mean_s: float = 0.5, jitter_s: float = 0.2) -> Toxic:
    async def delay(data: bytes, link: Link) -> None:
        await asyncio.sleep(link.chance.uniform(mean_s - jitter_s, mean_s + jitter_s))
        await link.send(data)

    return delay


def bandwidth(bytes_per_s: int = 20_000) -> Toxic:
    async def throttle(data: bytes, link: Link) -> None:
        step = max(1, bytes_per_s // 20)
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            await link.send(piece)
            await asyncio.sleep(len(piece) / bytes_per_s)

    return throttle


def timeout() -> Toxic:
    """Nothing arrives any more, and nobody is told."""

    async def swallow(data: bytes, link: Link) -> None:
        link.silent = True

    return swallow


def reset_peer() -> Toxic:
    async def reset(data: bytes, link: Link) -> None:
        link.reset()

    return reset


def slicer(least: int = 1, most: int = 7) -> Toxic:
    async def cut(data: bytes, link: Link) -> None:
        start = 0
        while start < len(data):
            end = start + link.chance.randint(least, most)
            await link.send(data[start:end])
            await asyncio.sleep(0)  # so that the other side can read it before the next
            start = end

    return cut


def limit_data(least: int = 1, most: int = 2_000) -> Toxic:
    """The connection ends, quietly, after some bytes; how many is drawn anew for each piece that comes."""

    async def limit(data: bytes, link: Link) -> None:
        left = link.chance.randint(least, most) - link.passed
        await link.send(data[: max(0, left)])
        if left < len(data):
            link.close()

    return limit


class Proxy:
    """Listens on a free port of 127.0.0.1 while inside. Its toxics may be changed at any time."""

    def __init__(self, host: str, port: int, *, seed: int) -> None:
        """What is drawn depends on `seed`, the number of the connection and the direction only."""
        self.port = 0
        self.requests: Toxic | None = None
        self.answers: Toxic | None = None
        self.connections = 0
        self.asked: Counter[str] = Counter()
        """Requests that clients have begun to send, whatever became of them: `POST /v1/chat/completions`."""
        self._target = (host, port)
        self._seed = seed
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._connection(self.connections, reader, writer))
        self.connections += 1
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: asyncio.StreamWriter | None = None
        try:
            from_there, there = await asyncio.open_connection(*self._target)
            to_server = Link(there, writer, random.Random(f"{self._seed}:{number}:requests"))
            to_client = Link(writer, there, random.Random(f"{self._seed}:{number}:answers"))
            both = [
                asyncio.create_task(self._pump(reader, to_server, "requests")),
                asyncio.create_task(self._pump(from_there, to_client, "answers")),
            ]
            try:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in both:
                    task.cancel()
                await asyncio.gather(*both, return_exceptions=True)
        except OSError:
            pass  # the server is not there, which its client is told by the end of the connection
        finally:
            for open_ in (writer, there):
                if open_ is not None:
                    open_.close()

    async def _pump(self, reader: asyncio.StreamReader, link: Link, direction: str) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE):
                if direction == "requests" and (request := _REQUEST.match(data)):
                    self.asked[f"{request[1].decode()} {request[2].decode()}"] += 1
                toxic: Toxic | None = getattr(self, direction)
                if toxic is None:
                    await link.send(data)
                else:
                    await toxic(data, link)
            if link.silent:
                await asyncio.Event().wait()


TOXICS: dict[str, Callable[[], Toxic]] = {
    toxic.__name__: toxic for toxic in (latency, bandwidth, timeout, reset_peer, slicer, limit_data)
}
