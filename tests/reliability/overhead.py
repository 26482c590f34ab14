"""Figure 21: what the gateway adds to its engine. `python -m tests.reliability.overhead`.

The engine tells with each answer how long it took to its first token itself, in line and in prefill; what the client
waited beyond that is added by everything else: HTTP, reading, admission, the way to the engine's process and back. Then
streams run as fast as they can, and the tokens are divided by the CPU time of the gateway's process alone.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import psutil

from tests.reliability.client import DIALECTS, Connection, Reply
from tests.reliability.result import Result, milliseconds, quantile
from tests.reliability.serving import Served, fake, serving

PROMISE = (
    "at 50 streams the gateway adds at most 3 ms (p50) and 10 ms (p99) to the time to first token; one core passes on "
    "2,000 tokens a second"
)
STREAMS = 50
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
    async with serving(fake(slots=STREAMS, step_s=0.02)) as served:
        added_s: list[float] = []

        async def client(number: int) -> None:
            async with Connection(served.port) as connection:
                await asyncio.sleep(number * 0.02)  # they come one after the other, as clients do
                for answer in range(answers):
                    text = f"[[fake: length {25 + (number + answer) % 10}]]"
                    body = _CHAT.body(text, stream_options={"include_usage": True})
                    reply = await connection.ask("POST", _CHAT.path, body, token=_CHAT.token)
                    if answer:  # the first one is the connection's
                        added_s.append(_beyond_the_engine(reply))

        await asyncio.gather(*(client(number) for number in range(STREAMS)))
        return added_s


def _beyond_the_engine(reply: Reply) -> float:
    """Seconds to the first token that the engine does not account for."""
    assert reply.first_s is not None, reply.body
    lines = (line[6:] for line in reply.body.splitlines() if line.startswith(b"data: {"))
    timing = next(chunk["sightline"]["timing"] for chunk in map(json.loads, lines) if chunk.get("sightline"))
    return float(reply.first_s - timing["queue_s"] - timing["prefill_s"])


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
