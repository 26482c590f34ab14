"""Figure 6: ten times more requests than there is capacity for. `python -m tests.reliability.overload --seconds 60`.

Capacity is what as many clients as there are slots get, each asking again as soon as it is answered: nobody waits in
line then. The overload is open: ten times as many requests a second, each on a connection of its own, whatever becomes
of those before. A quarter of them has a picture that nobody has sent before. The model's `max_wait_s` bounds the line.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import time
from collections import Counter
from dataclasses import dataclass, field

import psutil

from tests.reliability.client import DIALECTS, Connection, Reply, once
from tests.reliability.pictures import Body, photograph, to_body
from tests.reliability.result import Result, milliseconds, quantile
from tests.reliability.serving import fake, serving

PROMISE = (
    "10 times the capacity for 60 s: TTFT of accepted requests p99 at most twice that at capacity, the rest 503 or 429 "
    "with p99 <= 50 ms and Retry-After 1..120, no 500, RSS within 5 %"
)
SLOTS = 8
MAX_WAIT_S = 0.1
_TEXT = " ".join(f"word{i}" for i in range(60))
_TOKENS = 12
_CHAT = DIALECTS["chat"]
_SETTLED = 1 / 6
"""Of the time, before memory is looked at: until then the server fills what it keeps."""


@dataclass
class Run:
    replies: list[Reply] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def answered(self) -> list[Reply]:
        return [r for r in self.replies if r.status == 200 and _CHAT.ended_well(r)]

    @property
    def refused(self) -> list[Reply]:
        return [r for r in self.replies if r.status in (503, 429)]

    @property
    def ttft_s(self) -> list[float]:
        return [r.first_s for r in self.answered if r.first_s is not None]


async def measure(*, seconds: float = 60.0, times: float = 10.0, calm_s: float = 10.0) -> Result:
    model = fake(slots=SLOTS, step_s=0.01, prefill_s_per_token=0.0004) | {"max_wait_s": MAX_WAIT_S}
    async with serving(model, images={"cache_bytes": 2**20}) as served:  # full before memory is looked at
        questions = _Questions()
        await _closed(served.port, questions, 1.0)  # caches, imports, what a token costs
        calm = await _closed(served.port, questions, calm_s)
        rate = len(calm.answered) / calm.seconds
        rss: list[int] = []
        watching = asyncio.create_task(_watch(psutil.Process(served.pid), rss, seconds))
        loaded = await _open(served.port, questions, rate * times, seconds)
        await watching
    retries = [int(r.headers.get("retry-after", 0)) for r in loaded.refused]
    others = Counter(r.status for r in loaded.replies if r not in loaded.refused and r not in loaded.answered)
    ratio = quantile(loaded.ttft_s, 0.99) / quantile(calm.ttft_s, 0.99)
    refused_p99_s = quantile([r.took_s for r in loaded.refused], 0.99)
    middle = quantile(rss, 0.5)
    swing = max(abs(value - middle) for value in rss) / middle
    told_well = all(1 <= value <= 120 for value in retries)
    measured = (
        f"{len(loaded.replies) / loaded.seconds:.0f} requests/s for {seconds:g} s ({times:g} x {rate:.0f}/s): TTFT p99 "
        f"{1000 * quantile(calm.ttft_s, 0.99):.0f} ms at capacity, {1000 * quantile(loaded.ttft_s, 0.99):.0f} ms of "
        f"{len(loaded.answered)} accepted ({ratio:.2f} x); {len(loaded.refused)} refused, p99 "
        f"{1000 * refused_p99_s:.0f} ms, Retry-After {min(retries, default=0)}..{max(retries, default=0)}; "
        f"{sum(others.values())} others; RSS +-{100 * swing:.1f} % (max_wait_s {MAX_WAIT_S:g})"
    )
    met = ratio <= 2.0 and refused_p99_s <= 0.05 and told_well and not others and swing <= 0.05 and bool(retries)
    return Result(
        6,
        PROMISE,
        measured,
        met,
        {
            "max_wait_s": MAX_WAIT_S,
            "capacity_per_s": round(rate, 1),
            "ttft_at_capacity": milliseconds(calm.ttft_s),
            "ttft_accepted": milliseconds(loaded.ttft_s),
            "refused": milliseconds([r.took_s for r in loaded.refused]),
            "served_per_s": round(len(loaded.answered) / loaded.seconds, 1),
            "retry_after": dict(sorted(Counter(retries).items())),
            "others": dict(others),
            "rss_mib": [round(value / 2**20, 1) for value in rss],
        },
    )


class _Questions:
    def __init__(self) -> None:
        self._numbers, self._chance = itertools.count(), random.Random(6)
        self._text = _CHAT.body(_TEXT, tokens=_TOKENS, ignore_eos=True)
        self._picture: Body = to_body("chat", photograph(20_000, 160, 120), tokens=_TOKENS, stream=True)

    def next(self) -> bytes:
        return self._picture.numbered(next(self._numbers)) if self._chance.random() < 0.25 else self._text


async def _closed(port: int, questions: _Questions, seconds: float) -> Run:
    run, began = Run(), time.perf_counter()

    async def client() -> None:
        async with Connection(port) as connection:
            while time.perf_counter() - began < seconds or len(run.replies) < 2 * SLOTS:
                run.replies.append(await connection.ask("POST", _CHAT.path, questions.next(), token=_CHAT.token))

    await asyncio.gather(*(client() for _ in range(SLOTS)))
    run.seconds = time.perf_counter() - began
    return run


async def _open(port: int, questions: _Questions, rate: float, seconds: float) -> Run:
    run, began = Run(), time.perf_counter()
    under_way: set[asyncio.Task[None]] = set()

    async def one() -> None:
        run.replies.append(await once(port, "POST", _CHAT.path, questions.next(), token=_CHAT.token))

    for number in itertools.count():
        if (at := began + number / rate) > began + seconds:
            break
        if (wait_s := at - time.perf_counter()) > 0:
            await asyncio.sleep(wait_s)
        task = asyncio.create_task(one())
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    run.seconds = time.perf_counter() - began
    if under_way:
        await asyncio.wait(under_way)
    return run


async def _watch(process: psutil.Process, rss: list[int], seconds: float) -> None:
    await asyncio.sleep(seconds * _SETTLED)
    for _ in range(20):
        rss.append(process.memory_info().rss)
        await asyncio.sleep(seconds * (1 - _SETTLED) / 20)


if __name__ == "__main__":
    from tests.reliability.result import HEADER

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    print(HEADER, asyncio.run(measure(seconds=parser.parse_args().seconds)).row(), sep="\n")
