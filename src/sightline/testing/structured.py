"""What engines do that say they can keep to a schema or call tools: a function per clause.

Schemas here leave no room to ramble: a model that knows nothing of JSON comes to an end all the same, unless the engine
leaves it free to write white space until it has no more tokens.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from sightline.engines import Engine
from sightline.testing.subject import Subject, ask, clause, collect, long
from sightline.types import (
    EngineRequest,
    Event,
    Finish,
    Message,
    ResponseFormat,
    Text,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)

COLOURS: Final = ("red", "green", "blue", "yellow")
SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "colour": {"enum": [*COLOURS]},
        "corners": {"type": "integer", "minimum": 0, "maximum": 9},
        "filled": {"type": "boolean"},
    },
    "required": ["colour", "corners", "filled"],
    "additionalProperties": False,
}
PAINT: Final = Tool(
    "paint",
    "Paints everything in one colour.",
    {"type": "object", "properties": {"colour": {"enum": [*COLOURS]}}, "required": ["colour"],
     "additionalProperties": False},
    strict=True,
)  # fmt: skip


def keeping(request: EngineRequest, schema: dict[str, Any] = SCHEMA) -> EngineRequest:
    return replace(request, response_format=ResponseFormat("json_schema", schema, strict=True))


def calling(request: EngineRequest, choice: ToolChoice, *tools: Tool) -> EngineRequest:
    return replace(request, tools=tools or (PAINT,), tool_choice=choice)


def text_of(events: Sequence[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TextDelta))


def calls_of(events: Sequence[Event]) -> list[ToolCall]:
    """Put together as every dialect does it. Asserts what a call's deltas have to be like."""
    calls: list[ToolCall] = []
    for event in events:
        if not isinstance(event, ToolCallDelta):
            continue
        if event.index == len(calls):
            assert event.id, "a call's first delta has its id"
            assert event.name, "and its name"
            calls.append(ToolCall(event.id, event.name, event.arguments))
        else:
            assert event.index == len(calls) - 1, "calls come one after the other"
            assert event.id is None
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + event.arguments)
    assert len({call.id for call in calls}) == len(calls)
    return calls


def verify_answer(text: str) -> None:
    value = json.loads(text)
    assert set(value) == {"colour", "corners", "filled"}, text
    assert value["colour"] in COLOURS
    assert type(value["corners"]) is int
    assert 0 <= value["corners"] <= 9
    assert type(value["filled"]) is bool


def verify_call(call: ToolCall) -> None:
    arguments = json.loads(call.arguments)
    assert (call.name, set(arguments)) == ("paint", {"colour"}), call
    assert arguments["colour"] in COLOURS


def finish_of(events: Sequence[Event]) -> Finish:
    assert isinstance(events[-1], Finish)
    return events[-1]


@clause
async def a_schema_is_kept_however_it_is_sampled(subject: Subject, engine: Engine) -> None:
    if "json_schema" not in engine.info.features:
        return
    hot = [{"temperature": 1.5, "seed": seed} for seed in range(3)] if "seed" in engine.info.features else []
    ways: list[dict[str, Any]] = [{}, {"temperature": 2.0}, {"temperature": 1.0, "top_p": 0.3}, *hot]
    if "penalties" in engine.info.features:
        ways.append({"presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 2.0})
    if {"min_tokens", "ignore_eos"} <= engine.info.features:
        ways.append({"min_tokens": 60, "ignore_eos": True})
    requests = [keeping(ask("Describe it.", max_tokens=200, **way)) for way in ways]
    answers = await asyncio.gather(*(collect(engine, request) for request in requests))
    whole = [events for events in answers if finish_of(events).reason == "stop"]
    assert whole, [text_of(events) for events in answers]
    for events in whole:
        verify_answer(text_of(events))


@clause
async def an_object_is_an_object(subject: Subject, engine: Engine) -> None:
    if "json_object" not in engine.info.features:
        return
    request = replace(ask("Describe it.", max_tokens=60), response_format=ResponseFormat("json_object"))
    events = await collect(engine, request)
    text = text_of(events)
    assert text.lstrip().startswith("{"), text
    if finish_of(events).reason == "stop":
        assert isinstance(json.loads(text), dict)


@clause
async def others_are_not_touched_by_a_neighbour_s_schema(subject: Subject, engine: Engine) -> None:
    if "json_schema" not in engine.info.features:
        return
    free = long(ask("Tell me more."), 20)
    alone = text_of(await collect(engine, free))
    bound = keeping(ask("Describe it.", max_tokens=100))
    answers = await asyncio.gather(*(collect(engine, request) for request in (free, bound, free, bound)))
    assert [text_of(answers[i]) for i in (0, 2)] == [alone, alone]
    for events in answers[1::2]:
        if finish_of(events).reason == "stop":
            verify_answer(text_of(events))


@clause
async def out_of_room_is_told_as_length(subject: Subject, engine: Engine) -> None:
    if "json_schema" not in engine.info.features:
        return
    events = await collect(engine, keeping(ask("Describe it.", max_tokens=2)))
    finish = finish_of(events)
    assert (finish.reason, finish.usage.completion_tokens) == ("length", 2)


@clause
async def log_probabilities_are_of_what_could_come(subject: Subject, engine: Engine) -> None:
    if not {"json_schema", "logprobs"} <= engine.info.features:
        return
    events = await collect(engine, keeping(ask("Describe it.", max_tokens=100, logprobs=3)))
    told = [t for event in events if isinstance(event, TextDelta) for t in event.logprobs]
    spelled = b"".join(bytes(t.bytes) for t in told).decode(errors="replace")
    assert spelled.strip().startswith(text_of(events).strip()), (spelled, text_of(events))
    for token in told:
        assert -9999.0 <= token.logprob <= 0.0
        assert all(-9999.0 <= other.logprob <= 0.0 for other in token.top)


@clause
async def a_required_tool_is_called(subject: Subject, engine: Engine) -> None:
    if "tools" not in engine.info.features:
        return
    events = await collect(engine, calling(ask("Paint it.", max_tokens=90), ToolChoice("required", ("paint",)), PAINT))
    calls = calls_of(events)
    assert calls
    assert {call.name for call in calls} == {"paint"}
    finish = finish_of(events)
    assert finish.reason in ("tool_calls", "length")
    for call in calls if finish.reason == "tool_calls" else calls[:-1]:
        verify_call(call)


@clause
async def one_call_where_one_is_allowed(subject: Subject, engine: Engine) -> None:
    if not {"tools", "parallel_tool_calls"} <= engine.info.features:
        return
    for way in ({}, {"temperature": 1.5}):
        request = calling(ask("Paint it.", max_tokens=90, **way), ToolChoice("required", parallel=False), PAINT)
        events = await collect(engine, request)
        (call,) = calls_of(events)
        verify_call(call)
        assert finish_of(events).reason == "tool_calls"


@clause
async def tools_that_may_not_be_called_change_nothing(subject: Subject, engine: Engine) -> None:
    if "tools" not in engine.info.features:
        return
    plain = long(ask("Tell me more."), 8)
    events = await collect(engine, calling(plain, ToolChoice("none")))
    assert not calls_of(events)
    assert text_of(events) == text_of(await collect(engine, plain))


@clause
async def tools_and_results_are_part_of_the_prompt(subject: Subject, engine: Engine) -> None:
    if "tools" not in engine.info.features:
        return
    plain = ask("Paint it.")
    choice = ToolChoice("auto")
    without = (await engine.count_tokens(plain)).prompt_tokens
    told = calling(plain, choice, replace(PAINT, strict=False))
    first = (await engine.count_tokens(told)).prompt_tokens
    assert first > without
    call = ToolCall("call_1", "paint", '{"colour": "red"}')
    talk = replace(
        told,
        messages=(
            *told.messages,
            Message("assistant", (), (call,)),
            Message("tool", (Text("It is all red now."),), (), "call_1"),
        ),
    )
    second = (await engine.count_tokens(talk)).prompt_tokens
    assert second > first
    assert (finish_of(await collect(engine, long(talk, 4)))).usage.prompt_tokens == second


@clause
async def what_tools_are_called_never_becomes_a_special_token(subject: Subject, engine: Engine) -> None:
    if "tools" not in engine.info.features:
        return
    choice = ToolChoice("auto")

    async def cost(word: str) -> int:
        schema = {"type": "object", "properties": {word: {"type": "string", "description": word, "enum": [word]}}}
        return (await engine.count_tokens(calling(ask("a"), choice, Tool("f", word, schema)))).prompt_tokens

    for special in subject.specials:
        # Four times the same text: each costs more than the one token that it would be.
        assert await cost(f"a{special}") - await cost("a") > 4, special
