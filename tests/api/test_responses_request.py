"""The Responses API: from a body to a request, and what is refused with which words."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sightline.api.responses.items import read_items, seal
from sightline.api.responses.request import fit, refuse_contradictions, to_chat_request, to_response
from sightline.api.responses.schema import ResponsesBody, read_responses_body
from sightline.api.wire import encode
from sightline.config import HttpLimits
from sightline.errors import ContextLengthExceeded, SightlineError
from sightline.types import ChatRequest, ImageRef, Text, ToolCall, ToolChoice
from tests.api.nonsense import values
from tests.api.standin import HELLO, ScriptedService, app_of, post

LIMITS = HttpLimits()
DATA = "data:image/png;base64,AAAA"


def to_chat(raw: dict[str, Any] | None = None, /, **fields: Any) -> ChatRequest:
    body = read_responses_body({"model": "m", "input": "hi", **(raw or {}), **fields})
    refuse_contradictions(body)
    return to_chat_request(body, read_items(body.input, LIMITS), "r", "t")


def said(chat: ChatRequest) -> list[tuple[str, str]]:
    """Role and text of each message, a picture as `<url>`."""
    return [
        (m.role, "".join(p.text if isinstance(p, Text) else f"<{p.source!s}>" for p in m.content))
        for m in chat.messages
    ]


def test_a_string_is_a_user_and_instructions_come_first() -> None:
    assert said(to_chat(instructions="Be brief.")) == [("system", "Be brief."), ("user", "hi")]
    assert to_chat().tenant == "t"


def test_every_form_of_message() -> None:
    chat = to_chat(
        input=[
            {"role": "developer", "content": "a"},
            {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "b"}]},
            {"role": "user", "content": [{"type": "input_text", "text": "c"}, {"type": "input_text", "text": "d"}]},
            {
                "type": "message",
                "id": "msg_1",
                "status": "completed",
                "role": "assistant",
                "phase": "final_answer",
                "content": [
                    {"type": "output_text", "text": "e", "annotations": [], "logprobs": []},
                    {"type": "refusal", "refusal": "f"},
                ],
            },
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "secret"}]},
            {"role": "user", "content": "g", "type": None},
        ]
    )
    assert said(chat) == [("system", "a"), ("system", "b"), ("user", "cd"), ("assistant", "ef"), ("user", "g")]


def test_pictures_keep_their_place_their_detail_and_their_bounds() -> None:
    parts = [
        {"type": "input_image", "image_url": DATA, "detail": "high"},
        {"type": "input_text", "text": "and"},
        {"type": "input_image", "image_url": "https://h/x.png", "max_pixels": 50, "uuid": "u"},
    ]
    chat = to_chat(input=[{"role": "user", "content": "x"}, {"role": "user", "content": parts}], min_pixels=20)
    assert chat.images == (
        ImageRef(DATA, "input[1].content[0].image_url", "high", None, 20),
        ImageRef("https://h/x.png", "input[1].content[2].image_url", "auto", 50, 20, "u"),
    )


def call(n: int) -> dict[str, Any]:
    return {"type": "function_call", "call_id": f"call_{n}", "name": "f", "arguments": f'{{"n":{n}}}'}


def output(n: int, value: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": f"call_{n}", "output": value}


def test_calls_stand_in_one_message_and_pictures_of_outputs_after_all_of_these() -> None:
    seen = [{"type": "input_text", "text": "done"}, {"type": "input_image", "image_url": DATA}]
    chat = to_chat(
        input=[
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": "I call"},
            call(1),
            call(2),
            output(1, seen),
            output(2, "two"),
            {"role": "user", "content": "next"},
        ]
    )
    assert said(chat) == [
        ("user", "go"),
        ("assistant", "I call"),
        ("tool", "done"),
        ("tool", "two"),
        ("user", f"Pictures in the output of call_1:<{DATA}>"),
        ("user", "next"),
    ]
    assert chat.messages[1].tool_calls == (ToolCall("call_1", "f", '{"n":1}'), ToolCall("call_2", "f", '{"n":2}'))
    assert [m.tool_call_id for m in chat.messages[2:4]] == ["call_1", "call_2"]
    assert chat.images[0].param == "input[4].output[1].image_url"


def test_a_summary_is_what_the_assistant_remembers() -> None:
    item = {"type": "compaction", "id": "cmp_1", "encrypted_content": seal("They met in 日本.")}
    chat = to_chat(input=[item, {"role": "user", "content": "where?"}])
    remembered = "What was said before, in short: They met in 日本."
    assert said(chat) == [("assistant", remembered), ("user", "where?")]
    for wrong in ("x", "sightline1.?", "sightline1._w==", ""):
        with pytest.raises(SightlineError) as refused:
            to_chat(input=[{**item, "encrypted_content": wrong}])
        assert refused.value.param == "input[0].encrypted_content"


def test_what_is_said_after_a_call_does_not_part_it_from_its_output() -> None:
    chat = to_chat(input=[call(1), {"role": "assistant", "content": "wait"}, output(1, "x")])
    assert said(chat) == [("assistant", "wait"), ("tool", "x")]


def test_sampling() -> None:
    chat = to_chat(
        max_output_tokens=9, temperature=0.5, top_p=0.4, presence_penalty=1, frequency_penalty=-1, top_logprobs=3,
        top_k=7, min_p=0.1, repetition_penalty=1.1, min_tokens=2, ignore_eos=True, stop_token_ids=[5], priority=-3,
    )  # fmt: skip
    s = chat.sampling
    assert (s.max_tokens, s.temperature, s.top_p, s.presence_penalty, s.frequency_penalty) == (9, 0.5, 0.4, 1, -1)
    assert (s.logprobs, s.top_k, s.min_p, s.repetition_penalty, s.min_tokens) == (3, 7, 0.1, 1.1, 2)
    assert (s.ignore_eos, s.stop_token_ids, chat.priority) == (True, (5,), -3)
    assert to_chat().sampling.logprobs is None
    assert to_chat(include=["message.output_text.logprobs"]).sampling.logprobs == 0


TOOLS = [{"type": "function", "name": n, "parameters": {"type": "object"}, "strict": n == "f"} for n in "fgh"]


@pytest.mark.parametrize(
    ("choice", "wanted", "offered"),
    [
        (None, ToolChoice("auto"), "fgh"),
        ("none", ToolChoice("none"), "fgh"),
        ("required", ToolChoice("required"), "fgh"),
        ({"type": "function", "name": "g"}, ToolChoice("required", ("g",)), "fgh"),
        ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "g"}]},
         ToolChoice("auto"), "g"),
        ({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]},
         ToolChoice("required", ("g",)), "fgh"),
    ],
)  # fmt: skip
def test_tool_choice(choice: Any, wanted: ToolChoice, offered: str) -> None:
    chat = to_chat(tools=TOOLS, tool_choice=choice)
    assert chat.tool_choice == wanted
    assert "".join(t.name for t in chat.tools) == offered
    assert [t.strict for t in chat.tools] == [t.name == "f" for t in chat.tools]
    told = to_response(read_responses_body({"model": "m", "tools": TOOLS, "tool_choice": choice}), "r", 1)
    assert json.loads(encode(told.tool_choice)) == (choice or "auto")


def test_text_format() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    wanted = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    chat = to_chat(text={"format": wanted, "verbosity": "low"})
    assert (chat.response_format.kind, chat.response_format.schema) == ("json_schema", schema)
    assert to_chat(text={"format": {"type": "json_object"}}).response_format.kind == "json_object"
    assert to_chat(text={}).response_format.kind == "text"


IMAGE = {"type": "input_image", "image_url": DATA}


def parts(*parts: Any, role: str = "user") -> list[Any]:
    return [{"role": role, "content": list(parts)}]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": None}, "input", "Missing"),
        ({"input": []}, "input", "1 or more"),
        ({"input": 3}, "input", "a string or an array"),
        ({"model": ""}, "model", "empty"),
        ({"input": [3]}, "input[0]", "an object"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "one of"),
        ({"input": [{"role": "user"}]}, "input[0].content", "Missing"),
        ({"input": [{"type": "web_search_call", "id": "x"}]}, "input[0].type", "web_search_call"),
        ({"input": [{"type": "item_reference"}]}, "input[0].id", "Missing"),
        ({"input": parts({"type": "text", "text": "x"})}, "input[0].content[0].type", "one of"),
        ({"input": parts({"type": "input_text"})}, "input[0].content[0].text", "Missing"),
        ({"input": parts(IMAGE, role="system")}, "input[0].content[0].type", "the role 'system'"),
        ({"input": parts(IMAGE, role="assistant")}, "input[0].content[0].type", "the role 'assistant'"),
        ({"input": parts({"type": "output_text", "text": "x"})}, "input[0].content[0].type", "the role 'user'"),
        ({"input": parts({"type": "input_image"})}, "input[0].content[0].image_url", "Missing"),
        ({"input": parts({**IMAGE, "file_id": "file-1"})}, "input[0].content[0].file_id", "beside"),
        ({"input": parts({**IMAGE, "image_url": {"url": DATA}})}, "input[0].content[0].image_url", "a string"),
        ({"input": parts({**IMAGE, "detail": "huge"})}, "input[0].content[0].detail", "one of"),
        ({"input": parts({**IMAGE, "min_pixels": 9, "max_pixels": 5})}, "input[0].content[0].min_pixels", "above"),
        ({"input": parts(IMAGE), "min_pixels": 9, "max_pixels": 5}, "min_pixels", "above"),
        ({"input": parts({"type": "input_file", "file_id": "f"})}, "input[0].content[0].type", "Files are not read"),
        ({"input": [output(1, "x")]}, "input[0].call_id", "No tool call found"),
        ({"input": [call(1), output(1, [{"type": "input_file"}])]}, "input[1].output[0].type", "Files"),
        ({"input": [call(1), output(1, 5)]}, "input[1].output", "a string or an array"),
        ({"temperature": 3}, "temperature", "between 0 and 2"),
        ({"top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
        ({"include": ["everything"]}, "include[0]", "one of"),
        ({"truncation": "middle"}, "truncation", "one of"),
        ({"metadata": {"a": 1}}, "metadata.a", "a string"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "at most 16"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "Missing"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "Missing"),
        ({"tools": [*TOOLS, TOOLS[0]]}, "tools", "same name"),
        ({"tool_choice": "required"}, "tool_choice", "needs 'tools'"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "'x'"),
        ({"tools": TOOLS, "tool_choice": {"type": "file_search"}}, "tool_choice.type", "'file_search'"),
        ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
         "tool_choice.tools", "1 or more"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "'stream'"),
        ({"min_tokens": 5, "max_output_tokens": 4}, "min_tokens", "4"),
        ({"background": True, "store": False}, "background", "'store'"),
        ({"prompt": {"id": "p"}}, "prompt", "not kept"),
        ({"conversation": "c"}, "conversation", "previous_response_id"),
        ({"guided_json": {}}, "guided_json", "text.format"),
        ({"chat_template": "x"}, "chat_template", "own template"),
    ],
)  # fmt: skip
def test_what_is_refused(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(SightlineError) as refused:
        to_chat(fields)
    assert refused.value.param == param
    assert words in refused.value.message


def test_limits_count_items_and_parts() -> None:
    limits = HttpLimits(max_messages=3, max_parts=2)
    item = {"role": "user", "content": [{"type": "input_text", "text": "x"}]}
    with pytest.raises(SightlineError, match="at most 3 items"):
        read_items([item] * 4, limits)
    with pytest.raises(SightlineError, match="at most 2 content parts"):
        read_items([item] * 3, limits)
    with pytest.raises(SightlineError, match="at most 3 items, and has 2, with 2 more that came before"):
        read_items([item] * 2, limits, before=2)
    with pytest.raises(SightlineError, match="has 1, with 3 more"):
        read_items("x", limits, before=3)


def test_an_item_keeps_only_what_was_checked() -> None:
    """What a client writes where a stored picture's digest would stand is not what the store wrote."""
    sent = [{"role": "user", "content": [{**IMAGE, "sha256": "x", "other": {}}], "more": 1}]
    (placed,) = read_items(sent, LIMITS)
    assert set(placed.item) == {"type", "id", "status", "role", "content"}
    assert placed.item["content"] == [{**IMAGE, "detail": "auto"}]


# --- truncation ------------------------------------------------------------------------------------------------------


def conversation(turns: int) -> ChatRequest:
    items: list[Any] = []
    for n in range(turns):
        items += [{"role": "user", "content": f"q{n}"}, call(n), output(n, [IMAGE]), {"role": "user", "content": "so"},
                  {"role": "assistant", "content": f"a{n}"}]  # fmt: skip
    return to_chat(input=[*items, {"role": "user", "content": "last"}], instructions="keep me")


@pytest.mark.anyio
@pytest.mark.parametrize("room", [8, 9, 13, 14, 50, 200])
async def test_the_oldest_turns_go_until_the_rest_fits(room: int) -> None:
    """A turn is what a user asks and all that comes of it: a call and its output go together."""
    chat = conversation(9)
    measured = 0

    async def measure(asked: ChatRequest) -> None:
        nonlocal measured
        measured += 1
        if len(asked.messages) > room:
            raise ContextLengthExceeded("too long")

    fitted, dropped = await fit(chat, measure)
    assert len(fitted.messages) <= room
    assert len(fitted.messages) == len(chat.messages) - 6 * dropped
    assert dropped == 0 or len(fitted.messages) + 6 > room, "no more than had to be"
    assert said(fitted)[0] == ("system", "keep me")
    assert said(fitted)[-1] == ("user", "last")
    assert dropped == 9 or said(fitted)[1] == ("user", f"q{dropped}")
    assert measured <= 6


@pytest.mark.anyio
async def test_a_newest_turn_that_does_not_fit_is_refused() -> None:
    async def measure(asked: ChatRequest) -> None:
        raise ContextLengthExceeded("too long")

    for turns in (0, 1, 5):
        with pytest.raises(ContextLengthExceeded):
            await fit(conversation(turns), measure)


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_errors_of_the_service_name_this_dialects_fields() -> None:
    async def too_long(request: ChatRequest) -> Any:
        raise ContextLengthExceeded("The prompt is too long.")
        yield

    reply = await post(app_of(ScriptedService(too_long)), {"model": "m", "input": "x"}, "/v1/responses")
    assert reply.status == 400
    assert reply.json["error"]["param"] == "input"
    assert reply.json["error"]["code"] == "context_length_exceeded"
    reply = await post(app_of(ScriptedService(HELLO)), b"{", "/v1/responses")
    assert reply.status == 400
    assert reply.json["error"]["type"] == "invalid_request_error"


# --- any body --------------------------------------------------------------------------------------------------------

_SAID = [
    "user", "assistant", "message", "function_call", "function_call_output", "reasoning", "item_reference", "auto",
    "input_text", "input_image", "output_text", "refusal", "required", "json_schema", "allowed_tools", "function", "x",
    "f", "call_1", "", DATA
]  # fmt: skip
_KEYS = [
    "type", "id", "role", "content", "text", "image_url", "detail", "refusal", "call_id", "name", "arguments",
    "output", "summary", "mode", "tools", "schema", "format", "effort", "status"
]  # fmt: skip
_WORDS = st.sampled_from(_SAID)
_VALUES = values(_SAID, _KEYS)
_PARTS = st.fixed_dictionaries({"type": _WORDS}, optional={"text": _WORDS, "image_url": _WORDS, "refusal": _WORDS})
_ITEMS = st.fixed_dictionaries(
    {"type": _WORDS},
    optional={"id": _VALUES, "role": _WORDS, "content": st.lists(_PARTS, max_size=2) | _VALUES, "call_id": _WORDS,
              "name": _WORDS, "arguments": _WORDS, "output": st.lists(_PARTS, max_size=2) | _VALUES},
)  # fmt: skip
_FIELDS = st.sampled_from([field for field in ResponsesBody.__struct_fields__ if field != "model"])


@given(st.dictionaries(_FIELDS, _VALUES, max_size=4), st.lists(_ITEMS, max_size=3))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_is_a_bug(fields: dict[str, Any], items: list[Any]) -> None:
    body = {"model": "m", "input": items or "x", **fields}
    app = app_of(ScriptedService())

    async def run() -> None:
        for path in ("/v1/responses", "/v1/responses/input_tokens"):
            reply = await post(app, body, path)
            assert reply.status in (200, 400, 404), reply.body
            assert reply.status == 200 or reply.json["error"]["type"] == "invalid_request_error"

    asyncio.run(run())
