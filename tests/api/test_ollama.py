"""Ollama's API on the wire: lines, every field, names, errors, clients that leave."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sightline import errors as e
from sightline.api.app import create_app
from sightline.api.ollama.embed import to_reply
from sightline.api.ollama.schema import EmbedReply
from sightline.config import ModelConfig, Settings
from sightline.items import ChoiceEvent
from sightline.models import ModelStatus
from sightline.service import Service
from sightline.types import (
    Embeddings,
    Finish,
    ImageRef,
    ReasoningDelta,
    RefusalDelta,
    ResponseFormat,
    SamplingParams,
    Text,
    TextDelta,
    Timing,
    TokenLogprob,
    ToolCallDelta,
    ToolChoice,
    Usage,
)
from tests.api.nonsense import values
from tests.api.standin import (
    FINISH,
    INFO,
    JSON_HEADERS,
    PREPARED,
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

CHAT, GENERATE = "/api/chat", "/api/generate"
TOOL = {"type": "function", "function": {"name": "f", "description": "Does.", "parameters": {"type": "object"}}}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z")


def ask(content: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": content}], "stream": False, **fields}


def prompt(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": "m", "prompt": text, "stream": False, **fields}


async def send(body: Any, service: ScriptedService | None = None, path: str = CHAT, **headers: str) -> Reply:
    return await post(app_of(service or ScriptedService()), body, path, **headers)


async def asked(body: dict[str, Any], path: str = CHAT) -> Any:
    return await request_of(body, path)


def lines(reply: Reply) -> list[dict[str, Any]]:
    """Of a stream, without their times."""
    assert reply.headers["content-type"] == "application/x-ndjson"
    *told, last = reply.body.decode().split("\n")
    assert last == ""
    values = [json.loads(line) for line in told]
    assert all(TIME.fullmatch(value.pop("created_at")) for value in values if "error" not in value)
    return values


# --- the reply -------------------------------------------------------------------------------------------------------


def of(fields: dict[str, Any]) -> dict[str, Any]:
    """The last fields of an answer, held against what the stand-in took, and without its one time by the clock."""
    total = fields.pop("total_duration")
    assert isinstance(total, int)
    assert total > 0
    return fields


END = {
    "done": True, "done_reason": "stop", "load_duration": 0, "prompt_eval_count": 20,
    "prompt_eval_duration": 400_000_000, "eval_count": 3, "eval_duration": 40_000_000,
}  # fmt: skip
"""Of `FINISH`: 0.1 s for pictures and 0.3 s for the prompt, then 0.04 s."""


async def test_an_answer_in_one_piece_has_every_field() -> None:
    reply = await send(ask())
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-sightline-engine"] == "scripted"
    answer = reply.json
    assert TIME.fullmatch(answer.pop("created_at"))
    assert of(answer) == {"model": "m", "message": {"role": "assistant", "content": "A cat"}, **END}
    generated = (await send(prompt(), path=GENERATE)).json
    del generated["created_at"]
    assert of(generated) == {"model": "m", "response": "A cat", **END}


async def test_lines_are_what_comes_unless_a_request_says_otherwise() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    reply = await send(body)
    assert reply.headers["cache-control"] == "no-cache"
    *told, last = lines(reply)
    assert told == [
        {"model": "m", "message": {"role": "assistant", "content": "A "}, "done": False},
        {"model": "m", "message": {"role": "assistant", "content": "cat"}, "done": False},
    ]
    assert of(last) == {"model": "m", "message": {"role": "assistant", "content": ""}, **END}
    *told, last = lines(await send({"model": "m", "prompt": "hi"}, path=GENERATE))
    assert told == [
        {"model": "m", "response": "A ", "done": False}, {"model": "m", "response": "cat", "done": False}
    ]  # fmt: skip
    assert of(last) == {"model": "m", "response": "", **END}


SPOKEN: Script = say(
    ReasoningDelta("h"),
    ReasoningDelta("m"),
    TextDelta("A cat"),
    ToolCallDelta(0, "", id="call_0", name="f"),
    ToolCallDelta(0, '{"a"'),
    ToolCallDelta(0, ": 1}"),
    ToolCallDelta(1, "", id="call_1", name="g"),
    Finish("tool_calls", Usage(20, 9)),
)
CALLS = [
    {"id": "call_0", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}},
    {"id": "call_1", "function": {"index": 1, "name": "g", "arguments": {}}},
]


async def test_thoughts_and_calls() -> None:
    *told, last = lines(await send(ask(stream=True), ScriptedService(SPOKEN)))
    assert [line["message"] for line in told] == [
        {"role": "assistant", "content": "", "thinking": "h"},
        {"role": "assistant", "content": "", "thinking": "m"},
        {"role": "assistant", "content": "A cat"},
        {"role": "assistant", "content": "", "tool_calls": CALLS[:1]},
        {"role": "assistant", "content": "", "tool_calls": CALLS[1:]},
    ]
    assert last["done_reason"] == "stop"
    whole = (await send(ask(), ScriptedService(SPOKEN))).json
    assert whole["message"] == {"role": "assistant", "content": "A cat", "thinking": "hm", "tool_calls": CALLS}
    for think, shown in [(True, True), ("high", True), (False, False), (None, True)]:
        whole = (await send(ask(think=think), ScriptedService(SPOKEN))).json
        assert ("thinking" in whole["message"]) is shown
        told = lines(await send(ask(think=think, stream=True), ScriptedService(SPOKEN)))
        assert any("thinking" in line["message"] for line in told) is shown


async def test_a_call_that_was_cut_off_is_a_fault() -> None:
    cut = say(ToolCallDelta(0, '{"a": "b', id="call_0", name="f"), Finish("length", Usage(1, 10)))
    whole = await send(ask(), ScriptedService(cut))
    assert whole.status == 500
    assert "options.num_predict" in whole.json["error"]
    assert "options.num_predict" in lines(await send(ask(stream=True), ScriptedService(cut)))[-1]["error"]


@pytest.mark.parametrize(
    ("reason", "told"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop"), ("content_filter", "stop")]
)
async def test_why_it_stopped(reason: Any, told: str) -> None:
    service = ScriptedService(say(RefusalDelta("No."), Finish(reason, Usage(1, 1))))
    whole = (await send(ask(), service)).json
    assert (whole["message"]["content"], whole["done_reason"]) == ("No.", told)
    assert lines(await send(ask(stream=True), service))[-1]["done_reason"] == told


async def test_logprobs() -> None:
    top = TokenLogprob("a", -0.5, (97,))
    script = say(TextDelta("a", 1, (TokenLogprob("a", -0.5, (97,), (top,)),)), FINISH)
    expected = {"token": "a", "logprob": -0.5, "bytes": [97]}
    whole = (await send(ask(logprobs=True, top_logprobs=1), ScriptedService(script))).json
    assert whole["logprobs"] == [{**expected, "top_logprobs": [expected]}]
    first, last = lines(await send(ask(logprobs=True, stream=True), ScriptedService(script)))
    assert first["logprobs"] == whole["logprobs"]
    assert "logprobs" not in last
    assert "logprobs" not in (await send(ask(), ScriptedService(script))).json


async def test_an_engine_without_times_is_timed_from_here() -> None:
    async def script(request: Any) -> Any:
        yield PREPARED
        await asyncio.sleep(0.12)
        yield ChoiceEvent(0, TextDelta("x"))
        yield ChoiceEvent(0, replace(FINISH, timing=Timing()))

    for body in (ask(), ask(stream=True)):
        reply = await send(body, ScriptedService(script))
        told = json.loads(reply.body.splitlines()[-1])
        assert told["prompt_eval_duration"] == told["load_duration"] == 0
        assert 0.05e9 <= told["eval_duration"] <= told["total_duration"]


async def test_waiting_for_a_model_to_load_is_told_apart() -> None:
    async def script(request: Any) -> Any:
        await asyncio.sleep(0.2)
        async for item in say(TextDelta("x"), replace(FINISH, timing=Timing(prefill_s=0.01)))(request):
            yield item

    loading = (ModelStatus("m", "loading", "scripted", 1, None),)
    for body in (ask(), ask(stream=True)):
        reply = await send(body, ScriptedService(script, statuses=loading))
        told = json.loads(reply.body.splitlines()[-1])
        assert 0.1e9 < told["load_duration"] < told["total_duration"] - told["prompt_eval_duration"]


async def test_a_line_is_one_line_for_a_client_that_splits_at_all_of_unicodes_breaks() -> None:
    text = "a\u2028b\u2029c\x85d"
    reply = await send(ask(stream=True), ScriptedService(say(TextDelta(text), FINISH)))
    first, *_ = map(json.loads, reply.body.decode().splitlines())  # as httpx, and so Ollama's own client
    assert first["message"]["content"] == text


async def test_a_late_fault_is_the_last_line() -> None:
    async def script(request: Any) -> Any:
        async for item in say(TextDelta("x"))(request):
            yield item
        raise e.EngineFailed("It broke.")

    reply = await send(ask(stream=True), ScriptedService(script))
    assert reply.status == 200
    assert reply.complete
    told = lines(reply)
    assert told[-1] == {"error": "It broke."}
    assert [line.get("done") for line in told] == [False, None]


# --- the request -----------------------------------------------------------------------------------------------------


async def test_what_a_request_says_reaches_the_service() -> None:
    options = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 7, "num_predict": 64.0, "stop": ["x"],
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "repeat_penalty": 1.1, "num_ctx": 999_999, "num_gpu": 1,
        "mirostat": 0, "tfs_z": 1.0, "typical_p": 1.0, "use_mmap": True, "no such option": [1], "num_thread": None,
    }  # fmt: skip
    schema = {"type": "object"}
    request = await asked(
        ask(options=options, format=schema, tools=[TOOL], keep_alive="5m", logprobs=True, top_logprobs=3)
    )
    assert request.sampling == SamplingParams(
        max_tokens=64, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=7, stop=("x",), presence_penalty=0.1,
        frequency_penalty=0.2, repetition_penalty=1.1, logprobs=3,
    )  # fmt: skip
    assert request.response_format == ResponseFormat("json_schema", schema, param="format")
    assert request.tool_choice == ToolChoice("auto")
    assert (request.tools[0].name, request.tools[0].param) == ("f", "tools[0].function.parameters")


async def test_what_a_request_leaves_out_is_the_models_own() -> None:
    request = await asked(ask(options={"seed": -1, "num_predict": -1, "repeat_penalty": 1.5, "repeat_last_n": 0}))
    assert request.sampling == SamplingParams()
    assert request.tool_choice == ToolChoice("none")
    assert (await asked(ask(options={"num_predict": -2}, format=""))).sampling.max_tokens is None
    assert (await asked(ask(format="json"))).response_format == ResponseFormat("json_object")


async def test_pictures_and_texts_reach_the_service() -> None:
    turns = [
        {"role": "system", "content": "Be."},
        {"role": "user", "content": "?", "images": ["iVBO", "data:image/png;base64,AAAA", "iV\nBO\r\n"]},
        {"role": "user", "images": ["iVBO"]},
    ]
    request = await asked(ask(messages=turns))
    assert [m.role for m in request.messages] == ["system", "user", "user"]
    assert request.messages[1].content == (
        ImageRef("data:;base64,iVBO", "messages[1].images[0]"),
        ImageRef("data:image/png;base64,AAAA", "messages[1].images[1]"),
        ImageRef("data:;base64,iVBO", "messages[1].images[2]"),
        Text("?"),
    )
    assert request.messages[2].content == (ImageRef("data:;base64,iVBO", "messages[2].images[0]"),)
    request = await asked(prompt("?", images=["iVBO"], system="Be."), GENERATE)
    assert [(m.role, m.content) for m in request.messages] == [
        ("system", (Text("Be."),)), ("user", (ImageRef("data:;base64,iVBO", "images[0]"), Text("?")))
    ]  # fmt: skip
    assert [m.role for m in (await asked(prompt("?"), GENERATE)).messages] == ["user"]


async def test_results_find_their_calls() -> None:
    def call(name: str, **fields: Any) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {"a": "é"}}, **fields}

    turns = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "thinking": "hm", "tool_calls": [call("f"), call("g"), call("f", id="x")]},
        {"role": "tool", "tool_name": "g", "content": "1"},
        {"role": "tool", "tool_name": "f", "content": "2"},
        {"role": "tool", "content": "3", "images": ["iVBO"]},
        {"role": "tool", "tool_call_id": "own", "content": "4"},
        {"role": "tool", "tool_name": "h", "content": "5"},
    ]
    request = await asked(ask(messages=turns))
    calls = request.messages[1].tool_calls
    assert [(c.id, c.name, json.loads(c.arguments)) for c in calls] == [
        ("call_1_0", "f", {"a": "é"}), ("call_1_1", "g", {"a": "é"}), ("x", "f", {"a": "é"})
    ]  # fmt: skip
    assert [m.tool_call_id for m in request.messages[2:]] == ["call_1_1", "call_1_0", "x", "own", "call_6"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": None}, "model"), ({"model": ""}, "model"), ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"), ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "developer"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [1]}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "images": "iVBO"}]}, "messages[0].images"),
        ({"messages": [{"role": "user", "images": ["iVBO", 1]}]}, "messages[0].images[1]"),
        ({"messages": [{"role": "system", "images": ["iVBO"]}]}, "messages[0].images"),
        ({"messages": [{"role": "user", "tool_calls": [{"function": {"name": "f"}}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
         "messages[0].tool_calls[0].function.arguments"),
        ({"stream": "no"}, "stream"), ({"format": "xml"}, "format"), ({"format": 1}, "format"),
        ({"think": "hard"}, "think"), ({"think": 1}, "think"), ({"keep_alive": "soon"}, "keep_alive"),
        ({"keep_alive": "300"}, "keep_alive"), ({"keep_alive": []}, "keep_alive"),
        ({"tools": [{}]}, "tools[0].function"), ({"tools": [TOOL, TOOL]}, "tools"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"), ({"options": []}, "options"),
        ({"options": {"temperature": "hot"}}, "options.temperature"), ({"options": {"top_p": 2}}, "options.top_p"),
        ({"options": {"top_k": 1.5}}, "options.top_k"), ({"options": {"num_predict": -3}}, "options.num_predict"),
        ({"options": {"stop": [1]}}, "options.stop[0]"), ({"options": {"num_ctx": "4k"}}, "options.num_ctx"),
        ({"options": {"seed": True}}, "options.seed"), ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"options": {"typical_p": 0.5}}, "options.typical_p"), ({"options": {"use_mmap": 1}}, "options.use_mmap"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(fields: dict[str, Any], named: str) -> None:
    service = ScriptedService()
    reply = await send(ask(**fields), service)
    assert reply.status == 400
    assert list(reply.json) == ["error"]
    assert named in reply.json["error"]
    assert not service.requests


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": ["x"]}, "prompt"), ({"images": ["x", ""]}, "images[1]"), ({"system": 1}, "system"),
        ({"template": "{{ .Prompt }}"}, "template"), ({"suffix": "x"}, "suffix"), ({"context": [1, 2]}, "context"),
        ({"width": 512}, "width"),
    ],
)  # fmt: skip
async def test_what_generate_cannot_do_is_refused(fields: dict[str, Any], named: str) -> None:
    reply = await send(prompt(**fields), path=GENERATE)
    assert reply.status == 400
    assert named in reply.json["error"]


async def test_what_clients_send_empty_is_not_meant() -> None:
    empty = {"template": "", "suffix": "", "context": [], "raw": False, "format": "", "system": "", "width": 0}
    assert (await send(prompt(**empty, images=[], options={}, keep_alive=None), path=GENERATE)).status == 200


def test_vectors_have_the_length_1() -> None:
    head = EmbedReply(model="m", embeddings=[], total_duration=5, load_duration=0, prompt_eval_count=7)
    vectors = np.array([[3, 4], [0, 0], [0, -2]], np.float32)
    assert json.loads(to_reply(head, Embeddings(vectors, 7))) == {
        "model": "m", "embeddings": [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0], [0, -1]], "total_duration": 5,
        "load_duration": 0, "prompt_eval_count": 7,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "fields", "status", "named"),
    [
        ("/api/embed", {}, 400, "input"), ("/api/embed", {"input": 1}, 400, "input"),
        ("/api/embed", {"input": ["a", 1]}, 400, "input[1]"),
        ("/api/embed", {"input": "a", "truncate": 1}, 400, "truncate"),
        ("/api/embed", {"input": "a", "dimensions": 0}, 400, "dimensions"),
        ("/api/embed", {"input": "a", "model": "x"}, 404, "model 'x' not found"),
        ("/api/embeddings", {"prompt": ["a"]}, 400, "prompt"),
        ("/api/embeddings", {"prompt": "a", "options": {"num_ctx": "x"}}, 400, "options.num_ctx"),
    ],
)  # fmt: skip
async def test_what_is_wrong_about_embeddings(path: str, fields: dict[str, Any], status: int, named: str) -> None:
    reply = await send({"model": "m", **fields}, path=path)
    assert (reply.status, list(reply.json)) == (status, ["error"])
    assert named in reply.json["error"]


# --- models ----------------------------------------------------------------------------------------------------------

SERVED = (
    ModelStatus("m", "ready", "scripted", 1741570283, INFO),
    ModelStatus("org/m:7b", "unloaded", "other", 1741570283, None),
)


@pytest.mark.parametrize(("name", "served"), [("m", "m"), ("m:latest", "m"), ("org/m:7b", "org/m:7b")])
async def test_a_model_has_its_name_and_the_latest_of_it(name: str, served: str) -> None:
    service = ScriptedService(statuses=SERVED)
    reply = await send(ask(model=name), service)
    assert (reply.status, reply.json["model"], service.requests[0].model) == (200, name, served)
    assert (await post(app_of(service), {"model": name}, "/api/show")).status == 200


@pytest.mark.parametrize("name", ["x", "m:7b", "org/m", "org/m:latest", "M", "m:latest:latest", ":latest"])
async def test_an_unknown_model_is_told_as_clients_look_for_it(name: str) -> None:
    service = ScriptedService(statuses=SERVED)
    for path, body in [(CHAT, ask(model=name)), (GENERATE, prompt(model=name)), ("/api/show", {"name": name})]:
        reply = await post(app_of(service), body, path)
        assert (reply.status, reply.json) == (404, {"error": f"model '{name}' not found"})


async def test_tags_ps_and_show() -> None:
    app = app_of(ScriptedService(statuses=SERVED))
    details = {
        "parent_model": "", "format": "scripted", "family": "scripted", "families": ["scripted"], "parameter_size": "",
        "quantization_level": "",
    }  # fmt: skip
    tag = {
        "name": "m:latest", "model": "m:latest", "modified_at": "2025-03-10T01:31:23.000000Z", "size": 0,
        "digest": "0123456789abcdef", "details": details, "capabilities": ["completion", "vision"],
    }  # fmt: skip
    first, second = (await get(app, "/api/tags")).json["models"]
    assert first == tag
    assert (second["name"], second["capabilities"], len(second["digest"])) == ("org/m:7b", ["completion"], 64)
    ps = (await get(app, "/api/ps")).json["models"]
    assert ps == [{**tag, "expires_at": "9999-12-31T23:59:59Z", "size_vram": 0, "context_length": 100}]
    shown = (await post(app, {"model": "m"}, "/api/show")).json
    assert shown.pop("modelfile").endswith("FROM m\n")
    assert shown == {
        "parameters": "", "template": "", "details": details, "capabilities": ["completion", "vision"],
        "model_info": {"general.architecture": "scripted", "general.basename": "m", "scripted.context_length": 100},
        "modified_at": tag["modified_at"],
    }  # fmt: skip
    asleep = (await post(app, {"model": "org/m:7b"}, "/api/show")).json
    assert asleep["model_info"] == {"general.architecture": "other", "general.basename": "org/m:7b"}


async def test_it_says_that_it_is_there() -> None:
    app = app_of(ScriptedService())
    root = await get(app, "/")
    assert (root.status, root.body) == (200, b"Ollama is running")
    assert (await get(app, "/", "HEAD")).status == 200
    assert re.fullmatch(r"\d+\.\d+\.\d+", (await get(app, "/api/version")).json["version"])


async def test_a_browser_is_told_where_to_go_and_programs_get_the_exact_text() -> None:
    browser = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
    for ui in (False, True):
        config = Settings(models=(ModelConfig(name="m", engine="fake"),), ui=ui)
        app = create_app(cast(Service, ScriptedService()), config)
        page = await get(app, "/", **browser)
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        links = re.findall('href="([^"]+)"', page.body.decode())
        assert "docs" in links
        assert ("ui" in links) == ui
        for link in set(links) - {"ui"}:
            assert (await get(app, f"/{link}")).status == 200, link
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for accept in ("*/*", "application/json", "text/plain"):
            assert (await get(app, "/", accept=accept)).body == b"Ollama is running"
        assert page.headers["vary"] == "Accept"


async def test_loading_and_unloading() -> None:
    service = ScriptedService()
    loaded = (await send(ask(messages=[]), service)).json
    del loaded["created_at"]
    assert loaded == {
        "model": "m", "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "load"
    }  # fmt: skip
    generated = (await send({"model": "m"}, service, GENERATE)).json
    assert (generated["response"], generated["done_reason"]) == ("", "load")
    assert len(service.requests) == 2, "each was measured, which loads the model"
    for never in (0, "0", "0s", "0h0m"):
        refused = await send(ask(messages=[], keep_alive=never), service)
        assert refused.status == 400
        assert "keep_alive" in refused.json["error"]
        assert (await send(ask(keep_alive=never), service)).status == 200


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [c for c in classes() if c.__module__ == "sightline.errors"])
async def test_every_error_is_a_text_and_a_status(cls: type[e.SightlineError]) -> None:
    async def script(request: Any) -> Any:
        raise cls("Something is wrong.")
        yield

    reply = await send(ask(stream=True), ScriptedService(script))
    assert reply.status >= 400
    assert reply.json == {"error": "Something is wrong."}
    assert ("retry-after" in reply.headers) == (reply.status in (429, 503) and cls.retryable)


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"),
    [
        ("POST", CHAT, b"{", {}, 400), ("POST", CHAT, b'{"model": NaN}', {}, 400), ("POST", CHAT, b"[]", {}, 400),
        ("POST", CHAT, b"{}", {"content-type": "text/plain", "sec-fetch-site": "none"}, 415),
        ("POST", CHAT, b" " * 2000, {}, 413), ("GET", CHAT, b"", {}, 405), ("POST", "/api/tags", b"{}", {}, 405),
        ("POST", "/api/nothing", b"{}", {}, 404), ("GET", "/api/", b"", {}, 404),
        ("POST", CHAT, b"{}", {"host": "evil.example"}, 421),
        ("POST", "/api/pull", b"{}", {}, 403), ("POST", "/api/push", b"", {}, 403),
        ("POST", "/api/copy", b"{}", {}, 403),
        ("POST", "/api/create", b"{}", {}, 403), ("DELETE", "/api/delete", b"{}", {}, 403),
        ("POST", "/api/blobs/sha256:00", b"x", {}, 403),
    ],
)  # fmt: skip
async def test_faults_of_http_have_its_shape(
    method: str, path: str, body: bytes, headers: dict[str, str], status: int
) -> None:
    app = app_of(ScriptedService(), max_body_bytes=1000)
    reply = await Call(method, path, body, {**JSON_HEADERS, **headers}).run(app)
    assert reply.status == status
    assert list(reply.json) == ["error"]
    assert isinstance(reply.json["error"], str)
    assert ("allow" in reply.headers) == (status == 405)


async def test_what_an_engine_lacks_is_told_in_this_apis_words() -> None:
    async def script(request: Any) -> Any:
        raise e.UnsupportedFeature("The engine 'x' does not support repetition_penalty.", param="repetition_penalty")
        yield

    reply = await send(ask(), ScriptedService(script))
    assert reply.json["error"] == "The engine 'x' does not support options.repeat_penalty."


# --- clients that leave ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "stream"), [(silence, True), (silence, False), (endless, True), (stalled, True)])
async def test_leaving_frees_what_the_request_holds(script: Script, stream: bool) -> None:
    service = ScriptedService(script)
    call = Call("POST", CHAT, json.dumps(ask(stream=stream)).encode(), dict(JSON_HEADERS))
    running = asyncio.create_task(call.run(app_of(service)))
    await until(lambda: service.open == 1)
    if script is not silence:
        await until(lambda: b'"content":"x"' in call.reply.body)
    call.left.set()
    await until(lambda: service.open == 0, within_s=1)
    await running


# --- any body --------------------------------------------------------------------------------------------------------

_SAID = [
    "user", "assistant", "system", "tool", "function", "json", "iVBO", "5m", "high", "f", "m"
]  # fmt: skip
_KEYS = [
    "role", "content", "images", "tool_calls", "tool_name", "function", "name", "arguments", "parameters", "type",
    "temperature", "top_k", "num_predict", "stop", "seed", "num_ctx", "mirostat"
]  # fmt: skip
_WORDS = st.sampled_from(_SAID)
_VALUES = values(_SAID, _KEYS)
_FIELDS = st.sampled_from(
    ["model", "messages", "prompt", "images", "system", "stream", "options", "format", "think", "keep_alive", "tools",
     "logprobs", "top_logprobs", "raw", "template", "context", "suffix"]
)  # fmt: skip
_TURNS = st.fixed_dictionaries({"role": _WORDS}, optional={
    "content": _VALUES, "images": _VALUES, "tool_calls": _VALUES, "tool_name": _VALUES})  # fmt: skip


@given(st.dictionaries(_FIELDS, _VALUES, max_size=4), st.lists(_TURNS, max_size=3))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_body_is_a_bug(fields: dict[str, Any], turns: list[Any]) -> None:
    app = app_of(ScriptedService())

    async def run() -> None:
        for path, body in [(CHAT, ask(messages=turns)), (GENERATE, prompt()), ("/api/show", {"model": "m"})]:
            reply = await post(app, {**body, **fields}, path)
            assert reply.status in (200, 400, 404)
            assert reply.status == 200 or list(reply.json) == ["error"]

    asyncio.run(run())
