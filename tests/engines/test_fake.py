"""The fake engine does what its page says: what it sees, its scripts, its tokens, its pace."""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.config import ModelConfig
from sightline.engines.fake import COLOURS, REFUSAL, FakeEngine, tokenise
from sightline.errors import ContextLengthExceeded, EngineFailed, EngineUnavailable, InvalidRequest
from sightline.types import (
    EngineRequest,
    Event,
    Finish,
    Image,
    Message,
    Pixels,
    ReasoningDelta,
    RefusalDelta,
    ResponseFormat,
    SamplingParams,
    Text,
    TextDelta,
    Tool,
    ToolCallDelta,
    ToolChoice,
)

pytestmark = pytest.mark.anyio


def image(pixels: Pixels, width: int | None = None, height: int | None = None, digest: str = "sha256:0") -> Image:
    return Image(pixels, digest, width or pixels.shape[1], height or pixels.shape[0], "image/png", 100)


def plain(colour: str, width: int = 112, height: int = 112) -> Pixels:
    return np.full((height, width, 3), COLOURS[colour], np.uint8)


def ask(*content: str | Image, **fields: Any) -> EngineRequest:
    parts = tuple(Text(part) if isinstance(part, str) else part for part in content)
    return replace(EngineRequest("r", "fake", (Message[Image]("user", parts),)), **fields)


@asynccontextmanager
async def running(max_concurrent: int = 16, **options: Any) -> AsyncIterator[FakeEngine]:
    config = ModelConfig(name="fake", engine="fake", options=options, max_concurrent=max_concurrent)
    engine = FakeEngine(config)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def collect(engine: FakeEngine, request: EngineRequest) -> list[Event]:
    return [event async for event in engine.generate(request)]


async def answer(engine: FakeEngine, request: EngineRequest) -> tuple[str, Finish]:
    *deltas, finish = await collect(engine, request)
    assert isinstance(finish, Finish)
    return "".join(d.text for d in deltas if isinstance(d, TextDelta)), finish


# --- what it sees ----------------------------------------------------------------------------------------------------


async def test_it_says_what_reached_it_in_order() -> None:
    async with running() as engine:
        text, finish = await answer(
            engine, ask(image(plain("red"), 64, 48), "what ", image(plain("blue", 168), 32, 32), "is this?")
        )
    assert text == "I see 2 pictures: 64x48 mostly red; 32x32 mostly blue. You said: what is this?"
    assert finish.reason == "stop"
    assert finish.usage.image_tokens == (16, 24)


async def test_it_tells_how_a_picture_is_turned() -> None:
    pixels = plain("red")
    pixels[:56, :56] = COLOURS["white"]
    async with running() as engine:
        upright, _ = await answer(engine, ask(image(pixels)))
        turned, _ = await answer(engine, ask(image(np.ascontiguousarray(np.rot90(pixels, 2)))))
    assert "mostly red (top left white)" in upright
    assert "mostly red (bottom right white)" in turned


@pytest.mark.parametrize("colour", COLOURS)
async def test_every_colour_it_names_it_knows(colour: str) -> None:
    pixels = plain(colour).astype(np.int16) + np.random.default_rng(0).integers(-12, 13, (112, 112, 3))
    async with running() as engine:
        text, _ = await answer(engine, ask(image(pixels.clip(0, 255).astype(np.uint8))))
    assert f"mostly {colour}." in text


async def test_text_alone() -> None:
    async with running() as engine:
        assert (await answer(engine, ask("hello")))[0] == "I see no pictures. You said: hello"


async def test_a_json_object_holds_the_same_facts() -> None:
    async with running() as engine:
        request = ask(image(plain("pink")), "grün?", response_format=ResponseFormat("json_object"))
        text, _ = await answer(engine, request)
    assert json.loads(text) == {"pictures": ["112x112 mostly pink"], "you_said": "grün?"}


async def test_only_the_last_user_message_is_echoed_and_scripted() -> None:
    messages = (
        Message[Image]("user", (Text("[[fake: refuse]] first"),)),
        Message[Image]("assistant", (Text("no"),)),
        Message[Image]("user", (Text("second"),)),
    )
    async with running() as engine:
        text, _ = await answer(engine, replace(ask(""), messages=messages))
    assert text == "I see no pictures. You said: second"


# --- scripts ---------------------------------------------------------------------------------------------------------


async def test_the_clock_tells_when_each_token_was_made_and_by_whom() -> None:
    async with running(step_s=0.01) as engine:
        before = time.monotonic()
        text, finish = await answer(engine, ask("[[fake: clock 3]]"))
        after = time.monotonic()
    told = [stamp.split("@") for stamp in text.split()]
    assert [process for _, process in told] == [str(os.getpid())] * 3
    assert before < float(told[0][0]) < float(told[1][0]) < float(told[2][0]) < after
    assert finish.usage.completion_tokens == 3


async def test_say_and_think() -> None:
    async with running() as engine:
        events = await collect(engine, ask("[[fake: think let me see]] [[fake: say it is a cat]]"))
    thought = [e for e in events if isinstance(e, ReasoningDelta)]
    assert "".join(e.text for e in thought) == "let me see"
    assert "".join(e.text for e in events if isinstance(e, TextDelta)) == "it is a cat"
    assert isinstance(events[-1], Finish)
    assert events[-1].usage.reasoning_tokens == len(thought) == 3
    assert events[-1].usage.completion_tokens == 7


@pytest.mark.parametrize("length", [0, 1, 5, 100])
async def test_length(length: int) -> None:
    async with running() as engine:
        text, finish = await answer(engine, ask(f"[[fake: length {length}]] hi"))
    assert (finish.reason, finish.usage.completion_tokens) == ("length", length)
    assert len(tokenise(text)) == length


async def test_refuse() -> None:
    async with running() as engine:
        *deltas, finish = await collect(engine, ask("[[fake: refuse]]"))
    assert "".join(d.text for d in deltas if isinstance(d, RefusalDelta)) == REFUSAL
    assert isinstance(finish, Finish)
    assert finish.reason == "stop"


async def test_tools() -> None:
    tools = (Tool("look", parameters={"type": "object"}), Tool("point"))
    request = ask('[[fake: tool look {"at": [[1, 2]]}]][[fake: tool point]]', tools=tools)
    async with running() as engine:
        *deltas, finish = await collect(engine, request)
    calls: dict[int, list[ToolCallDelta]] = {}
    for delta in deltas:
        assert isinstance(delta, ToolCallDelta)
        calls.setdefault(delta.index, []).append(delta)
    assert [(c[0].id, c[0].name) for c in calls.values()] == [("call_0", "look"), ("call_1", "point")]
    assert all(d.id is None and d.name is None for c in calls.values() for d in c[1:])
    assert [json.loads("".join(d.arguments for d in c)) for c in calls.values()] == [{"at": [[1, 2]]}, {}]
    assert isinstance(finish, Finish)
    assert finish.reason == "tool_calls"


@pytest.mark.parametrize(
    ("choice", "called"),
    [
        (ToolChoice("auto"), None),
        (ToolChoice("none"), None),
        (ToolChoice("required"), "look"),
        (ToolChoice("required", ("point",)), "point"),
    ],
)
async def test_tool_choice(choice: ToolChoice, called: str | None) -> None:
    async with running() as engine:
        events = await collect(engine, ask("hi", tools=(Tool("look"), Tool("point")), tool_choice=choice))
    names = [e.name for e in events if isinstance(e, ToolCallDelta) and e.name]
    assert names == ([called] if called else [])


async def test_error_comes_in_place_of_its_token_and_hurts_nobody_else() -> None:
    async with running() as engine:
        other = asyncio.create_task(answer(engine, ask("other")))
        said = []
        with pytest.raises(EngineFailed):
            async for event in engine.generate(ask("[[fake: error 3]]")):
                said.append(event)
        assert len(said) == 3
        assert (await other)[0].endswith("other")
        assert engine.running == 0


async def test_crash_without_a_process_of_its_own_fails_like_error() -> None:
    async with running() as engine:
        with pytest.raises(EngineFailed):
            await collect(engine, ask("[[fake: crash 0]]"))
        assert (await answer(engine, ask("still here")))[0].endswith("still here")


async def test_hang_holds_its_slot_until_it_is_closed() -> None:
    async with running(slots=1) as engine:
        hanging = engine.generate(ask("[[fake: hang]]"))
        first = asyncio.ensure_future(anext(hanging))
        await asyncio.sleep(0.02)
        assert engine.running == 1
        assert not first.done()
        first.cancel()
        await asyncio.wait([first])
        assert engine.running == 0
        assert (await answer(engine, ask("next")))[0].endswith("next")


async def test_slow_is_slow_for_itself_alone() -> None:
    async with running() as engine:
        slow = asyncio.create_task(answer(engine, ask("[[fake: slow 0.05]] [[fake: say a b c]]")))
        began = time.perf_counter()
        await answer(engine, ask("fast"))
        assert not slow.done()
        await slow
        assert time.perf_counter() - began >= 0.1


async def test_the_default_script_is_for_messages_without_one() -> None:
    async with running(script="[[fake: say by default]]") as engine:
        assert (await answer(engine, ask("hi")))[0] == "by default"
        assert (await answer(engine, ask("[[fake: say asked for]]")))[0] == "asked for"


@pytest.mark.parametrize(
    "text",
    ["[[fake: dance]]", "[[fake: length many]]", "[[fake: say open", "[[fake: tool look]]", "[[fake: tool f {]]"],
)
async def test_a_wrong_script_is_the_requests_fault(text: str) -> None:
    async with running() as engine:
        with pytest.raises(InvalidRequest):
            await collect(engine, ask(text))


@pytest.mark.parametrize("options", [{"slot": 1}, {"step_s": "fast"}, {"script": "[[fake: dance]]"}])
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        FakeEngine(ModelConfig(name="fake", engine="fake", options=options))
    assert caught.value.param == "options"


# --- tokens ----------------------------------------------------------------------------------------------------------


@given(st.text())
def test_tokens_are_the_text(text: str) -> None:
    assert "".join(tokenise(text)) == text


async def test_the_price_of_a_prompt() -> None:
    async with running() as engine:
        one = await engine.count_tokens(ask("hello, world"))
        two = await engine.count_tokens(ask("hello, world", image(plain("red", 140))))
    assert one.prompt_tokens == 3 + 2 + 1
    assert two.image_tokens == (20,)
    assert two.text_tokens == one.prompt_tokens


async def test_the_context_is_a_limit_and_a_stop() -> None:
    async with running(context_length=20) as engine:
        price = (await engine.count_tokens(ask("hello"))).prompt_tokens
        _, finish = await answer(engine, ask("hello", sampling=SamplingParams(ignore_eos=True)))
        assert finish.reason == "length"
        assert finish.usage.completion_tokens == 20 - price
        for wanted in (ask("hello", sampling=SamplingParams(max_tokens=21 - price)), ask("a b c d e " * 4)):
            with pytest.raises(ContextLengthExceeded) as caught:
                await collect(engine, wanted)
            assert caught.value.param == "messages"
        assert engine.running == engine.waiting == 0


async def test_min_tokens_and_ignore_eos() -> None:
    async with running() as engine:
        _, at_least = await answer(engine, ask("[[fake: say a]]", sampling=SamplingParams(min_tokens=9)))
        _, endless = await answer(
            engine, ask("[[fake: say a]]", sampling=SamplingParams(ignore_eos=True, max_tokens=50))
        )
    assert (at_least.reason, at_least.usage.completion_tokens) == ("stop", 9)
    assert (endless.reason, endless.usage.completion_tokens) == ("length", 50)


async def test_tokens_held_back_are_counted_when_they_are_shown() -> None:
    async with running() as engine:
        request = ask("[[fake: say a b c d]]", sampling=SamplingParams(stop=(" b c x",), logprobs=0))
        *deltas, finish = await collect(engine, request)
    assert [(d.text, d.num_tokens, len(d.logprobs)) for d in deltas if isinstance(d, TextDelta)] == [
        ("a", 1, 1),
        (" b c d", 3, 3),
    ]
    assert isinstance(finish, Finish)
    assert finish.usage.completion_tokens == 4


async def test_what_is_cut_off_is_not_told_in_logprobs_either() -> None:
    async with running() as engine:
        request = ask("[[fake: say one abc two]]", sampling=SamplingParams(stop=("bc two",), logprobs=0))
        *deltas, finish = await collect(engine, request)
    told = [(d.text, d.num_tokens, [p.token for p in d.logprobs]) for d in deltas if isinstance(d, TextDelta)]
    assert told == [("one", 1, ["one"]), (" a", 1, [" abc"])]
    assert isinstance(finish, Finish)
    assert (finish.stop_sequence, finish.usage.completion_tokens) == ("bc two", 3)


async def test_logprobs_are_a_distribution() -> None:
    async with running() as engine:
        *deltas, _ = await collect(engine, ask("[[fake: say é!]]", sampling=SamplingParams(logprobs=5)))
    for delta in deltas:
        assert isinstance(delta, TextDelta)
        (chosen,) = delta.logprobs
        assert bytes(chosen.bytes).decode() == chosen.token == delta.text
        assert len(chosen.top) == len({t.token for t in chosen.top}) == 5
        assert chosen.top[0].token == chosen.token
        assert [t.logprob for t in chosen.top] == sorted((t.logprob for t in chosen.top), reverse=True)
        assert sum(math.exp(t.logprob) for t in chosen.top) < 1


async def test_pictures_are_remembered_by_tenant() -> None:
    red = image(plain("red"), digest="sha256:1")
    async with running() as engine:
        cached = [
            (await answer(engine, ask(red, tenant=tenant)))[1].usage.images_cached for tenant in ("a", "a", "b", "b")
        ]
    assert cached == [(False,), (True,), (False,), (True,)]


# --- pace ------------------------------------------------------------------------------------------------------------


async def test_sequences_share_steps() -> None:
    async with running() as engine:
        await asyncio.gather(*(answer(engine, ask(f"[[fake: length 50]] {i}")) for i in range(16)))
        assert 50 <= engine.steps < 100  # 16 alone would take 800


async def test_what_exceeds_the_slots_waits_by_priority() -> None:
    done: list[str] = []

    async def run(engine: FakeEngine, name: str, priority: int) -> None:
        await collect(engine, ask("[[fake: length 5]]", priority=priority))
        done.append(name)

    async with running(slots=1, step_s=0.002) as engine:
        tasks = [asyncio.create_task(run(engine, "first", 0))]
        while not engine.running:
            await asyncio.sleep(0)
        jobs = (("low", -5), ("plain", 0), ("high", 5), ("later", 0))
        tasks += [asyncio.create_task(run(engine, *job)) for job in jobs]
        await asyncio.sleep(0)
        assert (engine.running, engine.waiting) == (1, 4)
        await asyncio.gather(*tasks)
    assert done == ["first", "high", "plain", "later", "low"]


async def test_a_step_and_a_prompt_take_their_time() -> None:
    async with running(step_s=0.01, prefill_s_per_token=0.001) as engine:
        _, finish = await answer(engine, ask("a " * 50 + "[[fake: length 6]]"))
    assert finish.timing.prefill_s >= 0.05
    assert finish.timing.decode_s >= 0.05


async def test_closing_frees_the_slot_at_once_and_no_more_steps_are_run_for_it() -> None:
    async with running(slots=1, step_s=0.01) as engine:
        async with aclosing(engine.generate(ask("[[fake: length 500]]"))) as events:
            await anext(events)
        steps = engine.steps
        assert engine.running == 0
        await asyncio.sleep(0.05)
        assert engine.steps <= steps + 1


async def test_cancelled_during_a_long_prefill() -> None:
    async with running(slots=1, prefill_chunk=8, prefill_s_per_token=0.001) as engine:
        task = asyncio.create_task(collect(engine, ask("word " * 2000)))
        await asyncio.sleep(0.03)
        task.cancel()
        await asyncio.wait([task])
        began = time.perf_counter()
        await answer(engine, ask("next"))
        assert time.perf_counter() - began < 1.0


async def test_close_ends_what_runs_and_what_waits() -> None:
    async with running(slots=1) as engine:
        tasks = [asyncio.create_task(collect(engine, ask("[[fake: hang]]"))) for _ in range(3)]
        await asyncio.sleep(0.01)
        await engine.close()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(e) for e in ended] == [EngineUnavailable] * 3


async def test_start_can_fail() -> None:
    with pytest.raises(EngineUnavailable):
        async with running(startup="error"):
            pass
