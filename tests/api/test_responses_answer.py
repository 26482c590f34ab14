"""The Responses API: the order of a stream's events, and the response that they add up to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response as SdkResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from sightline.errors import EngineFailed, ImageTooLarge, RateLimited
from sightline.items import ChoiceEvent, Item
from sightline.types import (
    ChatRequest,
    Delta,
    Finish,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from tests.api.serving import serving
from tests.api.standin import FINISH, HELLO, PREPARED, Call, Reply, Script, ScriptedService, app_of, post, say

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PATH = "/v1/responses"

pytestmark = pytest.mark.anyio


def named_events(reply: Reply) -> list[dict[str, Any]]:
    """Each read strictly by the SDK's types, and by its own `event:` line."""
    blocks = reply.body.decode().split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    events = []
    for block in blocks[:-2]:
        name, data = block.split("\n")
        EVENTS.validate_json(data.removeprefix("data: "), strict=True)
        events.append(EVENTS.validate_json(data.removeprefix("data: ")).to_dict(mode="json"))
        assert name == f"event: {events[-1]['type']}"
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    return events


async def stream(*events: Delta | Finish, **fields: Any) -> list[dict[str, Any]]:
    app = app_of(ScriptedService(say(*events)))
    return named_events(await post(app, {"model": "m", "input": "x", "stream": True, **fields}, PATH))


async def whole(*events: Delta | Finish, **fields: Any) -> dict[str, Any]:
    reply = await post(app_of(ScriptedService(say(*events))), {"model": "m", "input": "x", **fields}, PATH)
    assert reply.status == 200, reply.body
    SdkResponse.model_validate_json(reply.body, strict=True)
    value: dict[str, Any] = reply.json
    return value


def short(events: list[dict[str, Any]]) -> list[str]:
    """`output_item.added 0` ...: the type, and which item it is about."""
    return [f"{e['type'].removeprefix('response.')} {e.get('output_index', '')}".strip() for e in events]


def finish(reason: Any) -> Finish:
    return Finish(reason, Usage(20, 3, image_tokens=(12,), images_cached=(False,)))


MESSAGE = ["output_item.added", "content_part.added"]
DONE = ["output_text.done", "content_part.done", "output_item.done"]


async def test_text() -> None:
    events = await stream(TextDelta("A "), TextDelta("cat", 2), FINISH)
    assert short(events) == [
        "created", "in_progress", "output_item.added 0", "content_part.added 0", "output_text.delta 0",
        "output_text.delta 0", "output_text.done 0", "content_part.done 0", "output_item.done 0", "completed",
    ]  # fmt: skip
    created, added, part, done = events[0], events[2], events[3], events[8]
    assert (created["response"]["status"], created["response"]["output"]) == ("in_progress", [])
    assert (added["item"]["status"], added["item"]["content"]) == ("in_progress", [])
    assert part["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert done["item"]["content"][0]["text"] == "A cat"
    assert done["item"]["status"] == "completed"
    assert {e["item_id"] for e in events if "item_id" in e} == {done["item"]["id"]}
    assert events[-1]["response"]["output"] == [done["item"]]


async def test_reasoning_comes_before_the_message() -> None:
    events = await stream(ReasoningDelta("Hm"), ReasoningDelta("."), TextDelta("Yes"), FINISH)
    assert short(events)[2:-1] == [
        "output_item.added 0", "content_part.added 0", "reasoning_text.delta 0", "reasoning_text.delta 0",
        "reasoning_text.done 0", "content_part.done 0", "output_item.done 0",
        "output_item.added 1", "content_part.added 1", "output_text.delta 1",
        "output_text.done 1", "content_part.done 1", "output_item.done 1",
    ]  # fmt: skip
    reasoning, message = events[-1]["response"]["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert (reasoning["summary"], message["content"][0]["text"]) == ([], "Yes")


async def test_calls_between_text() -> None:
    events = await stream(
        TextDelta("I look"),
        ToolCallDelta(0, "", "call_a", "f"),
        ToolCallDelta(0, '{"a"'),
        ToolCallDelta(1, "{}", "call_b", "g"),
        ToolCallDelta(0, ":1}"),  # engines behind servers may take turns
        TextDelta("and wait"),
        finish("tool_calls"),
    )
    assert short(events)[5:-1] == [
        "output_text.done 0", "content_part.done 0", "output_item.done 0",
        "output_item.added 1", "function_call_arguments.delta 1",
        "output_item.added 2", "function_call_arguments.delta 2", "function_call_arguments.delta 1",
        "function_call_arguments.done 1", "output_item.done 1", "function_call_arguments.done 2", "output_item.done 2",
        "output_item.added 3", "content_part.added 3", "output_text.delta 3",
        "output_text.done 3", "content_part.done 3", "output_item.done 3",
    ]  # fmt: skip
    output = events[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call", "message"]
    assert (output[1]["call_id"], output[1]["name"], output[1]["arguments"]) == ("call_a", "f", '{"a":1}')
    assert (output[2]["call_id"], output[2]["name"], output[2]["arguments"]) == ("call_b", "g", "{}")
    assert output[1]["id"] != output[2]["id"]
    assert events[-1]["response"]["status"] == "completed"


async def test_a_refusal_is_a_part_of_the_message() -> None:
    events = await stream(TextDelta("Well, "), RefusalDelta("I can"), RefusalDelta("not"), FINISH)
    assert short(events)[2:-1] == [
        "output_item.added 0", "content_part.added 0", "output_text.delta 0", "output_text.done 0",
        "content_part.done 0", "content_part.added 0", "refusal.delta 0", "refusal.delta 0", "refusal.done 0",
        "content_part.done 0", "output_item.done 0",
    ]  # fmt: skip
    assert [e["content_index"] for e in events if "content_index" in e] == [0] * 4 + [1] * 5
    assert events[-1]["response"]["output"][0]["content"][1] == {"type": "refusal", "refusal": "I cannot"}


async def test_an_empty_answer_is_a_message_all_the_same() -> None:
    events = await stream(TextDelta(""), FINISH)
    assert short(events)[2:-1] == [f"{name} 0" for name in MESSAGE + DONE]
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""


@pytest.mark.parametrize(("reason", "told"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_answer_that_was_cut_is_incomplete(reason: str, told: str) -> None:
    events = await stream(ReasoningDelta("Hm"), TextDelta("A c"), finish(reason))
    assert events[-1]["type"] == "response.incomplete"
    response = events[-1]["response"]
    assert (response["status"], response["incomplete_details"]["reason"]) == ("incomplete", told)
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response.get("completed_at") is None
    assert (await whole(TextDelta("A c"), finish(reason)))["status"] == "incomplete"


async def test_of_several_calls_only_the_last_can_have_been_cut() -> None:
    cut = [ToolCallDelta(0, "{}", "call_a", "f"), ToolCallDelta(1, '{"a', "call_b", "f")]
    events = await stream(*cut, finish("length"))
    done = [e["item"]["status"] for e in events if e["type"] == "response.output_item.done"]
    assert done == ["completed", "incomplete"]
    assert [item["status"] for item in events[-1]["response"]["output"]] == done


async def test_usage_and_what_is_ours() -> None:
    response = await whole(TextDelta("A cat", 3), FINISH)
    assert response["usage"] == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 16, "cache_write_tokens": 0, "image_tokens": 12, "text_tokens": 8},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 23,
    }
    assert response["sightline"]["images"][0]["digest"] == PREPARED.images[0].digest
    assert "turns_dropped" not in response["sightline"]
    streamed = (await stream(TextDelta("A cat", 3), FINISH))[-1]["response"]
    assert streamed["usage"] == response["usage"]
    assert streamed["sightline"]["images"] == response["sightline"]["images"]


async def test_every_field_is_told_back() -> None:
    asked: dict[str, Any] = {
        "instructions": "i", "max_output_tokens": 50, "max_tool_calls": 2, "temperature": 0.5, "top_p": 0.25,
        "presence_penalty": 1.0, "frequency_penalty": 0.5, "top_logprobs": 2, "parallel_tool_calls": True,
        "truncation": "disabled", "store": False, "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s",
        "prompt_cache_key": "k", "text": {"format": {"type": "json_object"}, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"}, "tool_choice": "none",
        "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {}, "strict": True}],
    }  # fmt: skip
    response = await whole(FINISH, **asked)
    assert {key: response[key] for key in asked} == asked
    plain = await whole(FINISH)
    assert "user" not in plain
    required = {
        "id", "object", "created_at", "completed_at", "status", "background", "error", "incomplete_details",
        "instructions", "max_output_tokens", "max_tool_calls", "metadata", "model", "output", "parallel_tool_calls",
        "presence_penalty", "frequency_penalty", "previous_response_id", "prompt_cache_key", "reasoning",
        "safety_identifier", "service_tier", "store", "temperature", "text", "tool_choice", "tools", "top_logprobs",
        "top_p", "truncation", "usage",
    }  # fmt: skip
    assert required <= set(plain)


async def test_logprobs() -> None:
    token = TokenLogprob("A", -0.5, (65,), (TokenLogprob("B", -1.0, (66,)),))
    wanted = {"token": "A", "logprob": -0.5, "bytes": [65], "top_logprobs": [{"token": "B", "logprob": -1.0,
              "bytes": [66]}]}  # fmt: skip
    events = await stream(TextDelta("A", 1, (token,)), FINISH, top_logprobs=1)
    delta, done = events[4], events[5]
    assert delta["logprobs"] == done["logprobs"] == [wanted]
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == [wanted]
    plain = await stream(TextDelta("A", 1, (token,)), FINISH)
    assert plain[4]["logprobs"] == []


# --- faults ----------------------------------------------------------------------------------------------------------


def breaking(error: Exception) -> Script:
    async def script(request: ChatRequest) -> AsyncIterator[Item]:
        yield PREPARED
        yield ChoiceEvent(0, TextDelta("A "))
        raise error

    return script


@pytest.mark.parametrize(
    ("error", "code", "in_response"),
    [
        (EngineFailed("The engine broke."), "server_error", "server_error"),
        (RateLimited("Slow down."), "rate_limit_exceeded", "rate_limit_exceeded"),
        (ImageTooLarge("Too many pixels.", param="input[0]"), "image_too_large", "image_too_large"),
        (RuntimeError("secret"), "server_error", "server_error"),
    ],
)
async def test_a_fault_after_the_first_event(error: Exception, code: str, in_response: str) -> None:
    app = app_of(ScriptedService(breaking(error)))
    events = named_events(await post(app, {"model": "m", "input": "x", "stream": True}, PATH))
    assert short(events)[-3:] == ["output_text.delta 0", "error", "failed"]
    told, response = events[-2], events[-1]["response"]
    assert (told["code"], response["error"]["code"], response["status"]) == (code, in_response, "failed")
    assert told["message"] == response["error"]["message"]
    assert "secret" not in told["message"]
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "A "


async def test_a_client_that_leaves_ends_the_work_and_nothing_is_kept() -> None:
    async def script(request: ChatRequest) -> AsyncIterator[Item]:
        yield PREPARED
        yield ChoiceEvent(0, TextDelta("A "))
        await asyncio.Event().wait()

    service = ScriptedService(script)
    body = b'{"model": "m", "input": "x", "stream": true}'
    call = Call("POST", PATH, body)
    call.on_body = lambda chunk: call.left.set() if b"delta" in chunk else None
    await call.run(app_of(service))
    assert service.open == 0


async def test_a_stored_response_can_be_gone_on_from_as_soon_as_its_last_event_is_read() -> None:
    service = ScriptedService(HELLO)
    app = app_of(service)
    found: list[int] = []

    async def go_on(response_id: str) -> None:
        body = {"model": "m", "input": "y", "previous_response_id": response_id}
        found.append((await post(app, body, PATH)).status)

    call = Call("POST", PATH, b'{"model": "m", "input": "x", "stream": true}')
    tasks: list[asyncio.Task[None]] = []

    def on_body(chunk: bytes) -> None:
        if b"response.completed" in chunk:
            response_id = chunk.split(b'"id":"', 1)[1].split(b'"', 1)[0].decode()
            tasks.append(asyncio.create_task(go_on(response_id)))

    call.on_body = on_body
    await call.run(app)
    await asyncio.gather(*tasks)
    assert found == [200]
    assert [m.role for m in service.requests[-1].messages] == ["user", "assistant", "user"]


# --- what the SDK makes of it ----------------------------------------------------------------------------------------


class Colour(BaseModel):
    colour: str


async def test_parse_reads_structured_output() -> None:
    service = ScriptedService(say(TextDelta('{"colour":'), TextDelta(' "red"}'), FINISH))

    def parse(port: int) -> tuple[Any, Any]:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client:
            reply = client.responses.parse(model="m", input="x", text_format=Colour)
            with client.responses.stream(model="m", input="x", text_format=Colour) as stream:
                for _ in stream:
                    pass
                return reply.output_parsed, stream.get_final_response().output_parsed

    with serving(app_of(service)) as port:
        assert await asyncio.to_thread(parse, port) == (Colour(colour="red"), Colour(colour="red"))
    wanted = service.requests[0].response_format
    assert wanted.kind == "json_schema"
    assert wanted.schema is not None
    assert wanted.schema["required"] == ["colour"]
