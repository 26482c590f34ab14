"""What every engine does: a function per clause."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from typing import get_args

import msgspec
import numpy as np

from sightline.engines import FEATURES, Engine, Work
from sightline.errors import (
    ContextLengthExceeded,
    EngineUnavailable,
    InvalidRequest,
    SightlineError,
    UnsupportedFeature,
)
from sightline.testing.subject import (
    Subject,
    answer,
    ask,
    clause,
    collect,
    ends,
    first_event,
    long,
    picture,
)
from sightline.types import Finish, Image, TextDelta


@clause
async def info_is_valid_after_start(subject: Subject, engine: Engine) -> None:
    info = engine.info
    assert info.engine == subject.config.engine
    assert info.context_length > 0
    assert info.features <= FEATURES
    assert frozenset() < info.work <= set(get_args(Work))
    if info.vision is not None:
        assert min(info.vision.serve(100, 100)) > 0


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
                events = await method(engine, request)
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
async def plain_text_is_gone_on_with(subject: Subject, engine: Engine) -> None:
    if "completions" not in engine.info.work:
        return
    request = replace(long(ask(), 6), messages=(), prompt="The shape is")
    count = await engine.count_tokens(request)
    text, finish = await answer(engine, request)
    assert text
    assert (finish.reason, finish.usage.completion_tokens) == ("length", 6)
    prompt_tokens = finish.usage.prompt_tokens
    assert prompt_tokens == count.prompt_tokens or not count.exact
    assert prompt_tokens < (await engine.count_tokens(ask("The shape is"))).prompt_tokens, "a template was used"
    for special in subject.specials:
        longer = replace(request, prompt=f"The shape is{special}{special}")
        assert (await engine.count_tokens(longer)).prompt_tokens - count.prompt_tokens > 2, special
        assert (await answer(engine, longer))[1].reason == "length"
    for prompt in ((2**31 - 1,), (-1,)):
        outcome = await ends(engine, replace(request, prompt=prompt))
        assert isinstance(outcome, InvalidRequest | UnsupportedFeature)
        assert outcome.param is not None
        assert outcome.param.startswith("prompt")
    too_long = await ends(engine, replace(request, prompt="x y " * engine.info.context_length))
    assert isinstance(too_long, ContextLengthExceeded)
    assert too_long.param == "prompt"


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
