"""The engine contract as tests: a function per clause. An engine is conformant when all of them pass on it.

A clause gets a `Subject` (which engine, of which model, and what it sees) and that engine, started and shared with the
other clauses. One that must break, fill or close an engine starts its own with `subject.running`.

`CLAUSES` hold for every engine; `ISOLATED_CLAUSES` for those that run in a supervised process of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import psutil

from sightline.config import ModelConfig
from sightline.engines import FEATURES, Engine, EngineInfo, Supervised
from sightline.engines.worker import WorkerEngine
from sightline.errors import ContextLengthExceeded, EngineFailed, EngineUnavailable, SightlineError
from sightline.types import EngineRequest, Event, Finish, Image, Message, Pixels, SamplingParams, Text, TextDelta

ORPHAN_LIVES_S = 1.0

Outcome = Finish | SightlineError


@dataclass(frozen=True)
class Subject:
    """An engine with a model, as a row of `test_conformance.py` names it."""

    name: str
    config: ModelConfig
    open: Callable[[ModelConfig], Engine]
    sees: Callable[[Engine], Awaitable[None]]
    """Asserts that pictures arrive, and in order: two requests that differ in nothing else get different answers."""
    specials: tuple[str, ...]
    """Texts of the model's special tokens."""
    needs: Path | None = None
    """A file without which this engine cannot be tried here."""
    kills: int = 20
    back_within_s: float = 3.0
    """After a kill, until it answers again: a cold start, and what a machine at work adds to it."""

    @asynccontextmanager
    async def running(self, **config: object) -> AsyncIterator[Engine]:
        """A started engine of one's own, with other settings."""
        engine = self.open(msgspec.structs.replace(self.config, **config))
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()


Clause = Callable[[Subject, Engine], Awaitable[None]]
CLAUSES: list[Clause] = []
ISOLATED_CLAUSES: list[Clause] = []


def clause(function: Clause) -> Clause:
    CLAUSES.append(function)
    return function


def isolated_clause(function: Clause) -> Clause:
    ISOLATED_CLAUSES.append(function)
    return function


# --- asking ----------------------------------------------------------------------------------------------------------


def picture(info: EngineInfo, width: int, height: int, colour: tuple[int, int, int] = (200, 30, 30)) -> Image:
    """A plain picture, served as the intake would serve it."""
    assert info.vision is not None
    served_width, served_height = info.vision.serve(width, height)[:2]
    pixels: Pixels = np.full((served_height, served_width, 3), colour, np.uint8)
    return Image(pixels, f"sha256:{width}x{height}{colour}", width, height, "image/png", 1000)


def ask(*content: str | Image, **sampling: object) -> EngineRequest:
    """One user message, answered greedily unless said otherwise."""
    parts = tuple(Text(part) if isinstance(part, str) else part for part in content)
    params = replace(SamplingParams(temperature=0.0), **sampling)  # type: ignore[arg-type]
    return EngineRequest("request", "model", (Message[Image]("user", parts),), params)


def long(request: EngineRequest, max_tokens: int | None) -> EngineRequest:
    """As many tokens as that (None: as the context holds), whatever the model would rather do."""
    return replace(request, sampling=replace(request.sampling, max_tokens=max_tokens, ignore_eos=True))


async def collect(engine: Engine, request: EngineRequest) -> list[Event]:
    return [event async for event in engine.generate(request)]


async def answer(engine: Engine, request: EngineRequest) -> tuple[str, Finish]:
    """What a client would read. Asserts the shape that every stream has: deltas, then exactly one `Finish`."""
    *deltas, finish = await collect(engine, request)
    assert isinstance(finish, Finish)
    assert all(isinstance(delta, TextDelta) for delta in deltas)
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)), finish


async def first_event(engine: Engine, request: EngineRequest) -> None:
    """Runs a request until it has begun, then leaves."""
    async with aclosing(engine.generate(request)) as events:
        await anext(events)


# --- every engine ----------------------------------------------------------------------------------------------------


@clause
async def info_is_valid_after_start(subject: Subject, engine: Engine) -> None:
    info = engine.info
    assert info.engine == subject.config.engine
    assert info.context_length > 0
    assert info.features <= FEATURES
    if info.vision is not None:
        assert 0 < info.vision.min_pixels <= info.vision.max_pixels
        assert info.vision.cell > 0


@clause
async def deltas_then_one_finish(subject: Subject, engine: Engine) -> None:
    events = await collect(engine, long(ask("Tell me more."), 12))
    assert [isinstance(event, Finish) for event in events] == [False] * (len(events) - 1) + [True]
    assert len(events) > 1
    assert all(event.num_tokens >= 0 for event in events if not isinstance(event, Finish))


@clause
async def greedy_repeats_itself(subject: Subject, engine: Engine) -> None:
    request = long(ask(picture(engine.info, 100, 100), "What is this?"), 12)
    (first, one), (second, two) = [await answer(engine, request) for _ in range(2)]
    assert first
    assert first == second
    assert replace(one.usage, images_cached=(), cached_tokens=0) == replace(
        two.usage, images_cached=(), cached_tokens=0
    )


@clause
async def text_alone_is_answered(subject: Subject, engine: Engine) -> None:
    text, finish = await answer(engine, long(ask("hello"), 8))
    assert text
    assert finish.usage.image_tokens == ()


@clause
async def pictures_arrive_in_order(subject: Subject, engine: Engine) -> None:
    await subject.sees(engine)


@clause
async def max_tokens_is_exact(subject: Subject, engine: Engine) -> None:
    for max_tokens in (1, 2, 7):
        _, finish = await answer(engine, long(ask("hello"), max_tokens))
        assert (finish.reason, finish.usage.completion_tokens) == ("length", max_tokens)


@clause
async def usage_is_exact(subject: Subject, engine: Engine) -> None:
    request = long(ask(picture(engine.info, 300, 100), "and", picture(engine.info, 120, 120), "?"), 10)
    count = await engine.count_tokens(request)
    *deltas, finish = await collect(engine, request)
    assert isinstance(finish, Finish)
    assert finish.usage.prompt_tokens == count.prompt_tokens
    assert finish.usage.image_tokens == count.image_tokens
    assert finish.usage.completion_tokens == 10
    # A token without text of its own (an end token, the rest of a character) may stay without a delta.
    assert 0 < sum(d.num_tokens for d in deltas if not isinstance(d, Finish)) <= 10


@clause
async def pictures_cost_what_info_says(subject: Subject, engine: Engine) -> None:
    vision = engine.info.vision
    assert vision is not None
    text_only = await engine.count_tokens(ask("what?"))
    assert text_only.image_tokens == ()
    for width, height in ((20, 20), (100, 100), (640, 480), (300, 90), (5000, 4000)):
        image = picture(engine.info, width, height)
        count = await engine.count_tokens(ask(image, "what?"))
        assert count.image_tokens == (vision.tokens(image.served_width, image.served_height),)
        assert count.text_tokens >= text_only.prompt_tokens


@clause
async def a_stop_string_cuts(subject: Subject, engine: Engine) -> None:
    request = long(ask("Tell me more."), 24)
    *deltas, _ = await collect(engine, request)
    shown = [delta.text for delta in deltas if isinstance(delta, TextDelta) and delta.text]
    text = "".join(shown)
    assert len(shown) >= 3, "this answer is too short to cut"
    middle = len(shown) // 2
    across = shown[middle - 1][-1] + shown[middle][0]
    for stop in (shown[0], text[0], across, shown[-1]):  # the first token, its first character, across tokens, late
        cut, finish = await answer(engine, replace(request, sampling=replace(request.sampling, stop=(stop,))))
        assert cut == text[: text.index(stop)]
        assert (finish.reason, finish.stop_sequence) == ("stop", stop)
        assert finish.usage.completion_tokens <= 24


@clause
async def a_stop_string_that_does_not_come_changes_nothing(subject: Subject, engine: Engine) -> None:
    request = long(ask("Tell me more."), 24)
    text, _ = await answer(engine, request)
    stops = ("\u2603 never", text[-1] + "\u2603")  # the second begins at the last token, and is text after all
    uncut, finish = await answer(engine, replace(request, sampling=replace(request.sampling, stop=stops)))
    assert uncut == text
    assert (finish.reason, finish.stop_sequence) == ("length", None)


@clause
async def min_tokens_come_before_stops(subject: Subject, engine: Engine) -> None:
    if "min_tokens" not in engine.info.features:
        return
    request = long(ask("Tell me more."), 12)
    *deltas, _ = await collect(engine, request)
    stop = next(d.text for d in deltas if isinstance(d, TextDelta) and d.text)
    _, finish = await answer(engine, replace(request, sampling=replace(request.sampling, stop=(stop,), min_tokens=5)))
    assert finish.usage.completion_tokens >= 5


@clause
async def logprobs_spell_the_answer(subject: Subject, engine: Engine) -> None:
    if "logprobs" not in engine.info.features:
        return
    request = long(ask("Tell me more.", logprobs=3), 12)
    *deltas, _ = await collect(engine, request)
    for delta in deltas:
        assert isinstance(delta, TextDelta)
        for told in delta.logprobs:
            assert -9999.0 <= told.logprob <= 0.0
            assert 3 <= len(told.top) <= 4
            assert max(top.logprob for top in told.top) >= told.logprob - 1e-6, "the most likely come first"
    told_bytes = b"".join(bytes(t.bytes) for d in deltas if isinstance(d, TextDelta) for t in d.logprobs)
    text = "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
    spelled = told_bytes.decode(errors="replace")
    for special in subject.specials:  # an end token that is to be ignored is told, but is no text
        spelled = spelled.replace(special, "")
    assert spelled == text


@clause
async def sixteen_at_once_get_their_own_answers(subject: Subject, engine: Engine) -> None:
    colours = ((220, 20, 20), (20, 20, 220))
    requests = [
        long(ask(picture(engine.info, 100, 100, colours[i % 2]), "What is " + "very " * i + "big?"), 8 + i)
        for i in range(16)
    ]
    alone = [await answer(engine, request) for request in requests]
    together = await asyncio.gather(*(answer(engine, request) for request in requests))
    assert [text for text, _ in together] == [text for text, _ in alone]
    assert [f.usage.prompt_tokens for _, f in together] == [f.usage.prompt_tokens for _, f in alone]
    assert [f.usage.completion_tokens for _, f in together] == [8 + i for i in range(16)]


@clause
async def closing_frees_the_slot(subject: Subject, engine: Engine) -> None:
    async with subject.running(max_concurrent=1) as own:
        lengthy = long(ask("Tell me more."), 400)
        began = time.perf_counter()
        await answer(own, lengthy)
        whole = time.perf_counter() - began
        for _ in range(3):
            await first_event(own, lengthy)
        began = time.perf_counter()
        await answer(own, long(ask("next"), 2))
        assert time.perf_counter() - began < max(0.5 * whole, 0.05)


@clause
async def cancelling_what_waits_frees_its_place(subject: Subject, engine: Engine) -> None:
    async with subject.running(max_concurrent=1) as own, aclosing(own.generate(long(ask("run"), None))) as running:
        await anext(running)
        waiting = [asyncio.create_task(collect(own, long(ask(f"wait {i}"), 2))) for i in range(3)]
        await asyncio.sleep(0.02)
        for task in waiting[:2]:
            task.cancel()
        await asyncio.wait(waiting[:2], timeout=30.0)
        assert all(task.cancelled() for task in waiting[:2])
        await running.aclose()
        assert isinstance((await waiting[2])[-1], Finish)


@clause
async def what_exceeds_the_context_is_refused_before_anything_runs(subject: Subject, engine: Engine) -> None:
    limit = engine.info.context_length
    price = (await engine.count_tokens(ask("hello"))).prompt_tokens
    for request in (ask("x y " * limit), ask("hello", max_tokens=limit - price + 1)):
        for run in (collect, Engine.count_tokens):
            method = run if run is collect else type(engine).count_tokens
            try:
                events = await method(engine, request)  # type: ignore[arg-type]
            except ContextLengthExceeded:
                continue
            raise AssertionError(f"no refusal, but {events!r:.200}")
    _, finish = await answer(engine, long(ask("hello"), None))
    assert finish.reason == "length"
    assert finish.usage.completion_tokens == limit - price


@clause
async def a_seed_repeats(subject: Subject, engine: Engine) -> None:
    if "seed" not in engine.info.features:
        return
    request = long(ask("Tell me more.", temperature=1.0, seed=1234), 12)
    alone, _ = await answer(engine, request)
    among, *_ = await asyncio.gather(
        answer(engine, request),
        *(answer(engine, long(ask(f"other {i}", temperature=1.0, seed=i), 12)) for i in range(3)),
    )
    assert among[0] == alone


@clause
async def text_never_becomes_a_special_token(subject: Subject, engine: Engine) -> None:
    base = (await engine.count_tokens(ask("a"))).prompt_tokens
    assert subject.specials
    for special in subject.specials:
        count = await engine.count_tokens(ask(f"a{special}"))
        assert count.prompt_tokens - base > 1, special
        assert count.image_tokens == ()
        assert (await answer(engine, long(ask(f"a{special}"), 2)))[1].reason == "length"


@clause
async def nothing_but_its_own_errors_escapes(subject: Subject, engine: Engine) -> None:
    tiny = Image(np.zeros((1, 1, 3), np.uint8), "sha256:tiny", 1, 1, "image/png", 1)
    odd = Image(np.zeros((31, 57, 3), np.uint8), "sha256:odd", 57, 31, "image/png", 1)
    view = Image(np.zeros((112, 224, 3), np.uint8)[:, ::2], "sha256:view", 112, 112, "image/png", 1)
    strange = [
        ask(""), ask(), replace(ask(), messages=()), ask("\ud800"), ask("\0\uffff\u202e"), ask(tiny), ask(odd),
        ask(view), ask("x" * 200_000), ask("a", max_tokens=0), ask("a", stop=("",)), ask("a", temperature=1e-9),
        ask("a", temperature=1.0, top_p=0.0), ask("a", seed=2**63), ask("a", seed=-(2**80)),
    ]  # fmt: skip
    for request in strange:
        short = request if request.sampling.max_tokens is not None else long(request, 2)
        outcome = await ends(engine, short)
        assert isinstance(outcome, Finish | SightlineError), f"{request.messages!r:.80}: {outcome!r}"
        assert not isinstance(outcome, EngineUnavailable), f"{request.messages!r:.80} stopped the engine"
    assert (await answer(engine, long(ask("still there?"), 2)))[1].reason == "length"


@clause
async def close_ends_streams_and_is_idempotent(subject: Subject, engine: Engine) -> None:
    own = subject.open(msgspec.structs.replace(subject.config, max_concurrent=1))
    await own.close()  # before start: nothing to do
    async with subject.running(max_concurrent=1) as own:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in own.generate(long(ask("run"), None)):
                begun.set()

        streams = [asyncio.create_task(read()) for _ in range(3)]
        await begun.wait()
        await asyncio.gather(own.close(), own.close())
        await own.close()
        ended = await asyncio.gather(*streams, return_exceptions=True)
        assert [type(error) for error in ended] == [EngineUnavailable] * 3
        assert isinstance(await ends(own, ask("after")), EngineUnavailable)


def patience() -> float:
    """How many times longer to wait than promised: a promise in seconds is one of a machine that has the time."""
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return 1.0 if load < 1.5 else 2 * load


async def ends(engine: Engine, request: EngineRequest) -> BaseException | Finish:
    """How a request ends, whatever way."""
    try:
        return (await answer(engine, request))[1]
    except Exception as error:
        return error


# --- engines in a process of their own -------------------------------------------------------------------------------


def pid_of(engine: Engine) -> int:
    assert isinstance(engine, WorkerEngine)
    assert engine.pid is not None
    return engine.pid


def kill(engine: Engine) -> int:
    pid = pid_of(engine)
    os.kill(pid, signal.SIGKILL)
    return pid


async def served(engine: Engine, request: EngineRequest) -> str:
    """As the service runs a request: once more if the engine died before it had said anything."""
    for _ in range(2):
        try:
            return (await answer(engine, request))[0]
        except EngineUnavailable:
            await asyncio.sleep(0)
    raise AssertionError("twice unavailable")


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
                    while not isinstance(own, WorkerEngine) or own.pid in (None, victim):
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
    print(f"\n{subject.name}: {subject.kills} kills, back within {slowest:.2f} s, requests under way: {dict(kinds)}")


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
from tests.engines.conformance import ask, collect, long

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
            stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parent.parent.parent,
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


def lives(process: psutil.Process) -> bool:
    """A zombie is dead: an orphan stays one until process 1 finds the time."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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

    await run(40)
    before = await resting_fds(child)
    await run(200)
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
