"""What an honest client notices of many slow ones: `python -m tests.server.slowloris [SOCKETS]`.

Rounds with and without them take turns, so that what else the machine does is in both. A third of the sockets drip a
head, a third a body, a third take an answer a byte at a time; whoever is cut off connects again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event

from tests.reliability.client import HOST, Connection
from tests.reliability.serving import fake, serving

_ROUNDS = 3
_QUESTION = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
_LONG = json.dumps(
    {"model": "m", "stream": True, "messages": [{"role": "user", "content": "[[fake: say " + "word " * 1000 + "]]"}]}
).encode()
_POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@dataclass
class Figures:
    sockets: int
    without: list[float] = field(default_factory=list)
    """Seconds that each honest request took."""
    beside: list[float] = field(default_factory=list)
    failed: int = 0
    """Honest requests that were not answered with 200."""
    cut_off: int = 0
    """Slow connections that the server ended."""

    def p99_ratio(self) -> float:
        return quantile(self.beside, 0.99) / quantile(self.without, 0.99)

    def __str__(self) -> str:
        def shown(times: list[float]) -> str:
            return f"p50 {quantile(times, 0.5) * 1e3:.1f} ms, p99 {quantile(times, 0.99) * 1e3:.1f} ms"

        return (
            f"without: {shown(self.without)}\nbeside {self.sockets} slow sockets: {shown(self.beside)}, "
            f"p99 x {self.p99_ratio():.2f}; {self.failed} failed; {self.cut_off} slow connections were ended"
        )


def quantile(times: list[float], q: float) -> float:
    return sorted(times)[min(len(times) - 1, int(q * len(times)))]


async def measure(port: int, sockets: int, requests: int, *, rounds: int = _ROUNDS, settle_s: float = 0.0) -> Figures:
    """`requests`: honest ones in each round. `settle_s`: until the answers that nobody reads have filled what holds
    them, which is work like any other's."""
    figures = Figures(sockets)
    await _ask(port, requests, [], figures)
    for _ in range(rounds):
        await _ask(port, requests, figures.without, figures)
        async with _slow(port, figures):
            await asyncio.sleep(settle_s)
            await _ask(port, requests, figures.beside, figures)
    return figures


async def main(sockets: int) -> Figures:
    async with serving(fake(slots=4 + sockets), http={"head_s": 2.0}) as served:
        return await measure(served.port, sockets, 400, settle_s=8.0)


async def _ask(port: int, requests: int, times: list[float], figures: Figures) -> None:
    async with Connection(port) as connection:
        for _ in range(requests):
            reply = await connection.ask("POST", "/v1/chat/completions", _QUESTION)
            times.append(reply.took_s)
            figures.failed += reply.status != 200
            await asyncio.sleep(0.002)


@asynccontextmanager
async def _slow(port: int, figures: Figures) -> AsyncIterator[None]:
    """In a process of their own, so that the honest client's clock is not theirs."""
    context = multiprocessing.get_context("spawn")
    connected, ended = context.Event(), context.Value("i", 0)
    process = context.Process(target=_be_slow, args=(port, figures.sockets, connected, ended), daemon=True)
    process.start()
    try:
        assert await asyncio.to_thread(connected.wait, 60)
        yield
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)
        figures.cut_off += ended.value


def _be_slow(port: int, sockets: int, connected: Event, ended: Synchronized[int]) -> None:
    """Until the process is ended."""
    kinds = (_drip_head, _drip_body, _sip)
    first = 0

    async def again(kind: Slow, after_s: float) -> None:
        nonlocal first
        is_first = True
        await asyncio.sleep(after_s)
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(HOST, port, limit=1024)
                first += is_first
                is_first = False
                if first == sockets:
                    connected.set()
                try:
                    await kind(reader, writer)
                    ended.value += 1
                finally:
                    writer.close()
            await asyncio.sleep(0.1)

    async def all_of_them() -> None:
        await asyncio.gather(*(again(kinds[i % 3], 2.0 * i / sockets) for i in range(sockets)))

    asyncio.run(all_of_them())


Slow = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


async def _drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while not reader.at_eof():
        writer.write(b"a")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                if not await reader.read(1024):
                    return


async def _drip_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET /")
    await _drip(reader, writer)


async def _drip_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(_POST + b"Content-Length: 100000\r\n\r\n")
    await _drip(reader, writer)


async def _sip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    writer.write(_POST + b"Content-Length: %d\r\n\r\n" % len(_LONG) + _LONG)
    while await reader.read(1):
        await asyncio.sleep(1.0)


if __name__ == "__main__":
    began = time.monotonic()
    print(asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)))
    print(f"{time.monotonic() - began:.0f} s")
