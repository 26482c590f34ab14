"""Figure 4: a server that is told to stop finishes what it has begun. `python -m tests.reliability.drain`."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import psutil

from tests.reliability.client import DIALECTS, Connection, Reply, once
from tests.reliability.result import Result
from tests.reliability.serving import Served, fake, serving, until

PROMISE = (
    "SIGTERM with 20 streams: 20 complete, none truncated, /ready is 503 within 100 ms, new requests get 503 with "
    "Retry-After, exit at most 1 s after the longest, hard stop at 30 s, no process left"
)
_NAMES = ("chat", "completions", "responses", "messages", "ollama chat", "ollama generate", "ovms")


async def measure(*, streams: int = 20, answer_s: float = 6.0, drain_s: float = 30.0) -> Result:
    """`answer_s`: how long the longest answer goes on. `drain_s`: what the hard stop is tried with."""
    ended = await _ends_what_it_has(streams, answer_s)
    cut = await _cuts_what_takes_longer(drain_s)
    twice = await _ends_at_once()
    measured = (
        f"{ended['complete']} of {streams} complete, {ended['truncated']} truncated; /ready 503 after "
        f"{ended['unready_ms']:.0f} ms; {ended['refused']} of {ended['tried']} new requests 503 with Retry-After; exit "
        f"{ended['exit_after_s']:.2f} s after the longest, status {ended['status']}; hard stop after "
        f"{cut['exit_s']:.1f} s of {drain_s:g} with {cut['told']} of {cut['streams']} told why; second signal: "
        f"{twice['exit_s']:.1f} s; {ended['left'] + cut['left'] + twice['left']} processes left"
    )
    met = (
        ended["complete"] == streams
        and ended["unready_ms"] <= 100
        and ended["refused"] == ended["tried"] > 0
        and ended["exit_after_s"] <= 1.0
        and ended["status"] == cut["status"] == 0
        and cut["told"] == cut["streams"]
        and drain_s - 2 <= cut["exit_s"] <= drain_s + 1
        and twice["exit_s"] <= 2.0
        and not ended["left"] + cut["left"] + twice["left"]
    )
    return Result(4, PROMISE, measured, met, {"drained": ended, "cut_off": cut, "twice": twice})


async def _stream(port: int, number: int, text: str) -> tuple[Reply, bool]:
    dialect = DIALECTS[_NAMES[number % len(_NAMES)]]
    reply = await once(port, "POST", dialect.path, dialect.body(text), token=dialect.token)
    return reply, dialect.ended_well(reply)


async def _all_running(served: Served, count: int) -> None:
    async def running() -> bool:
        return await served.metric("sightline_requests_running") >= count

    await until(running, 30.0)


async def _ends_what_it_has(streams: int, answer_s: float) -> dict[str, Any]:
    tokens = int(answer_s / 0.02)
    async with serving(fake(step_s=0.02)) as served, Connection(served.port) as kept:
        await kept.ask("GET", "/health")
        texts = [f"[[fake: length {tokens * (streams + i) // (2 * streams)}]]" for i in range(streams)]
        asked = [asyncio.create_task(_stream(served.port, i, text)) for i, text in enumerate(texts)]
        await _all_running(served, streams)
        children = served.children()
        told = time.perf_counter()
        served.process.send_signal(signal.SIGTERM)
        unready_s = await until(lambda: _is_unready(served.port), 5.0, every_s=0.002)
        on_kept = await kept.ask("POST", DIALECTS["chat"].path, DIALECTS["chat"].body("hi"))
        tried = [on_kept]
        while not all(task.done() for task in asked):
            for dialect in DIALECTS.values():
                if not all(task.done() for task in asked):
                    tried.append(await once(served.port, "POST", dialect.path, dialect.body("hi")))
            await asyncio.sleep(0.2)
        longest = time.perf_counter()
        status = await asyncio.wait_for(served.process.wait(), 60)
        exited = time.perf_counter()
        replies = [task.result() for task in asked]
        answered = [reply for reply in tried if reply.status]  # none: it was gone between two looks
        refused = [r for r in answered if r.status in (503, 529) and 1 <= int(r.headers.get("retry-after", 0)) <= 120]
        return {
            "complete": sum(whole for _, whole in replies),
            "truncated": sum(not reply.whole for reply, _ in replies),
            "unready_ms": 1000 * unready_s,
            "tried": len(answered),
            "refused": len(refused),
            "kept_connection_is_closed": on_kept.headers.get("connection") == "close",
            "drained_s": round(exited - told, 3),
            "exit_after_s": exited - longest,
            "status": status,
            "left": await _left(children),
        }


async def _is_unready(port: int) -> bool:
    return (await once(port, "GET", "/ready")).status == 503


async def _cuts_what_takes_longer(drain_s: float, streams: int = 7) -> dict[str, Any]:
    async with serving(fake(step_s=0.02), drain_s=drain_s) as served:
        asked = [asyncio.create_task(_stream(served.port, i, "[[fake: slow 5]]")) for i in range(streams)]
        await _all_running(served, streams)
        children = served.children()
        began = time.perf_counter()
        served.process.send_signal(signal.SIGTERM)
        status = await asyncio.wait_for(served.process.wait(), drain_s + 30)
        exit_s = time.perf_counter() - began
        replies = [reply for reply, _ in await asyncio.gather(*asked)]
        told = 0
        for number, reply in enumerate(replies):
            dialect = DIALECTS[_NAMES[number % len(_NAMES)]]
            told += dialect.ended_badly(reply)
        return {
            "streams": streams, "told": told, "status": status, "exit_s": exit_s, "left": await _left(children),
        }  # fmt: skip


async def _ends_at_once() -> dict[str, Any]:
    async with serving(fake(step_s=0.02)) as served:
        asked = asyncio.create_task(_stream(served.port, 0, "[[fake: slow 60]]"))
        await _all_running(served, 1)
        children = served.children()
        served.process.send_signal(signal.SIGINT)
        await until(lambda: _is_unready(served.port), 5.0)
        began = time.perf_counter()
        served.process.send_signal(signal.SIGINT)
        status = await asyncio.wait_for(served.process.wait(), 60)
        exit_s = time.perf_counter() - began
        await asked
        return {"status": status, "exit_s": exit_s, "left": await _left(children)}


async def _left(children: list[psutil.Process]) -> int:
    """How many live two seconds later."""
    _, alive = await asyncio.to_thread(psutil.wait_procs, children, 2.0)
    return sum(child.status() != psutil.STATUS_ZOMBIE for child in alive if child.is_running())


if __name__ == "__main__":
    from tests.reliability.result import HEADER

    print(HEADER, asyncio.run(measure()).row(), sep="\n")
