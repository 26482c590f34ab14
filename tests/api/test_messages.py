"""Anthropic's messages on the wire: the order of events, every field, errors, clients that leave."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sightline import errors as e
from sightline.api.messages.reply import INVALID_JSON, to_error
from sightline.api.wire import encode
from sightline.models import ModelStatus
from sightline.types import (
    Finish,
    ImageRef,
    ReasoningDelta,
    RefusalDelta,
    ResponseFormat,
    Text,
    TextDelta,
    ToolCallDelta,
    ToolChoice,
    Usage,
)
from tests.api.nonsense import values
from tests.api.standin import (
    FINISH,
    INFO,
    JSON_HEADERS,
    Call,
    Reply,
    Script,
    ScriptedService,
    app_of,
    get,
    post,
    request_of,
    say,
)
from tests.api.test_api_errors import classes
from tests.api.test_streams import endless, silence, stalled, until

pytestmark = pytest.mark.anyio

PATH = "/v1/messages"
STATUS = ModelStatus("m", "ready", "scripted", 1741570283, INFO)
TOOL = {"name": "f", "description": "Does.", "input_schema": {"type": "object"}}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}}


def ask(content: Any = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": content}], **fields}


async def send(body: Any, service: ScriptedService | None = None, path: str = PATH, **headers: str) -> Reply:
    return await post(app_of(service or ScriptedService()), body, path, **headers)


async def asked(body: dict[str, Any], path: str = PATH) -> Any:
    return await request_of(body, path)


def events(reply: Reply) -> list[dict[str, Any]]:
    """Of a stream, each held against the name that it was sent under."""
    blocks = reply.body.decode().split("\n\n")
    assert blocks.pop() == ""
    told = []
    for block in blocks:
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        told.append(value)
    return told


# --- the reply -------------------------------------------------------------------------------------------------------


async def test_an_answer_in_one_piece_has_every_field() -> None:
    reply = await send(ask())
    message = reply.json
    assert message.pop("id").startswith("msg_")
    assert message == {
        "type": "message",
        "role": "assistant",
        "model": "m",
        "content": [{"type": "text", "text": "A cat"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        # Together the 20 tokens of the prompt, of which 16 were at hand.
        "usage": {
            "input_tokens": 4, "output_tokens": 3, "cache_read_input_tokens": 16, "cache_creation_input_tokens": 0
        },
    }  # fmt: skip
    assert reply.headers["request-id"] == reply.headers["x-request-id"]
    assert reply.headers["x-sightline-engine"] == "scripted"


SPOKEN: Script = say(
    ReasoningDelta("h"),
    ReasoningDelta("m"),
    TextDelta("A "),
    TextDelta("", 1),
    TextDelta("cat"),
    ToolCallDelta(0, "", id="call_0", name="f"),
    ToolCallDelta(0, '{"a"'),
    ToolCallDelta(0, ": 1}"),
    ToolCallDelta(1, "{}", id="call_1", name="g"),
    Finish("tool_calls", Usage(20, 9, cached_tokens=16, reasoning_tokens=2)),
)


async def test_the_order_of_events() -> None:
    reply = await send(ask(stream=True), ScriptedService(SPOKEN))
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["request-id"] == reply.headers["x-request-id"]
    start, *rest = events(reply)
    assert start["message"].pop("id").startswith("msg_")
    usage = {"input_tokens": 20, "output_tokens": 0, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0}
    assert start == {
        "type": "message_start",
        "message": {
            "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": usage,
        },
    }  # fmt: skip

    def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"type": "content_block_start", "index": index, "content_block": content},
            *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
            {"type": "content_block_stop", "index": index},
        ]

    assert rest == [
        *block(0, {"type": "thinking", "thinking": "", "signature": ""},
               {"type": "thinking_delta", "thinking": "h"}, {"type": "thinking_delta", "thinking": "m"},
               {"type": "signature_delta", "signature": ""}),
        *block(1, {"type": "text", "text": ""},
               {"type": "text_delta", "text": "A "}, {"type": "text_delta", "text": "cat"}),
        *block(2, {"type": "tool_use", "id": "call_0", "name": "f", "input": {}},
               {"type": "input_json_delta", "partial_json": '{"a"'},
               {"type": "input_json_delta", "partial_json": ": 1}"}),
        *block(3, {"type": "tool_use", "id": "call_1", "name": "g", "input": {}},
               {"type": "input_json_delta", "partial_json": "{}"}),
        {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None},
         "usage": {"input_tokens": 4, "output_tokens": 9, "cache_read_input_tokens": 16,
                   "cache_creation_input_tokens": 0, "output_tokens_details": {"thinking_tokens": 2}}},
        {"type": "message_stop"},
    ]  # fmt: skip


async def test_the_whole_answer_has_the_blocks_of_the_stream() -> None:
    message = (await send(ask(), ScriptedService(SPOKEN))).json
    assert message["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": ""},
        {"type": "text", "text": "A cat"},
        {"type": "tool_use", "id": "call_0", "name": "f", "input": {"a": 1}},
        {"type": "tool_use", "id": "call_1", "name": "g", "input": {}},
    ]
    assert message["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("thinking", "shown"),
    [({"type": "adaptive"}, True), ({"type": "adaptive", "display": "omitted"}, False), ({"type": "disabled"}, False)],
)
async def test_thoughts_are_shown_as_wanted(thinking: Any, shown: bool) -> None:
    whole = (await send(ask(thinking=thinking), ScriptedService(SPOKEN))).json
    assert ("thinking" in [block["type"] for block in whole["content"]]) is shown
    streamed = events(await send(ask(thinking=thinking, stream=True), ScriptedService(SPOKEN)))
    begun = [event for event in streamed if event["type"] == "content_block_start"]
    assert ("thinking" in [event["content_block"]["type"] for event in begun]) is shown
    assert [event["index"] for event in begun] == list(range(len(begun)))


@pytest.mark.parametrize(
    ("finish", "reason", "sequence"),
    [
        (Finish("stop", Usage(1, 1)), "end_turn", None),
        (Finish("stop", Usage(1, 1), stop_sequence="X"), "stop_sequence", "X"),
        (Finish("length", Usage(1, 10)), "max_tokens", None),
        (Finish("length", Usage(1, 9)), "model_context_window_exceeded", None),
        (Finish("tool_calls", Usage(1, 1)), "tool_use", None),
        (Finish("content_filter", Usage(1, 1)), "refusal", None),
    ],
)
async def test_why_it_stopped(finish: Finish, reason: str, sequence: str | None) -> None:
    service = ScriptedService(say(TextDelta("x"), finish))
    message = (await send(ask(), service)).json
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    delta = events(await send(ask(stream=True), service))[-2]["delta"]
    assert delta == {"stop_reason": reason, "stop_sequence": sequence}


async def test_a_refusal_is_told_and_said() -> None:
    service = ScriptedService(say(RefusalDelta("I "), RefusalDelta("won't"), FINISH))
    message = (await send(ask(), service)).json
    assert message["content"] == [{"type": "text", "text": "I won't"}]
    assert message["stop_reason"] == "refusal"
    assert events(await send(ask(stream=True), service))[-2]["delta"]["stop_reason"] == "refusal"


async def test_arguments_that_are_no_object_are_shown_as_they_are() -> None:
    cut = say(ToolCallDelta(0, '{"a": "b', id="call_0", name="f"), Finish("length", Usage(1, 10)))
    message = (await send(ask(), ScriptedService(cut))).json
    assert message["content"][0]["input"] == {INVALID_JSON: '{"a": "b'}
    assert message["stop_reason"] == "max_tokens"


async def test_a_late_fault_ends_the_stream_with_an_error_and_nothing_after_it() -> None:
    async def script(request: Any) -> Any:
        async for item in say(TextDelta("x"))(request):
            yield item
        raise e.Overloaded("Too much.")

    reply = await send(ask(stream=True), ScriptedService(script))
    assert reply.status == 200
    assert reply.complete
    *_, last = told = events(reply)
    request_id = reply.headers["x-request-id"]
    assert last == {
        "type": "error",
        "error": {"type": "overloaded_error", "message": "Too much."},
        "request_id": request_id,
    }
    assert [event["type"] for event in told[:-1]] == ["message_start", "content_block_start", "content_block_delta"]


async def test_calls_that_the_model_mixes_cannot_be_streamed() -> None:
    mixed = say(
        ToolCallDelta(0, "{", id="a", name="f"), ToolCallDelta(1, "{", id="b", name="f"), ToolCallDelta(0, "}"), FINISH
    )
    last = events(await send(ask(stream=True), ScriptedService(mixed)))[-1]
    assert last["error"]["type"] == "api_error"


async def test_counting() -> None:
    service = ScriptedService()
    reply = await send({k: v for k, v in ask().items() if k != "max_tokens"}, service, f"{PATH}/count_tokens")
    assert reply.json == {"input_tokens": 20}
    assert reply.headers["request-id"]
    assert service.requests[0].sampling.max_tokens is None


# --- the request -----------------------------------------------------------------------------------------------------


async def test_what_a_request_says_reaches_the_service() -> None:
    request = await asked(
        ask(
            temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["a", "b"], metadata={"user_id": "u"}, system="Be.",
            service_tier="auto", cache_control={"type": "ephemeral"}, tools=[TOOL],
            tool_choice={"type": "tool", "name": "f", "disable_parallel_tool_use": True},
            output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        )
    )  # fmt: skip
    s = request.sampling
    assert (s.max_tokens, s.temperature, s.top_p, s.top_k, s.stop) == (10, 0.5, 0.9, 5, ("a", "b"))
    assert request.tools[0].parameters == {"type": "object"}
    assert request.tools[0].param == "tools[0].input_schema"
    assert request.tool_choice == ToolChoice("required", ("f",), parallel=False)
    assert request.response_format == ResponseFormat(
        "json_schema", {"type": "object"}, strict=True, param="output_config.format.schema"
    )
    assert [(m.role, m.content) for m in request.messages] == [("system", (Text("Be."),)), ("user", (Text("hi"),))]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (None, ToolChoice("auto")),
        ({"type": "auto"}, ToolChoice("auto")),
        ({"type": "any"}, ToolChoice("required")),
        ({"type": "none"}, ToolChoice("none")),
        ({"type": "tool", "name": "f"}, ToolChoice("required", ("f",))),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice("auto", parallel=False)),
    ],
)
async def test_the_choice_of_tools(choice: Any, expected: ToolChoice) -> None:
    assert (await asked(ask(tools=[TOOL], tool_choice=choice))).tool_choice == expected


async def test_a_conversation_with_tools_and_pictures() -> None:
    turns = [
        {"role": "user", "content": [PNG, {"type": "text", "text": "?", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "Let me see."}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": "é"}},
            {"type": "tool_use", "id": "t2", "name": "f", "input": {}}]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "t1", "content": [
                {"type": "text", "text": "see"}, {"type": "image", "source": {"type": "url", "url": "https://h/x.png"}}
            ]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "broke", "is_error": True},
            {"type": "text", "text": "So?"}]},
    ]  # fmt: skip
    system = [{"type": "text", "text": "A"}, {"type": "text", "text": "B"}]
    request = await asked(ask(messages=turns, system=system, tools=[TOOL]))
    assert [m.role for m in request.messages] == ["system", "user", "assistant", "tool", "tool", "user"]
    told, first, called, seen, broken, then = request.messages
    assert told.content == (Text("A"), Text("B"))
    assert first.content == (ImageRef("data:;base64,iVBO", "messages[0].content[0].source.data"), Text("?"))
    assert called.content == (Text("Let me see."),)
    assert [(c.id, c.name, json.loads(c.arguments)) for c in called.tool_calls] == [("t1", "f", {"a": "é"}),
                                                                                 ("t2", "f", {})]  # fmt: skip
    place = "messages[2].content[0].content[1].source.url"
    assert (seen.tool_call_id, seen.content) == ("t1", (Text("see"), ImageRef("https://h/x.png", place)))
    assert (broken.tool_call_id, broken.content) == ("t2", (Text("Error: "), Text("broke")))
    assert then.content == (Text("So?"),)


@pytest.mark.parametrize("system", ["", [], None])
async def test_an_empty_system_prompt_is_none(system: Any) -> None:
    assert [m.role for m in (await asked(ask(system=system))).messages] == ["user"]


def user(*blocks: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(blocks)}]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"), ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": "9"}, "max_tokens"),
        ({"model": 1}, "model"), ({"messages": []}, "messages"), ({"messages": "hi"}, "messages"),
        ({"temperature": 1.5}, "temperature"), ({"top_p": -1}, "top_p"), ({"top_k": 1.5}, "top_k"),
        ({"stop_sequences": "x"}, "stop_sequences"), ({"stop_sequences": [""]}, "stop_sequences[0]"),
        ({"stream": 1}, "stream"), ({"metadata": {"user_id": 1}}, "metadata.user_id"), ({"system": 1}, "system"),
        ({"system": [PNG]}, "system[0].type"), ({"system": [{"type": "text"}]}, "system[0].text"),
        ({"tools": [{"name": "f"}]}, "tools[0].input_schema"), ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.type"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"), ({"thinking": True}, "thinking"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"service_tier": "fast"}, "service_tier"), ({"container": "c"}, "container"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"messages": [1]}, "messages[0]"), ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"), ({"messages": user()}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": user("x")}, "messages[0].content[0]"), ({"messages": user({})}, "messages[0].content[0].type"),
        ({"messages": user({"type": "document", "source": {}})}, "messages[0].content[0].type"),
        ({"messages": user({"type": "search_result"})}, "messages[0].content[0].type"),
        ({"messages": user({"type": "tool_use", "id": "a", "name": "f", "input": {}})}, "messages[0].content[0].type"),
        ({"messages": user({"type": "tool_result", "tool_use_id": "t"})}, "messages[0].content[0].tool_use_id"),
        ({"messages": user({"type": "image"})}, "messages[0].content[0].source"),
        ({"messages": user({"type": "image", "source": {"type": "base64"}})}, "messages[0].content[0].source.data"),
        ({"messages": user({"type": "image", "source": {"type": "url"}})}, "messages[0].content[0].source.url"),
        ({"messages": user({"type": "image", "source": {"type": "file"}})}, "messages[0].content[0].source.file_id"),
        ({"messages": user({**PNG, "transformations": {"oversized_image": "error"}})},
         "messages[0].content[0].transformations.oversized_image"),
        ({"messages": [*user(PNG), {"role": "assistant", "content": [PNG]}]}, "messages[1].content[0].type"),
        ({"messages": [*user(PNG), {"role": "assistant", "content": "I"}]}, "messages[1].role"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(fields: dict[str, Any], named: str) -> None:
    service = ScriptedService()
    reply = await send(ask(**fields), service)
    assert reply.status == 400
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert named in reply.json["error"]["message"]
    assert not service.requests


@pytest.mark.parametrize(
    ("version", "status"),
    [("2023-06-01", 200), ("2026-10-21", 200), ("2023-01-01", 400), ("latest", 400), ("", 400), ("20230601", 400)],
)
async def test_the_version_of_the_api(version: str, status: int) -> None:
    reply = await send(ask(), anthropic_version=version)
    assert reply.status == status
    assert status == 200 or "anthropic-version" in reply.json["error"]["message"]


async def test_a_key_may_come_under_either_name() -> None:
    assert (await send(ask(), x_api_key="secret")).status == 200
    assert (await send(ask(), authorization="Bearer secret")).status == 200


# --- models ----------------------------------------------------------------------------------------------------------


async def models(query: str = "", name: str = "") -> Reply:
    app = app_of(ScriptedService(statuses=tuple(replace(STATUS, name=n) for n in "abcde")))
    call = Call("GET", f"/v1/models{name}", headers={"host": "localhost", "anthropic-version": "2023-06-01"})
    call.query = query
    return await call.run(app)


async def test_models_have_anthropics_shape_for_its_clients() -> None:
    expected = {
        "type": "model", "id": "a", "display_name": "a", "created_at": "2025-03-10T01:31:23Z", "lifecycle": "active",
        "max_input_tokens": 100, "max_tokens": 100,
    }  # fmt: skip
    reply = await models()
    assert reply.headers["request-id"]
    page = reply.json
    assert page["data"][0] == expected
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "a", "e")
    assert (await models(name="/a")).json == expected
    others = await get(app_of(ScriptedService()), "/v1/models")
    assert others.json["object"] == "list", "OpenAI's clients send no such header"


@pytest.mark.parametrize(
    ("query", "ids", "more"),
    [
        ("limit=2", "ab", True), ("limit=2&after_id=b", "cd", True), ("limit=2&after_id=d", "e", False),
        ("after_id=e", "", False), ("limit=2&before_id=d", "bc", True), ("before_id=c", "ab", False),
        ("before_id=a", "", False), ("limit=5", "abcde", False),
    ],
)  # fmt: skip
async def test_pages_of_models(query: str, ids: str, more: bool) -> None:
    page = (await models(query)).json
    assert ("".join(model["id"] for model in page["data"]), page["has_more"]) == (ids, more)
    assert (page["first_id"], page["last_id"]) == ((ids[0], ids[-1]) if ids else (None, None))


@pytest.mark.parametrize(
    ("query", "name", "status", "kind", "named"),
    [
        ("limit=0", "", 400, "invalid_request_error", "limit"),
        ("limit=x", "", 400, "invalid_request_error", "limit"),
        ("limit=1001", "", 400, "invalid_request_error", "limit"),
        ("after_id=z", "", 400, "invalid_request_error", "after_id"),
        ("before_id=z", "", 400, "invalid_request_error", "before_id"),
        ("", "/z", 404, "not_found_error", "'z'"),
    ],
)
async def test_what_is_wrong_about_models(query: str, name: str, status: int, kind: str, named: str) -> None:
    reply = await models(query, name)
    assert (reply.status, reply.json["error"]["type"]) == (status, kind)
    assert named in reply.json["error"]["message"]


# --- errors ----------------------------------------------------------------------------------------------------------

DOCUMENTED = {
    400: "invalid_request_error", 401: "authentication_error", 402: "billing_error", 403: "permission_error",
    404: "not_found_error", 413: "request_too_large", 429: "rate_limit_error", 500: "api_error", 504: "timeout_error",
    529: "overloaded_error",
}  # fmt: skip
OTHERS = {422: "invalid_request_error", 507: "api_error"}
"""Of errors that no route of this API meets; told by their class all the same."""


@pytest.mark.parametrize("cls", [c for c in classes() if c.__module__ == "sightline.errors"])
async def test_every_error_has_a_documented_status_and_type(cls: type[e.SightlineError]) -> None:
    async def script(request: Any) -> Any:
        raise cls("Something is wrong.")
        yield

    reply = await send(ask(), ScriptedService(script))
    assert reply.json["error"]["type"] == (DOCUMENTED | OTHERS)[reply.status]
    assert reply.json["error"]["message"].endswith("Something is wrong.")
    assert list(reply.json) == ["type", "error", "request_id"]
    assert reply.json["type"] == "error"
    assert reply.json["request_id"] == reply.headers["request-id"] == reply.headers["x-request-id"]
    assert ("retry-after" in reply.headers) == (reply.status in (429, 529) and cls.retryable)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "kind"),
    [
        ("POST", PATH, b"{", {}, 400, "invalid_request_error"),
        ("POST", PATH, b'{"model": NaN}', {}, 400, "invalid_request_error"),
        ("POST", PATH, b"[]", {}, 400, "invalid_request_error"),
        ("POST", PATH, b"{}", {"content-type": "text/plain"}, 415, "invalid_request_error"),
        ("POST", PATH, b" " * 2000, {}, 413, "request_too_large"),
        ("GET", PATH, b"", {}, 405, "invalid_request_error"),
        ("POST", f"{PATH}/batches", b"{}", {}, 404, "not_found_error"),
        ("GET", f"{PATH}/count_tokens", b"", {}, 405, "invalid_request_error"),
        ("POST", PATH, b"{}", {"host": "evil.example"}, 421, "invalid_request_error"),
    ],
)  # fmt: skip
async def test_faults_of_http_have_its_shape(
    method: str, path: str, body: bytes, headers: dict[str, str], status: int, kind: str
) -> None:
    app = app_of(ScriptedService(), max_body_bytes=1000)
    reply = await Call(method, path, body, {**JSON_HEADERS, **headers}).run(app)
    assert (reply.status, reply.json["type"], reply.json["error"]["type"]) == (status, "error", kind)
    assert ("allow" in reply.headers) == (status == 405)
    others = await get(app, "/v1/messagesx")
    assert "param" in others.json["error"], "the next path is OpenAI's"


def test_a_bug_says_nothing_but_the_requests_id() -> None:
    told = json.loads(encode(to_error(ValueError("secret"), "req_1")))
    assert told["error"]["type"] == "api_error"
    assert "req_1" in told["error"]["message"]
    assert "secret" not in told["error"]["message"]


async def test_what_an_engine_lacks_is_told_in_this_apis_words() -> None:
    async def script(request: Any) -> Any:
        raise e.UnsupportedFeature("The engine 'x' does not support response_format.", param="response_format")
        yield

    reply = await send(ask(), ScriptedService(script))
    assert reply.json["error"]["message"] == "The engine 'x' does not support output_config.format."


# --- clients that leave ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "stream"), [(silence, True), (silence, False), (endless, True), (stalled, True)])
async def test_leaving_frees_what_the_request_holds(script: Script, stream: bool) -> None:
    service = ScriptedService(script)
    call = Call("POST", PATH, json.dumps(ask(stream=stream)).encode(), dict(JSON_HEADERS))
    running = asyncio.create_task(call.run(app_of(service)))
    await until(lambda: service.open == 1)
    if script is not silence:
        await until(lambda: b"text_delta" in call.reply.body)
    call.left.set()
    await until(lambda: service.open == 0, within_s=1)
    await running


async def test_pings_are_events_of_their_own() -> None:
    call = Call("POST", PATH, json.dumps(ask(stream=True)).encode(), dict(JSON_HEADERS))
    running = asyncio.create_task(call.run(app_of(ScriptedService(stalled), keepalive_s=0.01)))
    await until(lambda: call.reply.body.count(b"event: ping") == 2)
    assert call.reply.body.endswith(b'event: ping\ndata: {"type":"ping"}\n\n')
    call.left.set()
    await running


# --- any body --------------------------------------------------------------------------------------------------------

_SAID = [
    "text", "image", "tool_use", "tool_result", "thinking", "document", "user", "assistant", "system", "base64", "url",
    "auto", "any", "tool", "none", "adaptive", "disabled", "json_schema", "t", "f"
]  # fmt: skip
_KEYS = [
    "type", "role", "content", "text", "source", "data", "url", "media_type", "id", "tool_use_id", "name", "input",
    "input_schema", "is_error", "thinking", "signature", "format", "schema", "display", "user_id"
]  # fmt: skip
_WORDS = st.sampled_from(_SAID)
_VALUES = values(_SAID, _KEYS)
_FIELDS = st.sampled_from(
    ["model", "messages", "max_tokens", "system", "tools", "tool_choice", "thinking", "output_config", "metadata",
     "stop_sequences", "temperature", "top_p", "top_k", "stream", "service_tier", "container"]
)  # fmt: skip
_BLOCKS = st.fixed_dictionaries({"type": _WORDS}, optional={
    "text": _VALUES, "source": _VALUES, "tool_use_id": _VALUES, "content": _VALUES, "id": _VALUES, "name": _VALUES,
    "input": _VALUES})  # fmt: skip
_TURNS = st.fixed_dictionaries({"role": _WORDS, "content": _VALUES | st.lists(_BLOCKS, max_size=3)})


@given(st.dictionaries(_FIELDS, _VALUES, max_size=4), st.lists(_TURNS, max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_is_a_bug(fields: dict[str, Any], turns: list[Any]) -> None:
    body = {**ask(), **({"messages": turns} if turns else {}), **fields}
    app = app_of(ScriptedService())

    async def run() -> None:
        for path in (PATH, f"{PATH}/count_tokens"):
            reply = await post(app, body, path)
            assert reply.status in (200, 400)
            assert reply.status == 200 or reply.json["error"]["type"] == "invalid_request_error"

    asyncio.run(run())
