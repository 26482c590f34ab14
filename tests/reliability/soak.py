"""Figure 13: what a server holds on to under a steady load. `python -m tests.reliability.soak --minutes 20`.

The load is open: a request every 1/rate seconds, whether or not those before it have been answered; each with a picture
that nobody has sent before, in all dialects, streamed or not, on new connections and kept ones. One client in twenty
leaves before its answer. The pictures have 800 x 600 pixels, so that a machine that does other things too keeps up with
decoding them: what is asked here is what stays in memory, of the gateway's process. Decoders and engines have their
own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil

from tests.reliability.client import DIALECTS, Connection
from tests.reliability.pictures import SEEING, Body, photograph, to_body
from tests.reliability.result import Result, milliseconds
from tests.reliability.serving import Served, fake, serving

PROMISE = (
    "20 requests a second with pictures of 1 MB: RSS grows by less than 1 MiB in 10 min after the warm-up, descriptors "
    "and tasks flat, at most 512 MiB"
)
_MIB = 2**20
_SAMPLE_S = 5.0
_LEAVES = 0.05
"""Share of the clients that leave before their answer."""


@dataclass
class Load:
    rate: float
    num_bytes: int
    ends: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)
    late: int = 0
    """Requests sent more than a second after their time: the client itself could not keep up."""


@dataclass
class Sample:
    at_s: float
    rss: int
    fds: int
    threads: int
    tasks: float


async def measure(*, minutes: float = 20.0, rate: float = 20.0, num_bytes: int = 1_000_000) -> Result:
    load = Load(rate, num_bytes)
    async with serving(fake(step_s=0.01)) as served:
        sending = asyncio.create_task(_send(served.port, load, minutes * 60))
        samples = await _watch(served, sending)
        await sending
    warm = [s for s in samples if s.at_s >= _warm_up_s(minutes)]
    slope, doubt = (600 / _MIB * value for value in _slope([s.at_s for s in warm], [s.rss for s in warm]))
    fds = _slope([s.at_s for s in warm], [s.fds for s in warm])[0] * 600
    tasks = _slope([s.at_s for s in warm], [s.tasks for s in warm])[0] * 600
    peak = max(s.rss for s in samples) / _MIB
    wrong = {end: n for end, n in load.ends.items() if end not in ("ok", "left")}
    measured = (
        f"{minutes:g} min at {rate:g}/s: {sum(load.ends.values())} requests, {sum(wrong.values())} failed; RSS "
        f"{slope:+.2f} (standard error {doubt:.2f}) MiB in 10 min, descriptors {fds:+.1f}, tasks {tasks:+.1f}; "
        f"peak {peak:.0f} MiB"
    )
    span = (samples[-1].at_s - warm[0].at_s if warm else 0.0) / 600
    flat = abs(fds) * span < 10 and abs(tasks) * span < 10
    details: dict[str, Any] = {
        "ends": dict(load.ends),
        "sent_late": load.late,
        "took": milliseconds(load.took_s),
        "warm_up_s": _warm_up_s(minutes),
        "samples": [[round(s.at_s), s.rss // 1024, s.fds, s.threads, int(s.tasks)] for s in samples],
    }
    return Result(13, PROMISE, measured, slope < 1.0 and flat and peak <= 512 and not wrong, details)


def _warm_up_s(minutes: float) -> float:
    """Ten minutes of an hour; of a shorter run half."""
    return min(600.0, minutes * 30)


def _slope(x: list[float], y: list[float]) -> tuple[float, float]:
    """Per second, by least squares, and its standard error: what is in memory only because a request is under way
    scatters the samples, and of few minutes a slope may say no more than that."""
    if len(x) < 4:
        return 0.0, 0.0
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    return float(slope), float(covariance[0, 0] ** 0.5)


async def _watch(served: Served, sending: asyncio.Task[None]) -> list[Sample]:
    process, samples, began = psutil.Process(served.pid), [], time.monotonic()
    while not sending.done():
        tasks = await served.metric("sightline_event_loop_tasks")
        at_s = time.monotonic() - began
        samples.append(Sample(at_s, process.memory_info().rss, process.num_fds(), process.num_threads(), tasks))
        if len(samples) % 12 == 1:
            s = samples[-1]
            print(
                f"  soak {at_s / 60:5.1f} min: {s.rss / _MIB:6.1f} MiB, {s.fds} descriptors, {s.tasks:g} tasks",
                file=sys.stderr,
                flush=True,
            )
        await asyncio.wait([sending], timeout=_SAMPLE_S)
    return samples


async def _send(port: int, load: Load, seconds: float) -> None:
    file, chance, numbers = photograph(load.num_bytes, 800, 600), random.Random(13), itertools.count()
    bodies = [(name, to_body(name, file, tokens=8, stream=s), s) for name in SEEING for s in (True, False)]
    kept: asyncio.Queue[Connection] = asyncio.Queue()
    under_way: set[asyncio.Task[None]] = set()
    began = time.monotonic()
    for due in itertools.count():
        at = began + due / load.rate
        if at > began + seconds:
            break
        await asyncio.sleep(max(0.0, at - time.monotonic()))
        load.late += time.monotonic() - at > 1.0
        name, body, stream = chance.choice(bodies)
        leaves = chance.random() < _LEAVES
        one = asyncio.create_task(
            _one(port, load, name, body, next(numbers), stream, kept, chance.uniform(0, 0.1) if leaves else None)
        )
        under_way.add(one)
        one.add_done_callback(under_way.discard)
    if under_way:
        await asyncio.wait(under_way)
    while not kept.empty():
        await kept.get_nowait().__aexit__()


async def _one(
    port: int,
    load: Load,
    name: str,
    body: Body,
    number: int,
    stream: bool,
    kept: asyncio.Queue[Connection],
    leaves_after_s: float | None,
) -> None:
    dialect = DIALECTS[name]
    try:
        if leaves_after_s is not None:
            async with Connection(port) as connection:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(leaves_after_s):
                        await connection.ask("POST", dialect.path, body.numbered(number))
            load.ends["left"] += 1
            return
        connection = kept.get_nowait() if number % 2 and not kept.empty() else await Connection(port).__aenter__()
    except OSError as error:
        load.ends[type(error).__name__] += 1
        return
    reply = await connection.ask("POST", dialect.path, body.numbered(number))
    whole = reply.status == 200 and (dialect.ended_well(reply) if stream else reply.whole)
    load.ends["ok" if whole else f"status {reply.status}"] += 1
    load.took_s.append(reply.took_s)
    if reply.whole and reply.headers.get("connection") != "close" and kept.qsize() < 32:
        kept.put_nowait(connection)
    else:
        await connection.__aexit__()


if __name__ == "__main__":
    from tests.reliability.result import HEADER, to_json

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--json", metavar="FILE")
    arguments = parser.parse_args()
    result = asyncio.run(measure(minutes=arguments.minutes, rate=arguments.rate))
    if arguments.json:
        with open(arguments.json, "w") as out:
            out.write(to_json([result]))
    print(HEADER, result.row(), sep="\n")
