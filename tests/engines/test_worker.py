"""The supervised child process, with the fake engine in it: how it starts, dies, comes back, hangs and is closed.

What holds for every isolated engine (kills at random moments, the parent's death, leaks) is in `conformance.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import numpy as np
import psutil
import pytest

from sightline.config import ModelConfig
from sightline.engines import Supervised
from sightline.engines.fake import CRASH_STATUS
from sightline.engines.worker import WorkerEngine, frames
from sightline.engines.worker.child import Child
from sightline.engines.worker.restarts import RestartPolicy
from sightline.errors import EngineFailed, EngineUnavailable, InvalidRequest
from sightline.types import EngineRequest, Finish, Image, Message, SamplingParams, Text, TextDelta

pytestmark = pytest.mark.anyio


def config(**options: Any) -> ModelConfig:
    return ModelConfig(name="m", engine="fake", options=options, start_timeout_s=20.0)


def ask(*content: str | Image, **sampling: Any) -> EngineRequest:
    parts = tuple(Text(part) if isinstance(part, str) else part for part in content)
    return EngineRequest("r", "m", (Message[Image]("user", parts),), SamplingParams(**sampling))


async def answer(engine: WorkerEngine, request: EngineRequest) -> str:
    return "".join([e.text async for e in engine.generate(request) if isinstance(e, TextDelta)])


@asynccontextmanager
async def running(model: ModelConfig | None = None, **kwargs: Any) -> AsyncIterator[WorkerEngine]:
    engine = WorkerEngine(model or config(), **kwargs)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


def kill(engine: WorkerEngine, how: signal.Signals = signal.SIGKILL) -> int:
    assert engine.pid is not None
    pid = engine.pid
    os.kill(pid, how)
    return pid


async def kill_next(engine: WorkerEngine) -> None:
    """Kills the child, without having let it serve, and waits until that is known."""
    await until(lambda: engine.state == "ready")
    pid = kill(engine)
    await until(lambda: engine.pid != pid)


# --- life ------------------------------------------------------------------------------------------------------------


async def test_from_start_to_close() -> None:
    engine = WorkerEngine(config(startup_s=0.2))
    assert isinstance(engine, Supervised)
    assert (engine.state, engine.restarts, engine.pid) == ("unloaded", 0, None)
    with pytest.raises(EngineUnavailable):
        _ = engine.info
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.pid is not None)
    assert engine.state == "loading"
    await starting
    assert engine.state == "ready"
    assert engine.info.engine == "fake"
    child = psutil.Process(engine.pid)
    assert "sightline.engines.worker" in child.cmdline()
    await engine.close()
    assert (engine.state, engine.restarts, engine.pid) == ("failed", 0, None)
    assert not child.is_running()
    with pytest.raises(EngineUnavailable):
        await answer(engine, ask("hi"))


async def test_a_request_made_while_it_loads_waits_for_it() -> None:
    engine = WorkerEngine(config(startup_s=0.3))
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.state == "loading")
    try:
        assert (await answer(engine, ask("early"))).endswith("early")
    finally:
        await starting
        await engine.close()


async def test_the_engines_own_reason_for_not_starting_is_given(caplog: pytest.LogCaptureFixture) -> None:
    engine = WorkerEngine(config(slot=3))
    with pytest.raises(EngineUnavailable, match="unknown field `slot`"):
        await engine.start()
    assert engine.state == "failed"
    assert "the engine did not start: " in caplog.text
    assert "SIGKILL" not in caplog.text, "that was we"
    with pytest.raises(EngineUnavailable):
        await answer(engine, ask("hi"))
    await engine.close()


async def test_a_crash_while_loading_is_told_by_its_status_and_the_log_has_the_rest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = WorkerEngine(config(startup="crash"))
    with pytest.raises(EngineUnavailable, match=f"exit status {CRASH_STATUS}") as caught:
        await engine.start()
    assert "\n" not in str(caught.value)
    assert f"has ended: exit status {CRASH_STATUS}" in caplog.text
    assert engine.restarts == 1  # one more try: a process can also be killed by somebody


async def test_killed_in_its_first_load_it_is_started_again() -> None:
    engine = WorkerEngine(config(startup_s=0.2))
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.pid is not None)
    kill(engine)
    await starting
    assert engine.restarts == 1
    assert (await answer(engine, ask("hi"))).endswith("hi")
    await engine.close()


async def test_loading_takes_no_longer_than_it_may() -> None:
    engine = WorkerEngine(ModelConfig(name="m", engine="fake", options={"startup_s": 60}, start_timeout_s=0.5))
    began = time.perf_counter()
    with pytest.raises(EngineUnavailable, match=r"within 0\.5 s"):
        await engine.start()
    assert time.perf_counter() - began < 5.0


async def test_closed_while_it_loads() -> None:
    engine = WorkerEngine(config(startup_s=60))
    starting = asyncio.create_task(engine.start())
    await until(lambda: engine.pid is not None)
    child = psutil.Process(engine.pid)
    began = time.perf_counter()
    await engine.close()
    assert time.perf_counter() - began < 2.0
    with pytest.raises(EngineUnavailable):
        await starting
    assert not child.is_running()


async def test_a_child_that_does_not_close_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.engines.worker.child.CLOSE_GRACE_S", 0.2)
    async with running() as engine:
        child = psutil.Process(kill(engine, signal.SIGSTOP))
    assert not child.is_running()


# --- deaths ----------------------------------------------------------------------------------------------------------


async def test_what_a_death_means_to_each_request() -> None:
    async with running(config(slots=2)) as engine:
        begun = asyncio.Event()

        async def read() -> list[str]:
            said = []
            async with aclosing(engine.generate(ask("[[fake: slow 0.01]] [[fake: length 500]]"))) as events:
                async for event in events:
                    said.append(type(event).__name__)
                    begun.set()
            return said

        first = asyncio.create_task(read())
        await begun.wait()
        others = [asyncio.create_task(answer(engine, ask("[[fake: hang]]"))) for _ in range(2)]
        counted = asyncio.create_task(engine.count_tokens(ask("word " * 1000)))
        await asyncio.sleep(0.02)
        kill(engine)
        with pytest.raises(EngineFailed):
            await first
        for task in others:
            with pytest.raises(EngineUnavailable) as caught:
                await task
            assert caught.value.retryable
        await asyncio.wait([counted])
        assert counted.exception() is None or isinstance(counted.exception(), EngineUnavailable)
        assert (await answer(engine, ask("again"))).endswith("again")
        assert (engine.state, engine.restarts) == ("ready", 1)


async def test_dead_between_its_word_and_our_hearing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    receive = Child.receive
    readied: list[Child] = []

    def receive_and_die(child: Child, frame: frames.ToParent) -> None:
        receive(child, frame)
        if isinstance(frame, frames.Ready):
            readied.append(child)
            if len(readied) == 1:
                child.lose()

    monkeypatch.setattr(Child, "receive", receive_and_die)
    async with running() as engine:
        assert (await answer(engine, ask("hi"))).endswith("hi")
        assert (len(readied), engine.restarts) == (2, 1)


async def test_a_crash_at_token_k_delivers_k_tokens() -> None:
    async with running() as engine:
        said: list[str] = []
        with pytest.raises(EngineFailed):
            async for event in engine.generate(ask("[[fake: crash 3]] [[fake: say one two three four]]")):
                assert isinstance(event, TextDelta)
                said.append(event.text)
        assert said == ["one", " two", " three"]


async def test_an_engine_that_stops_by_itself_gets_a_new_process() -> None:
    async with running() as engine:
        for restarts in (1, 2):
            with pytest.raises((EngineFailed, EngineUnavailable)):
                await answer(engine, ask("[[fake: break]]"))
            await until(lambda: engine.restarts == restarts)  # noqa: B023 - it is called in this turn only
            assert (await answer(engine, ask("are you there?"))).endswith("are you there?")


async def test_an_answer_that_was_whole_when_the_child_died_is_whole() -> None:
    async with running() as engine:
        async with aclosing(engine.generate(ask("[[fake: say one two three]]"))) as events:
            assert isinstance(await anext(events), TextDelta)
            await asyncio.sleep(0.1)  # the rest has arrived
            pid = kill(engine)
            await until(lambda: engine.pid != pid)
            rest = [event async for event in events]
        assert isinstance(rest[-1], Finish)
        assert len(rest) == 3


async def test_the_words_of_a_dying_child_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running() as engine:
        pid = kill(engine, signal.SIGSEGV)
        await until(lambda: engine.state == "ready" and engine.pid != pid)
    assert "model m: Fatal Python error: Segmentation fault" in caplog.text
    (report,) = [r for r in caplog.records if "has ended" in r.message]
    assert report.levelno == logging.ERROR
    assert "SIGSEGV" in report.message
    assert "Segmentation fault" in report.message


async def test_a_crash_loop_is_given_up_at_once_and_probed_later() -> None:
    policy = RestartPolicy(first_delay_s=0.01, max_deaths=2, probe_s=1.0)
    async with running(restarts=policy) as engine:
        for _ in range(3):
            await kill_next(engine)
        await until(lambda: engine.state == "failed")
        began = time.perf_counter()
        for _ in range(10):
            with pytest.raises(EngineUnavailable):
                await answer(engine, ask("hi"))
        assert time.perf_counter() - began < 0.5
        await until(lambda: engine.state == "ready")
        assert (await answer(engine, ask("hi"))).endswith("hi")
        await kill_next(engine)  # it has served: back at once
        assert engine.state == "loading"
        assert (await answer(engine, ask("hi"))).endswith("hi")


async def test_waiting_for_a_restart_has_an_end() -> None:
    model = ModelConfig(name="m", engine="fake", start_timeout_s=3.0)
    async with running(model, restarts=RestartPolicy(first_delay_s=60.0)) as engine:
        for _ in range(2):
            await kill_next(engine)
        cancelled = asyncio.create_task(answer(engine, ask("never mind")))
        waiting = asyncio.create_task(answer(engine, ask("hi")))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        await asyncio.wait([cancelled], timeout=0.5)
        assert cancelled.cancelled()
        began = time.perf_counter()
        with pytest.raises(EngineUnavailable):
            await waiting
        assert time.perf_counter() - began < 10.0
        assert engine.state == "loading"


async def test_a_child_that_does_not_answer_is_killed() -> None:
    async with running(ping_timeout_s=1.0) as engine:
        task = asyncio.create_task(answer(engine, ask("[[fake: hang]]")))
        await asyncio.sleep(1.5)  # pings are answered whatever the engine does
        assert engine.restarts == 0
        kill(engine, signal.SIGSTOP)
        with pytest.raises(EngineUnavailable):
            await asyncio.wait_for(task, 15.0)
        assert (await answer(engine, ask("hi"))).endswith("hi")
        assert engine.restarts == 1


# --- what flows ------------------------------------------------------------------------------------------------------


async def test_a_slow_reader_holds_back_its_own_stream_only() -> None:
    async with running() as engine:
        count = 4 * frames.WINDOW + 7
        async with aclosing(engine.generate(ask(f"[[fake: length {count}]]"))) as events:
            await anext(events)
            await asyncio.sleep(0.2)
            (stream,) = child_of(engine)._streams.values()
            assert frames.WINDOW // 2 <= len(stream._items) <= frames.WINDOW
            assert (await answer(engine, ask("another"))).endswith("another")
            rest = [event async for event in events]
        assert len(rest) == count  # the other deltas, and the finish
        assert isinstance(rest[-1], Finish)
        assert rest[-1].usage.completion_tokens == count


def child_of(engine: WorkerEngine) -> Any:
    return engine._child


async def test_cancelling_stops_the_engine_not_only_the_reader() -> None:
    async with running(config(slots=1, step_s=0.01)) as engine:
        for _ in range(3):
            async with aclosing(engine.generate(ask("[[fake: length 1000]]"))) as events:
                await anext(events)
        began = time.perf_counter()
        assert (await answer(engine, ask("[[fake: say next]]"))) == "next"
        assert time.perf_counter() - began < 1.0  # 3 x 1000 steps of 10 ms would be 30 s
        assert not child_of(engine)._streams


async def test_pixels_are_shared_while_a_request_runs_and_not_after() -> None:
    pixels = np.full((112, 112, 3), (0, 0, 255), np.uint8)
    image = Image(pixels, "sha256:0", 112, 112, "image/png", 9)
    async with running() as engine:
        child = psutil.Process(engine.pid)

        def mapped() -> int:
            return sum("sightline-pictures" in m.path for m in child.memory_maps())

        task = asyncio.create_task(answer(engine, ask(image, "[[fake: hang]]")))
        await until(lambda: mapped() == 1)
        task.cancel()
        await until(lambda: mapped() == 0)
        assert "mostly blue" in await answer(engine, ask(image))


async def test_what_cannot_be_passed_on_is_the_requests_fault() -> None:
    async with running() as engine:
        for request in (ask("\ud800"), ask("hi", seed=2**70)):
            with pytest.raises(InvalidRequest):
                await answer(engine, request)
        assert engine.restarts == 0


async def test_without_memory_for_pictures_a_request_can_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> int:
        raise OSError("no space")

    monkeypatch.setattr("sightline.engines.worker.parcel.share", no_memory)
    image = Image(np.zeros((112, 112, 3), np.uint8), "sha256:0", 112, 112, "image/png", 9)
    async with running() as engine:
        with pytest.raises(EngineUnavailable, match="memory"):
            await answer(engine, ask(image))
        assert (await answer(engine, ask("text alone"))).endswith("text alone")


async def test_whatever_happens_every_request_ends_and_nothing_is_left() -> None:
    chance = random.Random(3)
    image = Image(np.zeros((448, 448, 3), np.uint8), "sha256:0", 448, 448, "image/png", 9)
    async with running(config(step_s=0.001)) as engine:

        async def one(number: int) -> str:
            await asyncio.sleep(chance.uniform(0, 1.5))
            length, leaves = chance.randint(1, 200), chance.random() < 0.3
            content = [image] * chance.choice([0, 0, 1, 3])
            tokens = 0
            try:
                async with aclosing(engine.generate(ask(*content, f"[[fake: length {length}]] {number}"))) as events:
                    async for event in events:
                        if isinstance(event, Finish):
                            assert event.usage.completion_tokens == tokens == length
                            return "finished"
                        tokens += event.num_tokens
                        if leaves and tokens > length // 2:
                            return "left"
            except EngineUnavailable:
                assert tokens == 0
                return "unavailable"
            except EngineFailed:
                assert tokens > 0
                return "failed"
            return "no end"

        async def kill_now_and_then() -> None:
            for _ in range(3):
                await asyncio.sleep(chance.uniform(0.1, 0.5))
                if engine.state == "ready":
                    kill(engine)

        ends, _ = await asyncio.wait_for(
            asyncio.gather(asyncio.gather(*map(one, range(150))), kill_now_and_then()), timeout=60
        )
        assert set(ends) <= {"finished", "left", "unavailable", "failed"}
        assert {"finished", "left"} <= set(ends)
        assert engine.restarts > 0
        assert (await answer(engine, ask("after"))).endswith("after")
        assert not child_of(engine)._streams


async def test_sixteen_streams_cost_the_event_loop_little() -> None:
    async with running(config(step_s=0.005)) as engine:
        late: list[float] = []

        async def watch() -> None:
            while True:
                began = time.perf_counter()
                await asyncio.sleep(0.01)
                late.append(time.perf_counter() - began - 0.01)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(answer(engine, ask(f"[[fake: length 100]] {i}")) for i in range(16)))
        watching.cancel()
        assert sorted(late)[len(late) // 2] < 0.05  # the median: two busy cores make outliers of their own
