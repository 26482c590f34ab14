"""Figure 21: what the gateway adds to its engine. `python -m tests.reliability.overhead`.

The engine tells with each answer how long it took to its first token itself, in line and in prefill; what the client
waited beyond that is added by everything else: HTTP, reading, admission, the way to the engine's process and back. Then
streams run as fast as they can, and the tokens are divided by the CPU time of the gateway's process alone.

The engine makes a token of every stream in one step, so fifty chunks come at once. A client that takes each of them
apart, as `client.Connection` does, has the last of them wait for its own work on the others for longer than the gateway
takes for all; so here a piece is only timed and kept. And a client that asks again in the instant of its last chunk
always comes while the chunks of a step are on their way, as no crowd of clients does: here they pause for a while, at
random, of which there are a few more, so that about fifty stream.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any, cast

import psutil

from tests.reliability.client import DIALECTS, HOST, Connection
from tests.reliability.result import Result, milliseconds, quantile
from tests.reliability.serving import Served, fake, serving

PROMISE = (
    "at 50 streams the gateway adds at most 3 ms (p50) and 10 ms (p99) to the time to first token; one core passes on "
    "2,000 tokens a second"
)
STREAMS = 50
_STEP_S = 0.02
_CLIENTS = STREAMS + 3
_PAUSE_S = 2 * _STEP_S
"""Before a client's next question, at most."""
_CHAT = DIALECTS["chat"]


async def measure(*, answers: int = 20, seconds: float = 10.0) -> Result:
    added_s = await _added(answers)
    fan_out = await _fan_out(seconds)
    p50_ms, p99_ms = (1000 * quantile(added_s, share) for share in (0.5, 0.99))
    measured = (
        f"{len(added_s)} answers at {STREAMS} streams: p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms added; "
        f"{fan_out['per_cpu_s']:.0f} tokens for each second of one core ({fan_out['per_s']:.0f} a second as it ran)"
    )
    met = p50_ms <= 3 and p99_ms <= 10 and fan_out["per_cpu_s"] >= 2000
    return Result(21, PROMISE, measured, met, {"added": milliseconds(added_s), "fan_out": fan_out})


async def _added(answers: int) -> list[float]:
    async with serving(fake(slots=_CLIENTS, step_s=_STEP_S)) as served:
        added_s: list[float] = []
        loop, chance = asyncio.get_running_loop(), random.Random(21)

        async def client(number: int) -> None:
            transport, asking = await loop.create_connection(_Asking, HOST, served.port)
            for answer in range(answers):
                await asyncio.sleep(chance.uniform(0, _PAUSE_S))
                text = f"[[fake: length {25 + (number + answer) % 10}]]"
                first_s = await asking.ask(_CHAT.body(text, stream_options={"include_usage": True}))
                if answer:  # the first one is the connection's
                    added_s.append(first_s - _of_the_engine(b"".join(asking.pieces)))
            transport.close()

        await asyncio.gather(*(client(number) for number in range(_CLIENTS)))
        return added_s


class _Asking(asyncio.Protocol):
    """One connection. What comes is timed and kept, and looked at when all of it is there."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._first: float | None = None
        self._whole: asyncio.Future[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    async def ask(self, body: bytes) -> float:
        """Seconds to the first piece of text."""
        head = f"POST {_CHAT.path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        self.pieces, self._first = [], None
        self._whole = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self._transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await self._whole
        assert self._first is not None, self.pieces
        return self._first - began

    def data_received(self, piece: bytes) -> None:
        if self._first is None and _CHAT.token in piece:
            self._first = time.perf_counter()
        self.pieces.append(piece)
        if piece.endswith(b"0\r\n\r\n") and not self._whole.done():
            self._whole.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._whole.done():
            self._whole.set_exception(error or EOFError())


def _of_the_engine(answer: bytes) -> float:
    """Seconds to its first token, by its own account."""
    lines = (line[6:] for line in answer.splitlines() if line.startswith(b"data: {"))
    timing = next(chunk["sightline"]["timing"] for chunk in map(json.loads, lines) if chunk.get("sightline"))
    return float(timing["queue_s"] + timing["prefill_s"])


async def _fan_out(seconds: float) -> dict[str, Any]:
    async with serving(fake(slots=STREAMS, step_s=0.002)) as served:
        process, tokens, began = psutil.Process(served.pid), 0, time.perf_counter()
        before = process.cpu_times()

        async def client() -> None:
            nonlocal tokens
            while time.perf_counter() - began < seconds:
                received = await _count(served)
                tokens += received

        await asyncio.gather(*(client() for _ in range(STREAMS)))
        wall_s, after = time.perf_counter() - began, process.cpu_times()
        cpu_s = after.user + after.system - before.user - before.system
        return {
            "tokens": tokens, "cpu_s": round(cpu_s, 2), "wall_s": round(wall_s, 2), "per_cpu_s": tokens / cpu_s,
            "per_s": tokens / wall_s,
        }  # fmt: skip


async def _count(served: Served) -> int:
    async with Connection(served.port) as connection:
        reply = await connection.ask("POST", _CHAT.path, _CHAT.body("[[fake: length 200]]"))
    assert _CHAT.ended_well(reply), reply.body[-300:]
    return reply.body.count(_CHAT.token)


if __name__ == "__main__":
    from tests.reliability.result import HEADER

    print(HEADER, asyncio.run(measure()).row(), sep="\n")
