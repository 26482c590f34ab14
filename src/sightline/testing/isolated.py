"""What an engine does in a supervised process of its own: a function per clause. Needs the package `psutil`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import aclosing

import msgspec
import psutil  # type: ignore[import-untyped, unused-ignore]

from sightline.engines import Engine, Supervised
from sightline.engines.worker import WorkerEngine
from sightline.errors import EngineFailed, EngineUnavailable
from sightline.testing.subject import (
    Subject,
    answer,
    ask,
    first_event,
    isolated_clause,
    long,
    patience,
    picture,
    served,
)
from sightline.types import EngineRequest, Finish

ORPHAN_LIVES_S = 1.0


def pid_of(engine: Engine) -> int:
    assert isinstance(engine, WorkerEngine)
    assert engine.pid is not None
    return engine.pid


def kill(engine: Engine) -> int:
    pid = pid_of(engine)
    os.kill(pid, signal.SIGKILL)
    return pid


@isolated_clause
async def killed_at_any_moment_it_answers_again(subject: Subject, engine: Engine) -> None:
    chance = random.Random(20)
    kinds: Counter[str] = Counter()
    slowest = 0.0
    async with subject.running() as own:
        assert isinstance(own, Supervised)
        expected = await served(own, long(ask(picture(own.info, 100, 100), "and now?"), 5))
        for number in range(subject.kills):
            moment = ("idle", "prefill", "decode", "load")[number % 4]
            under_way: list[asyncio.Task[str]] = []
            if moment in ("prefill", "decode"):
                begun = asyncio.Event()
                under_way = [
                    asyncio.create_task(fate(own, long(ask(picture(own.info, 900, 900), f"{i}"), None), begun))
                    for i in range(4)
                ]
                if moment == "decode":
                    await asyncio.wait_for(begun.wait(), 60.0)
                await asyncio.sleep(chance.uniform(0.0, 0.01))
            victim = kill(own)
            if moment == "load":
                async with asyncio.timeout(30.0):
                    while not isinstance(own, WorkerEngine) or own.pid in (None, victim):  # noqa: ASYNC110
                        await asyncio.sleep(0.001)
                await asyncio.sleep(chance.uniform(0.0, 0.2))
                kill(own)
            died = time.perf_counter()
            again = await served(own, long(ask(picture(own.info, 100, 100), "and now?"), 5))
            slowest = max(slowest, time.perf_counter() - died)
            assert again == expected
            kinds.update(await asyncio.gather(*under_way))
        assert own.state == "ready"
        assert own.restarts >= subject.kills
    assert slowest < subject.back_within_s * patience(), f"{slowest:.2f} s"
    assert set(kinds) <= {"finished", "unavailable before it began", "failed on the way"}, kinds
    assert kinds["failed on the way"], "no kill met a stream under way: this proves nothing"
    print(  # noqa: T201
        f"\n{subject.name}: {subject.kills} kills, back within {slowest:.2f} s, requests under way: {dict(kinds)}"
    )


async def fate(engine: Engine, request: EngineRequest, begun: asyncio.Event) -> str:
    taken = 0
    try:
        async for _ in engine.generate(request):
            taken += 1
            begun.set()
    except EngineUnavailable as error:
        return f"unavailable {'on the way' if taken else 'before it began'}" if error.retryable else "not retryable"
    except EngineFailed:
        return f"failed {'on the way' if taken else 'before it began'}"
    return "finished"


_PARENT = """
import asyncio, json, sys
import msgspec
from sightline.config import ModelConfig
from sightline.engines.worker import WorkerEngine
from sightline.testing import ask, collect, long

async def main():
    engine = WorkerEngine(msgspec.json.decode(sys.argv[1], type=ModelConfig))
    start = asyncio.create_task(engine.start())
    while engine.pid is None:
        await asyncio.sleep(0.001)
    if sys.argv[2] != "load":
        await start
    tasks = [asyncio.create_task(collect(engine, long(ask("work"), None))) for _ in range(4) if sys.argv[2] == "decode"]
    await asyncio.sleep(0.05)
    print(engine.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@isolated_clause
async def it_dies_with_its_parent(subject: Subject, engine: Engine) -> None:
    for moment in ("load", "idle", "decode"):
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _PARENT, msgspec.json.encode(subject.config).decode(), moment,
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert parent.stdout is not None
        try:
            child = psutil.Process(int(await asyncio.wait_for(parent.stdout.readline(), 60.0)))
            assert child.is_running()
        finally:
            with contextlib.suppress(ProcessLookupError):
                parent.kill()
            await parent.wait()
        deadline = time.monotonic() + ORPHAN_LIVES_S * patience()
        while lives(child):
            assert time.monotonic() < deadline, f"killed at {moment}, the parent leaves its child behind"
            await asyncio.sleep(0.01)


@isolated_clause
async def it_leaves_signals_to_its_parent(subject: Subject, engine: Engine) -> None:
    pid = pid_of(engine)
    async with aclosing(engine.generate(long(ask("Tell me more."), 30))) as events:
        await anext(events)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        rest = [event async for event in events]
    assert isinstance(rest[-1], Finish)
    assert pid_of(engine) == pid


@isolated_clause
async def pictures_leave_nothing_behind(subject: Subject, engine: Engine) -> None:
    child = psutil.Process(pid_of(engine))

    async def run(count: int) -> None:
        images = [picture(engine.info, 100 + i, 120, (i % 256, 0, 0)) for i in range(count)]
        for begin in range(0, count, 8):
            batch = [long(ask(image, image, "?"), 2) for image in images[begin : begin + 8]]
            left = first_event(engine, long(ask(images[begin], "?"), None))
            await asyncio.gather(left, *(answer(engine, request) for request in batch))

    await run(16)
    before = await resting_fds(child)
    await run(64)
    after = await resting_fds(child)
    assert after["parent"] <= before["parent"] + 2
    assert after["child"] <= before["child"] + 2
    assert pid_of(engine) == child.pid
    assert after["mapped"] <= 4, "pixels stay mapped"


async def resting_fds(child: psutil.Process) -> dict[str, int]:
    """Descriptors, and pictures mapped in the child, at the quietest of some moments: what ends is put away late."""
    moments = []
    for _ in range(20):
        mapped = sum("sightline-pictures" in mapping.path for mapping in child.memory_maps())
        moments.append({"parent": psutil.Process().num_fds(), "child": child.num_fds(), "mapped": mapped})
        await asyncio.sleep(0.01)
    return {what: min(moment[what] for moment in moments) for what in moments[0]}


def lives(process: psutil.Process) -> bool:
    """A zombie is dead: an orphan stays one until process 1 finds the time."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
