"""What a body becomes, and every way in which it can be wrong: status, code and the place at fault."""

from __future__ import annotations

from typing import Any

import pytest

from sightline.api.chat.routes import read_chat_body, to_chat_request
from sightline.api.chat.schema import ChatBody
from sightline.config import HttpLimits
from sightline.errors import ImageForbidden, InvalidRequest
from sightline.types import (
    ChatRequest,
    ImageRef,
    Message,
    ResponseFormat,
    SamplingParams,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
)
from tests.api.standin import ScriptedService, app_of, chat, post

DATA_URL = "data:image/png;base64,iVBORw0KGgo="
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "g"}}
USER = {"role": "user", "content": "hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

MISSING = "missing_required_parameter"
TYPE = "invalid_type"
UNSUPPORTED = "unsupported_parameter"


def parts(*content: Any, role: str = "user") -> dict[str, Any]:
    return chat(messages=[{"role": role, "content": list(content)}])


def picture(**part: Any) -> dict[str, Any]:
    return parts({"type": "image_url", "image_url": {"url": DATA_URL}, **part})


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in chat().items() if k != key}


def schema_format(**json_schema: Any) -> dict[str, Any]:
    return chat(response_format={"type": "json_schema", "json_schema": json_schema})


def tools(*values: Any, **fields: Any) -> dict[str, Any]:
    return chat(tools=list(values), **fields)


M0 = "messages[0]"
P0 = "messages[0].content[0]"

BAD: list[tuple[dict[str, Any], str | None, str]] = [
    # model and messages
    (without("model"), MISSING, "model"),
    (chat(model=None), TYPE, "model"),
    (chat(model=1), TYPE, "model"),
    (chat(model=["m"]), TYPE, "model"),
    (chat(model=""), None, "model"),
    (without("messages"), MISSING, "messages"),
    (chat(messages=None), TYPE, "messages"),
    (chat(messages="hi"), TYPE, "messages"),
    (chat(messages={}), TYPE, "messages"),
    (chat(messages=[]), None, "messages"),
    (chat(messages=[USER] * 1001), None, "messages"),
    (parts(*[{"type": "text", "text": "x"}] * 2001), None, "messages"),
    (chat(messages=["hi"]), TYPE, M0),
    (chat(messages=[USER, None]), TYPE, "messages[1]"),
    (chat(messages=[{"content": "hi"}]), MISSING, f"{M0}.role"),
    (chat(messages=[{"role": 1, "content": "hi"}]), TYPE, f"{M0}.role"),
    (chat(messages=[{"role": "wizard", "content": "hi"}]), None, f"{M0}.role"),
    (chat(messages=[{"role": "user"}]), MISSING, f"{M0}.content"),
    (chat(messages=[{"role": "user", "content": None}]), TYPE, f"{M0}.content"),
    (chat(messages=[{"role": "user", "content": 1}]), TYPE, f"{M0}.content"),
    (chat(messages=[{"role": "user", "content": {}}]), TYPE, f"{M0}.content"),
    (chat(messages=[{"role": "user", "content": []}]), None, f"{M0}.content"),
    (chat(messages=[{"role": "system", "content": None}]), TYPE, f"{M0}.content"),
    (chat(messages=[{"role": "assistant"}]), MISSING, f"{M0}.content"),
    (chat(messages=[{"role": "assistant", "content": None}]), TYPE, f"{M0}.content"),
    (chat(messages=[{"role": "user", "content": "x", "name": 1}]), TYPE, f"{M0}.name"),
    (chat(messages=[{"role": "tool", "content": "x"}]), MISSING, f"{M0}.tool_call_id"),
    (chat(messages=[{"role": "tool", "content": "x", "tool_call_id": 1}]), TYPE, f"{M0}.tool_call_id"),
    (chat(messages=[{"role": "user", "content": "x", "tool_calls": [CALL]}]), None, f"{M0}.tool_calls"),
    (chat(messages=[{"role": "assistant", "tool_calls": CALL}]), TYPE, f"{M0}.tool_calls"),
    (chat(messages=[{"role": "assistant", "tool_calls": [{**CALL, "id": None}]}]), TYPE, f"{M0}.tool_calls[0].id"),
    (
        chat(messages=[{"role": "assistant", "tool_calls": [{**CALL, "type": "custom"}]}]),
        None,
        f"{M0}.tool_calls[0].type",
    ),
    (
        chat(messages=[{"role": "assistant", "tool_calls": [{**CALL, "function": {"name": "f", "arguments": {}}}]}]),
        TYPE,
        f"{M0}.tool_calls[0].function.arguments",
    ),
    (chat(messages=[{"role": "assistant", "content": "x", "function_call": {}}]), UNSUPPORTED, f"{M0}.function_call"),
    (chat(messages=[{"role": "assistant", "content": "x", "audio": {"id": "a"}}]), UNSUPPORTED, f"{M0}.audio"),
    # parts
    (parts("hi"), TYPE, P0),
    (parts({"text": "hi"}), MISSING, f"{P0}.type"),
    (parts({"type": 1}), TYPE, f"{P0}.type"),
    (parts({"type": "video_url", "video_url": {"url": "x"}}), None, f"{P0}.type"),
    (parts({"type": "text"}), MISSING, f"{P0}.text"),
    (parts({"type": "text", "text": 1}), TYPE, f"{P0}.text"),
    (parts({"type": "refusal", "refusal": "no"}), None, f"{P0}.type"),
    (parts({"type": "image_url", "image_url": DATA_URL}, role="system"), None, f"{P0}.type"),
    (parts({"type": "image_url", "image_url": DATA_URL}, role="developer"), None, f"{P0}.type"),
    (parts({"type": "image_url", "image_url": DATA_URL}, role="assistant"), None, f"{P0}.type"),
    (parts({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}), UNSUPPORTED, f"{P0}.type"),
    (parts({"type": "file", "file": {"filename": "a.pdf", "file_data": "x"}}), UNSUPPORTED, f"{P0}.type"),
    (parts({"type": "file", "file": {"file_id": 1}}), TYPE, f"{P0}.file.file_id"),
    (parts({"type": "image_url", "image_url": {"file_id": "f", "url": DATA_URL}}), None, f"{P0}.image_url.file_id"),
    (parts({"type": "image_url", "image_url": DATA_URL, "file_id": "file-1"}), None, f"{P0}.file_id"),
    (parts({"type": "image", "image": DATA_URL, "image_url": DATA_URL}), None, f"{P0}.image_url"),
    (parts({"type": "image_url", "image": DATA_URL, "image_url": {"url": DATA_URL}}), None, f"{P0}.image"),
    (parts({"type": "image_url"}), MISSING, f"{P0}.image_url"),
    (parts({"type": "image_url", "image_url": None}), MISSING, f"{P0}.image_url"),
    (parts({"type": "image_url", "image_url": 1}), TYPE, f"{P0}.image_url"),
    (parts({"type": "image_url", "image_url": ""}), None, f"{P0}.image_url"),
    (parts({"type": "image_url", "image_url": {}}), MISSING, f"{P0}.image_url.url"),
    (
        parts({"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": 1}}),
        TYPE,
        "messages[0].content[1].image_url.url",
    ),
    (parts({"type": "image_url", "image_url": {"url": DATA_URL, "detail": "huge"}}), None, f"{P0}.image_url.detail"),
    (parts({"type": "image"}), MISSING, f"{P0}.image"),
    (parts({"type": "image", "image": {"url": DATA_URL}}), TYPE, f"{P0}.image"),
    (parts({"type": "image", "image": "/etc/passwd"}), "invalid_image_url", f"{P0}.image"),
    (parts({"type": "image", "image": "file:///etc/passwd"}), "invalid_image_url", f"{P0}.image"),
    (parts({"type": "image", "image": "../../secret.png"}), "invalid_image_url", f"{P0}.image"),
    (parts({"type": "image", "image": "C:\\cat.png"}), "invalid_image_url", f"{P0}.image"),
    (parts({"type": "image", "image": "pictures/cat.png"}), "invalid_image_url", f"{P0}.image"),
    (picture(max_pixels=0), None, f"{P0}.max_pixels"),
    (picture(max_pixels=1.5), TYPE, f"{P0}.max_pixels"),
    (picture(min_pixels="1"), TYPE, f"{P0}.min_pixels"),
    (picture(min_pixels=200, max_pixels=100), None, f"{P0}.min_pixels"),
    (picture(uuid=1), TYPE, f"{P0}.uuid"),
    (picture(uuid="x" * 257), None, f"{P0}.uuid"),
    ({**picture(), "min_pixels": 200, "max_pixels": 100}, None, "min_pixels"),
    # sampling
    (chat(temperature="hot"), TYPE, "temperature"),
    (chat(temperature=True), TYPE, "temperature"),
    (chat(temperature=-0.1), None, "temperature"),
    (chat(temperature=2.1), None, "temperature"),
    (chat(top_p=1.01), None, "top_p"),
    (chat(top_p=-1), None, "top_p"),
    (chat(presence_penalty=2.5), None, "presence_penalty"),
    (chat(frequency_penalty=-2.5), None, "frequency_penalty"),
    (chat(repetition_penalty=0), None, "repetition_penalty"),
    (chat(min_p=1.5), None, "min_p"),
    (chat(top_k=-2), None, "top_k"),
    (chat(top_k=1.5), TYPE, "top_k"),
    (chat(n=0), None, "n"),
    (chat(n=9), None, "n"),
    (chat(n=1.0), TYPE, "n"),
    (chat(n=True), TYPE, "n"),
    (chat(max_tokens=0), None, "max_tokens"),
    (chat(max_tokens="1"), TYPE, "max_tokens"),
    (chat(max_completion_tokens=0), None, "max_completion_tokens"),
    (chat(max_completion_tokens=-1), None, "max_completion_tokens"),
    (chat(min_tokens=-1), None, "min_tokens"),
    (chat(min_tokens=5, max_tokens=4), None, "min_tokens"),
    (chat(ignore_eos="yes"), TYPE, "ignore_eos"),
    (chat(stop_token_ids=5), TYPE, "stop_token_ids"),
    (chat(stop_token_ids=[1, -1]), None, "stop_token_ids[1]"),
    (chat(stop=1), TYPE, "stop"),
    (chat(stop=""), None, "stop"),
    (chat(stop=["a", 1]), TYPE, "stop[1]"),
    (chat(stop=["a", ""]), None, "stop[1]"),
    (chat(stop=list("abcde")), None, "stop"),
    (chat(seed=1.5), TYPE, "seed"),
    (chat(seed=2**63), None, "seed"),
    (chat(top_k=2**64), None, "top_k"),
    (chat(max_completion_tokens=2**64), None, "max_completion_tokens"),
    (chat(seed=-(2**63) - 1), None, "seed"),
    (chat(logprobs=1), TYPE, "logprobs"),
    (chat(top_logprobs=5), None, "top_logprobs"),
    (chat(logprobs=False, top_logprobs=5), None, "top_logprobs"),
    (chat(logprobs=True, top_logprobs=21), None, "top_logprobs"),
    (chat(logit_bias=[1]), TYPE, "logit_bias"),
    (chat(logit_bias={"cat": 1}), None, "logit_bias"),
    (chat(logit_bias={"-5": 1}), None, "logit_bias"),
    (chat(logit_bias={"5": 101}), None, "logit_bias.5"),
    (chat(logit_bias={"5": "1"}), TYPE, "logit_bias.5"),
    (chat(priority=11), None, "priority"),
    (chat(priority="high"), TYPE, "priority"),
    # shape of the answer
    (chat(stream="yes"), TYPE, "stream"),
    (chat(stream=1), TYPE, "stream"),
    (chat(stream_options={"include_usage": True}), None, "stream_options"),
    (chat(stream=False, stream_options={}), None, "stream_options"),
    (chat(stream=True, stream_options=[]), TYPE, "stream_options"),
    (chat(stream=True, stream_options={"include_usage": 1}), TYPE, "stream_options.include_usage"),
    (chat(response_format="json"), TYPE, "response_format"),
    (chat(response_format={}), MISSING, "response_format.type"),
    (chat(response_format={"type": "xml"}), None, "response_format.type"),
    (chat(response_format={"type": "json_schema"}), MISSING, "response_format.json_schema"),
    (schema_format(schema={}), MISSING, "response_format.json_schema.name"),
    (schema_format(name="a b", schema={}), None, "response_format.json_schema.name"),
    (schema_format(name="a"), MISSING, "response_format.json_schema.schema"),
    (schema_format(name="a", schema="{}"), TYPE, "response_format.json_schema.schema"),
    (schema_format(name="a", schema={}, strict=1), TYPE, "response_format.json_schema.strict"),
    (chat(modalities=["text", "audio"]), UNSUPPORTED, "modalities"),
    (chat(modalities="text"), TYPE, "modalities"),
    (chat(modalities=["smell"]), None, "modalities[0]"),
    (chat(audio={"voice": "alloy", "format": "wav"}), UNSUPPORTED, "audio"),
    (chat(metadata=[]), TYPE, "metadata"),
    (chat(metadata={str(i): "x" for i in range(17)}), None, "metadata"),
    (chat(metadata={"k": 1}), TYPE, "metadata.k"),
    (chat(metadata={"k": "x" * 513}), None, "metadata.k"),
    (chat(metadata={"k" * 65: "x"}), None, "metadata"),
    # tools
    (chat(tools={}), TYPE, "tools"),
    (tools("f"), TYPE, "tools[0]"),
    (tools({"type": "function"}), MISSING, "tools[0].function"),
    (tools({"type": "custom", "custom": {"name": "c"}}), UNSUPPORTED, "tools[0].type"),
    (tools({"type": "retrieval"}), None, "tools[0].type"),
    (tools({"type": "function", "function": {}}), MISSING, "tools[0].function.name"),
    (tools({"type": "function", "function": {"name": "a b"}}), None, "tools[0].function.name"),
    (tools({"type": "function", "function": {"name": "f", "parameters": []}}), TYPE, "tools[0].function.parameters"),
    (tools(FUNCTION, FUNCTION), None, "tools"),
    (tools(*[{"type": "function", "function": {"name": f"f{i}"}} for i in range(129)]), None, "tools"),
    (tools(FUNCTION, parallel_tool_calls="no"), TYPE, "parallel_tool_calls"),
    (tools(FUNCTION, tool_choice="always"), None, "tool_choice"),
    (tools(FUNCTION, tool_choice=1), TYPE, "tool_choice"),
    (tools(FUNCTION, tool_choice={"type": "function"}), MISSING, "tool_choice.function"),
    (tools(FUNCTION, tool_choice={"type": "custom", "custom": {"name": "c"}}), UNSUPPORTED, "tool_choice.type"),
    (tools(FUNCTION, tool_choice={"type": "function", "function": {"name": "g"}}), None, "tool_choice"),
    (tools(FUNCTION, tool_choice={"type": "allowed_tools"}), MISSING, "tool_choice.allowed_tools"),
    (
        tools(FUNCTION, tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [OTHER]}}),
        None,
        "tool_choice",
    ),
    (chat(tool_choice="required"), None, "tool_choice"),
    (chat(tool_choice={"type": "function", "function": {"name": "f"}}), None, "tool_choice"),
    (chat(functions=[{"name": "f"}]), UNSUPPORTED, "functions"),
    (chat(function_call="auto"), UNSUPPORTED, "function_call"),
    # what other servers have and this one refuses
    (chat(chat_template="{{ x }}"), UNSUPPORTED, "chat_template"),
    (chat(chat_template_kwargs={"enable_thinking": False}), UNSUPPORTED, "chat_template_kwargs"),
    (chat(mm_processor_kwargs={"max_pixels": 5}), UNSUPPORTED, "mm_processor_kwargs"),
    (chat(media_io_kwargs={}), UNSUPPORTED, "media_io_kwargs"),
    (chat(prompt_embeds="AAAA"), UNSUPPORTED, "prompt_embeds"),
    (chat(guided_json={}), UNSUPPORTED, "guided_json"),
    (chat(guided_choice=["a"]), UNSUPPORTED, "guided_choice"),
]  # fmt: skip


@pytest.mark.anyio
@pytest.mark.parametrize(("body", "code", "param"), BAD, ids=[f"{i}-{param}" for i, (_, _, param) in enumerate(BAD)])
async def test_bad_bodies(body: dict[str, Any], code: str | None, param: str) -> None:
    service = ScriptedService()
    reply = await post(app_of(service), body)
    assert reply.status == 400, reply.body
    error = reply.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", code, param), error["message"]
    assert error["message"]
    assert "sightline" not in error["message"]
    assert service.requests == []


def test_bounds_are_told_exactly() -> None:
    with pytest.raises(InvalidRequest, match="between 0 and 2147483647, not 2147483648"):
        to_request(chat(stop_token_ids=[2**31]))
    with pytest.raises(InvalidRequest, match=r"between 0 and 2, not 2\.5"):
        to_request(chat(temperature=2.5))


def to_request(body: dict[str, Any]) -> ChatRequest:
    return to_chat_request(read_chat_body(body), "id", HttpLimits())


def test_the_plainest_request() -> None:
    assert to_request(chat()) == ChatRequest(
        request_id="id",
        model="m",
        messages=(Message("user", (Text("hi"),)),),
        sampling=SamplingParams(),
        tool_choice=ToolChoice("none"),
    )


def test_every_field_arrives() -> None:
    body = chat(
        max_completion_tokens=9, temperature=0, top_p=0.5, presence_penalty=-2, frequency_penalty=2, n=8,
        stop=["a", "b"], seed=-(2**63), logprobs=True, top_logprobs=20, logit_bias={"5": -100, "6": 1.5},
        response_format={"type": "json_object"}, top_k=3, min_p=0.1, repetition_penalty=1.5, min_tokens=2,
        ignore_eos=True, stop_token_ids=[1, 2], priority=-10,
    )  # fmt: skip
    request = to_request(body)
    assert request.sampling == SamplingParams(
        max_tokens=9, temperature=0.0, top_p=0.5, top_k=3, min_p=0.1, seed=-(2**63), stop=("a", "b"),
        stop_token_ids=(1, 2), min_tokens=2, ignore_eos=True, presence_penalty=-2.0, frequency_penalty=2.0,
        repetition_penalty=1.5, logit_bias={5: -100.0, 6: 1.5}, logprobs=20,
    )  # fmt: skip
    assert (request.n, request.priority, request.response_format.kind) == (8, -10, "json_object")


def test_null_means_the_default_everywhere() -> None:
    names = [name for name in ChatBody.__struct_fields__ if name not in ("model", "messages")]
    assert len(names) > 30
    names.append("guided_json")
    assert to_request(chat(dict.fromkeys(names))) == to_request(chat())


def test_what_is_unknown_or_ignored_changes_nothing() -> None:
    ignored = chat(
        user="u", safety_identifier="s", store=True, metadata={"k": "v"}, service_tier="flex", reasoning_effort="low",
        verbosity="high", prediction={"type": "content", "content": "x"}, prompt_cache_key="k", modalities=["text"],
        prompt_cache_retention="24h", web_search_options={}, moderation={}, no_such_field=[1], best_of=4,
    )  # fmt: skip
    assert to_request(ignored) == to_request(chat())


def test_the_newer_bound_wins_and_edges_are_in() -> None:
    assert to_request(chat(max_tokens=5, max_completion_tokens=7)).sampling.max_tokens == 7
    assert to_request(chat(max_tokens=5)).sampling.max_tokens == 5
    assert to_request(chat(top_k=-1)).sampling.top_k == 0
    assert to_request(chat(stop="END")).sampling.stop == ("END",)
    assert to_request(chat(stop=[])).sampling.stop == ()
    assert to_request(chat(temperature=2, top_p=0, seed=2**63 - 1)).sampling.temperature == 2
    assert to_request(chat(logprobs=True)).sampling.logprobs == 0


def test_roles_and_histories() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "And kind."}]},
        {"role": "user", "content": "hi", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "7", "tool_call_id": "call_1"},
        {"role": "function", "content": "8", "name": "f"},
        {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}]},
        {"role": "assistant", "refusal": "no"},
        {"role": "assistant", "content": "", "tool_calls": []},
    ]
    assert to_request(chat(messages=messages)).messages == (
        Message("system", (Text("Be brief."),)),
        Message("system", (Text("And kind."),)),
        Message("user", (Text("hi"),), name="ann"),
        Message("assistant", (), (ToolCall("call_1", "f", "{}"),)),
        Message("tool", (Text("7"),), tool_call_id="call_1"),
        Message("tool", (Text("8"),), name="f"),
        Message("assistant", (Text("a"), Text("b"))),
        Message("assistant", (Text("no"),)),
        Message("assistant", (Text(""),)),
    )


def test_pictures_in_every_form_keep_their_order_and_place() -> None:
    content = [
        {"type": "text", "text": "first", "prompt_cache_breakpoint": {}},
        {"type": "image_url", "image_url": {"url": DATA_URL, "detail": "high"}, "uuid": "u1"},
        {"type": "image_url", "image_url": "https://example.com/x.png"},
        {"type": "image", "image": "data:image/jpeg;base64,/9j/"},
        {"type": "image", "image": "/9j/4AAQSkZJRg=="},
        {"type": "image", "image": "iVBORw0KGgo=", "max_pixels": 50, "min_pixels": 20, "detail": "low"},
        {"type": "image", "image": "HTTPS://example.com/y.png"},
    ]
    request = to_request(chat(messages=[{"role": "user", "content": content}], max_pixels=100, min_pixels=10))
    at = "messages[0].content"
    assert request.messages[0].content == (
        Text("first"),
        ImageRef(DATA_URL, f"{at}[1].image_url.url", "high", 100, 10, "u1"),
        ImageRef("https://example.com/x.png", f"{at}[2].image_url", "auto", 100, 10),
        ImageRef("data:image/jpeg;base64,/9j/", f"{at}[3].image", "auto", 100, 10),
        ImageRef("data:;base64,/9j/4AAQSkZJRg==", f"{at}[4].image", "auto", 100, 10),
        ImageRef("data:;base64,iVBORw0KGgo=", f"{at}[5].image", "low", 50, 20),
        ImageRef("HTTPS://example.com/y.png", f"{at}[6].image", "auto", 100, 10),
    )


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "./a", "../a", "~/a.png", "~root", "a.png", "C:/a", "c:\\a", "\\\\host\\a", "file:///a", "FILE:a",
     "sub/dir/a.jpeg", "ftp://h.example/a", "/proc/self/environ"],
)  # fmt: skip
def test_a_path_is_forbidden_whatever_it_looks_like(path: str) -> None:
    with pytest.raises(ImageForbidden) as refused:
        to_request(parts({"type": "image", "image": path}))
    assert path not in refused.value.message


def test_tools_and_choices() -> None:
    at = "tools[{}].function.parameters"
    f, g = Tool("f", "", {"type": "object"}, param=at.format(0)), Tool("g", param=at.format(1))
    named = {"type": "function", "function": {"name": "g"}}

    def chosen(choice: Any) -> tuple[tuple[Tool, ...], ToolChoice]:
        request = to_request(tools(FUNCTION, OTHER, tool_choice=choice))
        return request.tools, request.tool_choice

    assert chosen(None) == ((f, g), ToolChoice("auto"))
    assert chosen("none") == ((f, g), ToolChoice("none"))
    assert chosen("required") == ((f, g), ToolChoice("required"))
    assert chosen(named) == ((f, g), ToolChoice("required", ("g",)))
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    assert chosen(allowed) == ((f, g), ToolChoice("required", ("g",)))
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    assert chosen(allowed) == ((g,), ToolChoice("auto"))
    assert to_request(chat(tools=[], tool_choice="auto")).tool_choice == ToolChoice("none")
    strict = {"type": "function", "function": {"name": "h", "description": "d", "strict": True}}
    assert to_request(tools(strict)).tools == (Tool("h", "d", {}, True, at.format(0)),)
    for one in (to_request(tools(FUNCTION, tool_choice=c, parallel_tool_calls=False)) for c in (None, "required")):
        assert not one.tool_choice.parallel


def test_structured_output() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert to_request(schema_format(name="x", schema=schema, strict=True)).response_format == ResponseFormat(
        "json_schema", schema, strict=True
    )
    assert not to_request(schema_format(name="x", schema=schema)).response_format.strict
    assert to_request(chat(response_format={"type": "text"})).response_format == ResponseFormat()
