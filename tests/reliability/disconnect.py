"""Figure 5: a client that leaves ends its work, at every stage. `python -m tests.reliability.disconnect --count 200`.

The engine has one slot. While one client has it another waits for it; the first leaves, and how long the other then
takes, less what it takes on an idle server, is how long the engine went on for nobody: measured from outside, through
the gateway, the engine's own process and back. Where a request has no slot yet, its place is looked for in the metrics;
where its picture is being downloaded, at the other end of that connection; where it is being decoded, at the decoders.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import random
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import psutil
from PIL import Image

from tests.reliability.client import DIALECTS, HOST, Connection, Dialect, once, picture_part
from tests.reliability.result import Result, milliseconds, quantile
from tests.reliability.serving import Served, fake, serving, until

PROMISE = (
    "a client that leaves: the engine stops within a token step and 250 ms (p99 of 200) and no slot is held; streamed "
    "or not, queued, while its picture is downloaded or decoded, in prefill, in decode"
)
STEP_S = 0.04
_ALLOWED_S = STEP_S + 0.25
_CHAT = DIALECTS["chat"]
_LONG = " ".join(["word"] * 600)
"""A prompt whose prefill takes seconds."""


async def measure(*, count: int = 200) -> Result:
    model = fake(slots=1, step_s=STEP_S / 2, prefill_s_per_token=STEP_S / 20, prefill_chunk=10)
    late_s: dict[str, list[float]] = defaultdict(list)
    chance = random.Random(5)
    async with _dripping() as drip:
        policy = {"allow_hosts": [f"{HOST}:{drip.port}"], "allow_networks": ["127.0.0.0/8"]}
        async with serving(model, fetch=policy) as served:
            bench = _Bench(served, drip, chance)
            await bench.idle()
            stages: dict[str, Callable[[Dialect, bool], Awaitable[float]]] = {
                "decode": bench.in_decode,
                "prefill": bench.in_prefill,
                "queued": bench.queued,
                "fetch": bench.fetching,
                "picture": bench.decoding,
                "body": bench.sending,
            }
            cells = itertools.cycle(
                (stage, dialect, stream)
                for dialect in DIALECTS.values()
                for stream in (True, False)
                for stage in stages
                if stage not in ("fetch", "picture") or dialect is _CHAT
            )
            for stage, dialect, stream in itertools.islice(cells, count):
                late_s[f"{stage}, {'streamed' if stream else 'whole'}"].append(await stages[stage](dialect, stream))
                await until(bench.is_idle, 30.0)
            held = await served.busy()
    everything = [value for values in late_s.values() for value in values]
    p99_s = quantile(everything, 0.99)
    worst = max(late_s, key=lambda name: max(late_s[name]))
    measured = (
        f"{len(everything)} clients left: work went on for p50 {1000 * quantile(everything, 0.5):.0f} ms, p99 "
        f"{1000 * p99_s:.0f} ms, at most {1000 * max(everything):.0f} ms ({worst}); allowed "
        f"{1000 * _ALLOWED_S:.0f} ms; {held:g} slots held"
    )
    details = {name: milliseconds(values) for name, values in sorted(late_s.items())}
    return Result(5, PROMISE, measured, p99_s <= _ALLOWED_S and not held, details)


class _Bench:
    def __init__(self, served: Served, drip: _Drip, chance: random.Random) -> None:
        self._served = served
        self._drip = drip
        self._chance = chance
        self._short = _CHAT.body("hi", tokens=1)
        self._idle_s = 0.0
        """What a short request takes on an idle server."""
        self._slow_picture = _slow_picture()

    async def idle(self) -> None:
        took = [(await once(self._served.port, "POST", _CHAT.path, self._short)).took_s for _ in range(10)]
        self._idle_s = quantile(took, 0.5)

    async def is_idle(self) -> bool:
        return not await self._served.busy()

    async def _running(self, count: int = 1, waiting: int = 0) -> None:
        async def so() -> bool:
            running = await self._served.metric("sightline_requests_running")
            return running >= count and await self._served.metric("sightline_requests_waiting") >= waiting

        await until(so, 30.0, every_s=0.005)

    async def _leaves(self, connection: Connection) -> float:
        connection.leave(reset=self._chance.random() < 0.5)
        return time.perf_counter()

    async def in_decode(self, dialect: Dialect, stream: bool) -> float:
        return await self._holding(dialect.body("[[fake: length 5000]]", tokens=5000, stream=stream), dialect)

    async def in_prefill(self, dialect: Dialect, stream: bool) -> float:
        return await self._holding(dialect.body(_LONG, stream=stream), dialect)

    async def _holding(self, body: bytes, dialect: Dialect) -> float:
        async with Connection(self._served.port) as connection:
            await connection.send("POST", dialect.path, body)
            await self._running()
            other = asyncio.create_task(once(self._served.port, "POST", _CHAT.path, self._short))
            await self._running(waiting=1)
            await asyncio.sleep(self._chance.uniform(0.05, 0.2))
            left = await self._leaves(connection)
            reply = await other
        assert reply.status == 200, reply.body
        return max(0.0, time.perf_counter() - left - self._idle_s)

    async def queued(self, dialect: Dialect, stream: bool) -> float:
        async with Connection(self._served.port) as holder, Connection(self._served.port) as connection:
            await holder.send("POST", _CHAT.path, _CHAT.body("[[fake: length 5000]]"))
            await self._running()
            await connection.send("POST", dialect.path, dialect.body("hi", stream=stream))
            await self._running(waiting=1)
            left = await self._leaves(connection)
            await until(lambda: self._nobody_waits(), 30.0, every_s=0.002)
            return time.perf_counter() - left

    async def _nobody_waits(self) -> bool:
        return not await self._served.metric("sightline_requests_waiting")

    async def fetching(self, dialect: Dialect, stream: bool) -> float:
        part = {"type": "image_url", "image_url": {"url": f"http://{HOST}:{self._drip.port}/picture.png"}}
        return await self._with_picture(part, stream, self._drip.begun, self._drip.ended)

    async def decoding(self, dialect: Dialect, stream: bool) -> float:
        async def busy() -> None:
            await until(lambda: self._served.metric("sightline_decoders_busy"), 30.0, every_s=0.002)

        async def free() -> None:
            """The picture was done just then, or its process is no more; that another is started takes longer."""

            async def so() -> bool:
                gone = not all(_lives(decoder) for decoder in decoders)
                return gone or not await self._served.metric("sightline_decoders_busy")

            await until(so, 30.0, every_s=0.002)

        decoders = self._served.decoders()

        return await self._with_picture(picture_part(self._slow_picture, "image/png"), stream, busy, free)

    async def _with_picture(
        self, part: object, stream: bool, begun: Callable[[], Awaitable[None]], ended: Callable[[], Awaitable[None]]
    ) -> float:
        content = [part, {"type": "text", "text": "hi"}]
        body = _CHAT.body("", stream=stream, messages=[{"role": "user", "content": content}])
        async with Connection(self._served.port) as connection:
            await connection.send("POST", _CHAT.path, body)
            await begun()
            left = await self._leaves(connection)
            await ended()
            return time.perf_counter() - left

    async def sending(self, dialect: Dialect, stream: bool) -> float:
        """The client leaves before all of its request is there."""
        async with Connection(self._served.port) as connection:
            body = dialect.body("x" * 100_000, stream=stream)
            await connection.send("POST", dialect.path, body[:50_000], length=len(body))
            await until(lambda: self._in_flight(2), 30.0)
            left = await self._leaves(connection)
            await until(lambda: self._nobody_is_served(), 30.0, every_s=0.002)
            return time.perf_counter() - left

    async def _in_flight(self, count: int) -> bool:
        """Beside the request that asks."""
        return await self._served.metric("sightline_http_requests_in_flight") >= count

    async def _nobody_is_served(self) -> bool:
        return not await self._in_flight(2)


class _Drip:
    """A server whose pictures never end."""

    def __init__(self) -> None:
        self.port = 0
        self._begun, self._ended = asyncio.Event(), asyncio.Event()

    async def begun(self) -> None:
        await asyncio.wait_for(self._begun.wait(), 30.0)

    async def ended(self) -> None:
        await asyncio.wait_for(self._ended.wait(), 15.0)
        self._begun.clear()
        self._ended.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, EOFError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: 1000000\r\n\r\n\x89PNG")
            self._begun.set()
            await reader.read()  # until the other side has gone
        self._ended.set()
        writer.close()


@asynccontextmanager
async def _dripping() -> AsyncIterator[_Drip]:
    drip = _Drip()
    server = await asyncio.start_server(drip.serve, HOST, 0)
    drip.port = server.sockets[0].getsockname()[1]
    async with server:
        yield drip


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _slow_picture() -> bytes:
    """A second of decoding, in a small file."""
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 4), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((4000, 4000), Image.Resampling.NEAREST).save(file, "PNG", compress_level=1)
    return file.getvalue()


if __name__ == "__main__":
    from tests.reliability.result import HEADER

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    result = asyncio.run(measure(count=parser.parse_args().count))
    print(HEADER, result.row(), *(f"{k}: {v}" for k, v in result.details.items()), sep="\n")
