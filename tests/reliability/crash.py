"""Figure 8: the engine's process is killed under its requests. `python -m tests.reliability.crash`.

Three things are tried: an engine with sixteen requests, again and again; the embedded model, whose start takes as long
as a model's does; and an engine that is killed each time it is back, until it is left alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import time
from collections import Counter
from typing import Any

import psutil

from tests.reliability.client import DIALECTS, Connection, Dialect, Reply, once
from tests.reliability.result import Result, quantile
from tests.reliability.serving import Served, fake, serving, until

PROMISE = (
    "kill -9 of the engine under 16 requests: the gateway stays up, requests of which nothing was sent are run again "
    "and succeed, the others end with an error event; the engine is back within 2 s (fake) or 1.2 cold starts (peek); "
    "at most 5 restarts in 60 s, then it is left alone"
)
_CHAT = DIALECTS["chat"]
_LONG = " ".join(["word"] * 500)
_READY = re.compile(r"model m is ready after ([0-9.]+) s")


async def measure(*, kills: int = 10, real: bool = True, loop: bool = True) -> Result:
    fakes = await _under_requests(kills)
    peek = await _peek() if real else None
    loops = await _crash_loop() if loop else None
    measured = (
        f"{kills} kills: {fakes['again']} of {fakes['unsent']} requests of which nothing was sent succeeded, "
        f"{fakes['told']} of {fakes['begun']} others ended with an error event; {fakes['health']} failures of /health; "
        f"back after p50 {fakes['back_p50_s']:.2f} s, at most {fakes['back_max_s']:.2f} s"
    )
    met = (
        fakes["again"] == fakes["unsent"] > 0
        and fakes["told"] == fakes["begun"] > 0
        and not fakes["health"]
        and fakes["back_max_s"] <= 2.0
    )
    if peek is not None:
        measured += f"; peek: cold start {peek['cold_s']:.2f} s, back after {peek['back_s']:.2f} s"
        met = met and peek["back_s"] <= 1.2 * peek["cold_s"]
    if loops is not None:
        measured += (
            f"; killed whenever it is back: {loops['restarts']:g} restarts in {loops['took_s']:.0f} s (after "
            f"{', '.join(f'{s:.1f}' for s in loops['pauses_s'])} s), then {loops['status']} within "
            f"{1000 * loops['refused_s']:.0f} ms"
        )
        met = met and loops["restarts"] <= 5 and loops["status"] == 503 and loops["took_s"] < 60
    return Result(8, PROMISE, measured, met, {"fake": fakes, "peek": peek, "loop": loops})


# --- under requests --------------------------------------------------------------------------------------------------


async def _under_requests(kills: int) -> dict[str, Any]:
    counts: Counter[str] = Counter()
    back_s = []
    async with serving(fake(slots=16, step_s=0.02, prefill_s_per_token=0.003, prefill_chunk=40)) as served:
        watching = asyncio.create_task(_watch_health(served, counts))
        for _ in range(kills):
            back_s.append(await _kill_once(served, counts))
        watching.cancel()
    return {
        **{name: counts[name] for name in ("unsent", "again", "begun", "told", "health")},
        "ends": {name: n for name, n in counts.items() if name.startswith("end")},
        "back_p50_s": quantile(back_s, 0.5),
        "back_max_s": max(back_s),
    }


async def _kill_once(served: Served, counts: Counter[str]) -> float:
    """Streams in decode in every dialect, whole answers in decode, and streams in prefill; then the kill."""
    decoding = [_Asked(served.port, d, d.body("[[fake: length 400]]", tokens=400)) for d in DIALECTS.values()]
    whole = [
        _Asked(served.port, d, d.body("[[fake: length 120]]", tokens=120, stream=False), stream=False)
        for d in DIALECTS.values()
    ]
    await asyncio.gather(*(asked.begin() for asked in decoding))
    for asked in whole:
        asked.start()
    prefill = [_Asked(served.port, _CHAT, _CHAT.body(_LONG, tokens=4)) for _ in range(2)]
    for asked in prefill:
        asked.start()

    async def all_running() -> bool:
        return await served.metric("sightline_requests_running") >= 16

    await until(all_running, 30.0)
    assert not any(asked.reply.status for asked in prefill), "still in prefill"
    engine = served.engine()
    assert engine is not None
    killed = time.perf_counter()
    engine.kill()

    async def back() -> bool:
        successor = served.engine()
        ready = successor is not None and successor.pid != engine.pid
        return ready and (await once(served.port, "GET", "/ready")).status == 200

    await until(back, 30.0)
    back_s = time.perf_counter() - killed
    for asked in (*decoding, *whole, *prefill):
        await asked.task
        if asked.stream and asked.sent_before_kill:
            counts["begun"] += 1
            counts["told"] += asked.dialect.ended_badly(asked.reply)
        else:
            counts["unsent"] += 1
            well = asked.dialect.ended_well(asked.reply) if asked.stream else asked.reply.whole
            counts["again"] += asked.reply.status == 200 and well
        counts[f"end {asked.reply.status}"] += 1
    return back_s


class _Asked:
    """A request under way."""

    def __init__(self, port: int, dialect: Dialect, body: bytes, *, stream: bool = True) -> None:
        self.dialect = dialect
        self.stream = stream
        self.reply = Reply()
        self.task: asyncio.Task[None]
        self.sent_before_kill = False
        self._port = port
        self._body = body
        self._begun = asyncio.Event()

    def start(self) -> None:
        self.task = asyncio.create_task(self._run())

    async def begin(self) -> None:
        """Returns when there is some text."""
        self.start()
        await asyncio.wait_for(self._begun.wait(), 20.0)
        self.sent_before_kill = True

    async def _run(self) -> None:
        async with Connection(self._port) as connection:
            with contextlib.suppress(OSError, EOFError):
                await connection.send("POST", self.dialect.path, self._body)
                self.reply.status, self.reply.headers = await connection.head()
                while data := await connection.piece(self.reply.headers):
                    self.reply.body += data
                    if self.dialect.token in data:
                        self._begun.set()
                    if "content-length" in self.reply.headers:
                        break
                self.reply.whole = True


async def _watch_health(served: Served, counts: Counter[str]) -> None:
    while True:
        counts["health"] += (await once(served.port, "GET", "/health")).status != 200
        await asyncio.sleep(0.05)


# --- a model that takes its time -------------------------------------------------------------------------------------


async def _peek() -> dict[str, Any]:
    body = _CHAT.body("hi", tokens=2)
    async with serving({"name": "m", "engine": "openvino"}, level="info") as served:
        found = _READY.search(served.log.read_text())
        assert found is not None, "the log tells when the model is ready"
        assert (await once(served.port, "POST", _CHAT.path, body)).status == 200
        engine = served.engine()
        assert engine is not None
        killed = time.perf_counter()
        engine.kill()
        reply = await once(served.port, "POST", _CHAT.path, body)
        assert reply.status == 200, reply.body
        return {"cold_s": float(found[1]), "back_s": time.perf_counter() - killed}


# --- a crash loop ----------------------------------------------------------------------------------------------------


async def _crash_loop() -> dict[str, Any]:
    async with serving(fake()) as served:
        began = time.perf_counter()
        pauses_s: list[float] = []
        while (engine := await _next_engine(served, pauses_s)) is not None:
            engine.kill()
            await asyncio.to_thread(engine.wait)
        took_s = time.perf_counter() - began
        reply = await once(served.port, "POST", _CHAT.path, _CHAT.body("hi"))
        health = await once(served.port, "GET", "/health")
        return {
            "restarts": await served.metric("sightline_engine_restarts"),
            "took_s": took_s,
            "pauses_s": [round(s, 2) for s in pauses_s],
            "status": reply.status,
            "refused_s": reply.took_s,
            "health": health.status,
        }


async def _next_engine(served: Served, pauses_s: list[float]) -> psutil.Process | None:
    """The engine when it is ready; None when no other is started."""
    began = time.perf_counter()
    while time.perf_counter() - began < 15.0:
        if (await once(served.port, "GET", "/ready")).status == 200 and (engine := served.engine()) is not None:
            pauses_s.append(time.perf_counter() - began)
            return engine
        if await served.metric("sightline_model_state", state="failed"):
            return None
        await asyncio.sleep(0.02)
    return None


if __name__ == "__main__":
    from tests.reliability.result import HEADER

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    result = asyncio.run(measure(kills=parser.parse_args().kills))
    print(HEADER, result.row(), result.details, sep="\n")
