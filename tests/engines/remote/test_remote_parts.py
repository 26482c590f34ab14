"""The pure parts of the engine `remote`: what is sent, what is read, row by row."""

from __future__ import annotations

import io
import json
import time
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image as PILImage

from sightline.config import ModelConfig
from sightline.engines.remote.answer import Answer, joined
from sightline.engines.remote.body import Part, Specials, encode, spliced, to_body
from sightline.engines.remote.counting import Counter
from sightline.engines.remote.failures import read_refusal, to_error, to_refusal
from sightline.engines.remote.kinds import KINDS
from sightline.engines.remote.options import RemoteOptions, read_budget, read_options
from sightline.engines.remote.pictures import Held, Pictures, blank, to_data_uri, to_png
from sightline.engines.remote.sse import ServerEvent
from sightline.engines.remote.upstream import Address
from sightline.errors import InvalidRequest, UnsupportedFeature, UpstreamFailed
from sightline.images.budget import CellBudget
from sightline.images.published import published_budget
from sightline.testing import ask
from sightline.types import (
    Delta,
    EngineRequest,
    Image,
    Message,
    ReasoningDelta,
    ResponseFormat,
    SamplingParams,
    Text,
    TextDelta,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)

NONE = Specials(())
TOOL = Tool("look", "looks", {"type": "object"})
OTHER = Tool("hear", "hears", {})


def picture(side: int = 56, digest: str = "sha256:a") -> Image:
    return Image(np.zeros((side, side, 3), np.uint8), digest, side, side, "image/png", 9)


def body(request: EngineRequest, kind: str = "vllm", parts: tuple[Part, ...] = (), specials: Specials = NONE) -> Any:
    return json.loads(encode(to_body(request, "theirs", KINDS[kind], parts, specials)))


# --- what is sent ----------------------------------------------------------------------------------------------------

EVERYTHING = SamplingParams(
    max_tokens=9, temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, seed=7, stop=("a", ""), stop_token_ids=(3,),
    min_tokens=2, ignore_eos=True, presence_penalty=1.0, frequency_penalty=-1.0, repetition_penalty=1.5,
    logit_bias={5: -100.0}, logprobs=2,
)  # fmt: skip


def test_every_field_that_a_client_set_is_sent_under_the_servers_name_for_it() -> None:
    request = replace(ask("hello"), sampling=EVERYTHING)
    sent = body(request)
    assert {name: sent[name] for name in sent if name not in ("messages", "stream_options")} == {
        "model": "theirs", "stream": True, "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
        "seed": 7, "stop": ["a"], "stop_token_ids": [3], "min_tokens": 2, "ignore_eos": True, "presence_penalty": 1.0,
        "frequency_penalty": -1.0, "repetition_penalty": 1.5, "logit_bias": {"5": -100.0}, "logprobs": True,
        "top_logprobs": 2,
    }  # fmt: skip
    assert sent["stream_options"] == {"include_usage": True}
    there = body(request, "llamacpp")
    assert (there["repeat_penalty"], there["timings_per_token"]) == (1.5, True)
    assert not {"repetition_penalty", "stop"} & there.keys(), "stops are watched for here"
    plain = body(replace(request, sampling=SamplingParams(max_tokens=9)), "openai")
    assert plain.keys() == {
        "model",
        "messages",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "max_completion_tokens",
    }
    with pytest.raises(UnsupportedFeature) as caught:
        body(request, "openai")
    assert caught.value.param == "repetition_penalty"


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", 2.1),
        ("top_p", float("inf")),
        ("max_tokens", 0),
        ("seed", 2**63),
        ("seed", -(2**80)),
        ("min_p", 1.1),
        ("repetition_penalty", -1.0),
    ],
)
def test_what_is_out_of_range_never_leaves(param: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        body(replace(ask("a"), sampling=replace(SamplingParams(), **{param: value})))
    assert caught.value.param == param


def test_messages() -> None:
    conversation = (
        Message[Image]("system", (Text("be "), Text("brief"))),
        Message[Image]("user", (Text("a"), Text("b"), picture(), Text("c")), name="me"),
        Message[Image]("assistant", (), (ToolCall("call_1", "look", "{}"),)),
        Message[Image]("tool", (Text("seen"),), tool_call_id="call_1"),
    )
    request = replace(ask(), messages=conversation, tools=(TOOL,), tool_choice=ToolChoice("auto"))
    sent = body(request, parts=(Part("data:image/png;base64,AA==", "u1"),))
    assert sent["messages"] == [
        {"role": "system", "content": "be brief"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "ab"},
                {
                    "type": "image_url",
                    "image_url": {"url": "data:image/png;base64,AA==", "detail": "high"},
                    "uuid": "u1",
                },
                {"type": "text", "text": "c"},
            ],
            "name": "me",
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "seen", "tool_call_id": "call_1"},
    ]
    function = {"name": "look", "description": "looks", "parameters": {"type": "object"}}
    assert sent["tools"] == [{"type": "function", "function": function}]
    assert sent["tool_choice"] == "auto"


@pytest.mark.parametrize(
    ("choice", "names", "sent"),
    [
        (ToolChoice("none"), ["look", "hear"], "none"),
        (ToolChoice("required"), ["look", "hear"], "required"),
        (ToolChoice("required", ("hear",)), ["hear"], {"type": "function", "function": {"name": "hear"}}),
        (ToolChoice("required", ("hear", "look")), ["look", "hear"], "required"),
    ],
)
def test_tool_choices(choice: ToolChoice, names: list[str], sent: Any) -> None:
    fields = body(replace(ask("a"), tools=(TOOL, OTHER), tool_choice=choice))
    assert [tool["function"]["name"] for tool in fields["tools"]] == names
    assert fields["tool_choice"] == sent


def test_structured_output() -> None:
    assert body(replace(ask("a"), response_format=ResponseFormat("json_object")))["response_format"] == {
        "type": "json_object"
    }
    schema = {"type": "object"}
    wanted = body(replace(ask("a"), response_format=ResponseFormat("json_schema", schema, True)))["response_format"]
    assert wanted["json_schema"] == {"name": "answer", "schema": schema, "strict": True}


def test_one_call_at_a_time_is_passed_on() -> None:
    request = replace(ask("a"), tools=(TOOL,))
    assert "parallel_tool_calls" not in body(request)
    one = replace(request, tool_choice=ToolChoice("auto", parallel=False))
    assert body(one)["parallel_tool_calls"] is False


def test_no_special_token_is_made_of_what_clients_write() -> None:
    specials = Specials(
        ("<|a|>", "<|b|>", "|>x", "", "o")
    )  # one character cannot be broken, and must not be tried for ever
    texts = ("<|a|>", "<|", "b|>", "<|a|>x", "<<|a|>|a|>", "plain")
    tool = Tool("f", "<|a|>", {"<|b|>": ["<|a|>"]})
    request = replace(ask(*texts), tools=(tool,), tool_choice=ToolChoice("auto"))
    sent = encode(to_body(request, "m", KINDS["vllm"], (), specials)).decode()
    for special in ("<|a|>", "<|b|>", "|>x"):
        assert special not in sent
    assert sent.replace("\u200b", "") == encode(to_body(request, "m", KINDS["vllm"], (), NONE)).decode()


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        body(ask("\ud800"))


# --- what is read ----------------------------------------------------------------------------------------------------


def take(answer: Answer, *chunks: Any) -> list[Delta]:
    events = [ServerEvent(c if isinstance(c, str) else json.dumps(c)) for c in chunks]
    return [delta for event in events for delta in answer.take(event)]


def choice(finish_reason: str | None = None, **delta: Any) -> Any:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def test_tool_calls_have_their_id_and_name_once() -> None:
    answer = Answer("r1")
    deltas = take(
        answer,
        choice(reasoning="hm"),
        choice(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "look", "arguments": ""}}]),
        choice(tool_calls=[{"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"a"'}}]),
        choice(tool_calls=[{"index": 0, "function": {"arguments": ":1}"}}]),
        choice(tool_calls=[{"index": 1, "function": {"name": "hear", "arguments": "{}"}}]),
        choice("tool_calls"),
        "[DONE]",
    )
    assert deltas == [
        ReasoningDelta("hm"),
        ToolCallDelta(0, "", "c1", "look"),
        ToolCallDelta(0, '{"a"'),
        ToolCallDelta(0, ":1}"),
        ToolCallDelta(1, "{}", "call_r1_1", "hear"),
    ]
    assert answer.reason == "tool_calls"
    assert answer.done


def test_log_probabilities_are_kept_in_their_range() -> None:
    answer = Answer("r")
    told = {"token": "a", "logprob": -1e30, "bytes": [97], "top_logprobs": [{"token": "\u00e9", "logprob": 0.1}]}
    (delta,) = take(answer, {"choices": [{"index": 0, "delta": {"content": "a"}, "logprobs": {"content": [told]}}]})
    assert isinstance(delta, TextDelta)
    assert delta.logprobs[0].logprob == -9999.0
    assert delta.logprobs[0].top[0].logprob == 0.0
    assert delta.logprobs[0].top[0].bytes == tuple("\u00e9".encode())


def test_the_token_that_ends_an_answer_is_no_part_of_it() -> None:
    """vLLM tells it with the last chunk, with no text; other servers, and our own engines, do not."""
    answer = Answer("r")
    end = {"token": "<|im_end|>", "logprob": -0.1, "bytes": [60], "top_logprobs": []}
    word = {"token": "red", "logprob": -0.2, "bytes": [*b"red"], "top_logprobs": []}
    take(answer, {"choices": [{"index": 0, "delta": {"content": "red"}, "logprobs": {"content": [word]}}]})
    last = {"index": 0, "delta": {"content": ""}, "logprobs": {"content": [end]}, "finish_reason": "stop"}
    assert take(answer, {"choices": [last]}) == []
    assert (answer.reason, answer.num_tokens) == ("stop", 2), "it was made, and is counted"
    together = {**last, "delta": {"content": "red"}, "logprobs": {"content": [word, end]}}
    (delta,) = take(answer := Answer("r"), {"choices": [together]})
    assert isinstance(delta, TextDelta)
    assert [p.token for p in delta.logprobs] == ["red"]
    assert answer.num_tokens == 2
    (delta,) = take(Answer("r"), {"choices": [{**together, "logprobs": {"content": [word]}}]})
    assert isinstance(delta, TextDelta)
    assert [p.token for p in delta.logprobs] == ["red"], "the last word of an answer is part of it"


@pytest.mark.parametrize("chars", range(1, 6))
def test_a_stop_that_we_watch_for_ends_it_wherever_it_is_cut(chars: int) -> None:
    answer = Answer("r", stops=("STOP", "ST\u00d6P"))
    text = "before STO STOP after"
    deltas = []
    for start in range(0, len(text), chars):
        deltas += take(answer, choice(content=text[start : start + chars]))
        if answer.done:
            break
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "before STO "
    assert (answer.reason, answer.stop_sequence, answer.done) == ("stop", "STOP", True)


def test_llamacpps_timings_are_its_usage_where_we_close_the_stream() -> None:
    answer = Answer("r", stops=("b",))
    take(answer, {**choice(content="a"), "timings": {"prompt_n": 3, "cache_n": 4, "predicted_n": 1}})
    take(answer, {**choice(content="b"), "timings": {"prompt_n": 3, "cache_n": 4, "predicted_n": 2}})
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.cached_tokens, answer.usage.completion_tokens) == (7, 4, 2)


def test_the_stop_that_a_server_tells() -> None:
    for key in ("stop_reason", "matched_stop"):
        answer = Answer("r")
        take(answer, {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop", key: "END"}]})
        assert answer.stop_sequence == "END"
    answer = Answer("r")
    take(answer, {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": 151645}]})
    assert answer.stop_sequence is None, "an end token is no stop string"


def test_retry_after() -> None:
    def seconds(value: str | None) -> float:
        return to_refusal(429, None, value).retry_after_s

    assert [seconds(v) for v in ("7", "0.5", "-3", "1e9", "nan", "soon", None)] == [7.0, 0.5, 0.0, 120.0, 1.0, 1.0, 1.0]
    assert 50 < seconds(formatdate(time.time() + 60, usegmt=True)) <= 60


def test_only_a_field_of_ours_is_named_to_a_client() -> None:
    reply = {"error": {"message": "x", "param": "messages[0].content", "code": None}}
    refusal = read_refusal(400, msgspec.json.encode(reply), None, frozenset({"messages"}))
    assert to_error(refusal).param == "messages"
    reply["error"]["param"] = "/etc/passwd"
    assert to_error(read_refusal(400, msgspec.json.encode(reply), None, frozenset({"messages"}))).param is None


def test_ready_is_what_each_kind_calls_it() -> None:
    def config(state: str) -> Any:
        return {"m": {"model_version_status": [{"version": "1", "state": state, "status": {}}]}}

    ovms = KINDS["ovms"].is_ready
    assert ovms(config("AVAILABLE"), "m")
    assert not any(ovms(config(state), "m") for state in ("START", "LOADING", "UNLOADING", "END"))
    assert not ovms(config("AVAILABLE"), "other")
    vllm = KINDS["vllm"]
    listed = {"data": [{"id": "m", "max_model_len": 99}]}
    assert vllm.is_ready(listed, "m")
    assert vllm.context_length(listed, "m") == 99
    assert not vllm.is_ready(listed, "other")
    own = KINDS["sightline"]
    assert own.is_ready({"sightline": {"state": "ready"}}, "m")
    assert not own.is_ready({"sightline": {"state": "loading"}}, "m")
    for kind in KINDS.values():
        for nonsense in ({}, [], "x", 3, {"data": 1}, {"m": []}, {"data": [1, {"id": {}}]}):
            kind.is_ready(nonsense, "m")
            kind.context_length(nonsense, "m")


def test_paths_are_from_the_base_or_from_the_root() -> None:
    address = Address("http://h:8000/openai/v1/")
    assert address.url("chat/completions") == "http://h:8000/openai/v1/chat/completions"
    assert address.url("/health") == "http://h:8000/openai/health"


def test_a_budget_is_any_of_ours() -> None:
    def budget(value: Any) -> Any:
        options = {"base_url": "http://h/v1", "budget": value, "max_pixels": 1000}
        config = ModelConfig(name="m", engine="remote", options=options)
        return read_budget(read_options(config, RemoteOptions))

    assert budget({"type": "CellBudget", "cell": 28, "min_pixels": 784, "max_pixels": 7840}) == CellBudget(
        28, 784, 7840
    )
    assert budget("as-is").serve(20, 30)[:2] == (20, 30)
    assert budget("as-is").largest_tokens < 10, "a guess, but not of pixels"
    assert budget("gpt-4o-2024-08-06") == published_budget("gpt-4o")
    with pytest.raises(InvalidRequest, match="no provider"):
        budget("gpt-9")
    width, height, _ = budget("as-is").serve(400, 300)
    assert width * height <= 1000
    assert budget(None) is None


# --- counting --------------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.anyio


async def test_llamacpp_tells_what_a_prompt_costs_and_not_what_of_it_are_pictures() -> None:
    asked = []

    async def server(path: str, body: bytes) -> bytes:
        asked.append((path, json.loads(body)["messages"][0]["content"]))
        return b'{"input_tokens": 11, "object": "response.input_tokens"}'

    counter = Counter(KINDS["llamacpp"], "m", CellBudget(28, 784, 7840), NONE, server)
    count = await counter.count(ask(picture(), "x"))
    assert (count.prompt_tokens, count.image_tokens, count.exact) == (11, (4,), True)
    ((path, content),) = asked
    assert path == "chat/completions/input_tokens"
    assert [part["type"] for part in content] == ["image_url", "text"]
    with pytest.raises(UpstreamFailed):  # three pictures of four tokens are more than all of it
        await counter.count(ask(picture(), picture(), picture(), "x"))


async def test_where_a_picture_costs_nobody_knows_what_a_count_is_an_estimate() -> None:
    async def nobody(path: str, body: bytes) -> bytes:
        raise AssertionError("nothing to ask")

    for kind in ("vllm", "llamacpp", "openai", "ovms"):
        count = await Counter(KINDS[kind], "m", None, NONE, nobody).count(ask(picture(280), "a few words"))
        assert not count.exact
        assert count.image_tokens == (100,)


def test_words_that_came_together_go_on_as_one_delta() -> None:
    x = TokenLogprob("x", -1.0, (120,))
    call = ToolCallDelta(0, "{}", "call_1", "look")
    deltas: list[Delta] = [ReasoningDelta("r"), TextDelta("a"), TextDelta("x", 2, (x,)), call, TextDelta("b"), call]
    assert joined(deltas) == [ReasoningDelta("r"), TextDelta("ax", 3, (x,)), call, TextDelta("b"), call]
    assert joined([]) == []


# --- pictures --------------------------------------------------------------------------------------------------------


async def test_a_picture_in_use_twice_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []

    def encode_one(pixels: Any) -> bytes:
        encoded.append(pixels.shape)
        return to_data_uri(pixels)

    monkeypatch.setattr("sightline.engines.remote.pictures.to_data_uri", encode_one)
    pictures = Pictures()
    a, b = picture(), picture(84)
    async with pictures.encoded([a, b, a], "t") as first, pictures.encoded([b], "t") as second:
        assert first[0] == first[2] != first[1] == second[0]
        assert len(encoded) == 2
        async with pictures.encoded([b], "another tenant") as third:
            assert third == second
    assert len(encoded) == 3, "caches never cross tenants"
    async with pictures.encoded([b, a], "t") as fourth:
        assert len(encoded) == 3, "kept for the next request"
        assert fourth == (first[1], first[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (9, 1), (64, 48), (37, 53)])
@pytest.mark.parametrize("kind", ["noise", "flat", "a part of another"])
def test_a_png_holds_every_pixel(shape: tuple[int, int], kind: str) -> None:
    height, width = shape
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    if kind == "flat":
        pixels[:] = (250, 3, 128)
    elif kind == "a part of another":
        pixels = np.tile(pixels, (2, 2, 1))[::2, ::2]
    file = to_png(pixels)
    with PILImage.open(io.BytesIO(file)) as opened:
        opened.verify()
    with PILImage.open(io.BytesIO(file)) as opened:
        assert (opened.mode, opened.size) == ("RGB", pixels.shape[1::-1])
        assert np.array_equal(np.asarray(opened), pixels)


async def test_pictures_are_kept_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Any] = []

    def encode_one(pixels: Any) -> bytes:
        encoded.append(pixels)
        return b"x" * 100

    monkeypatch.setattr("sightline.engines.remote.pictures.to_data_uri", encode_one)
    a, b, c = picture(), picture(84), picture(112)
    two = Pictures(max_bytes=250)
    for images in ([a], [b], [a], [c], [a], [b]):  # b is the one used longest ago when c comes
        async with two.encoded(images, "t"):
            pass
    assert len(encoded) == 4
    assert two._kept_bytes == 200
    none = Pictures(max_bytes=0)
    for _ in range(2):
        async with none.encoded([a], "t"):
            pass
    assert len(encoded) == 6


def test_pictures_are_spliced_into_a_body_where_their_marks_stand() -> None:
    body = {"a": ["one", {"url": "two"}], "b": "\u00fc"}
    pieces = spliced(body, [("one", b"A" * 9), ("two", b"B")])
    assert json.loads(b"".join(pieces)) == {"a": ["A" * 9, {"url": "B"}], "b": "\u00fc"}
    assert pieces[1] == b"A" * 9
    assert spliced({"a": 1}, []) == [b'{"a":1}']


def test_names_are_of_tenant_content_and_size_and_are_no_secret_of_others() -> None:
    held = Held(b"salt")
    names = {
        held.name(picture(), "t"),
        held.name(picture(84), "t"),
        held.name(picture(digest="sha256:b"), "t"),
        held.name(picture(), "u"),
        Held(b"other").name(picture(), "t"),
    }
    assert len(names) == 5
    assert held.name(picture(), "t") == held.name(picture(), "t")


def test_a_server_that_never_holds_anything_is_not_asked_by_name_for_ever() -> None:
    held = Held()
    for _ in range(20):
        held.add(["a"])
        if "a" not in held:
            break
        held.missed(["a"])
    else:
        raise AssertionError("each request would be sent twice")
    for _ in range(20):
        held.missed(["a"])
        held.hit()
        held.add(["a"])
        assert "a" in held, "it missed now and then only"


def test_a_blank_picture_is_small() -> None:
    assert len(blank(1288, 966)) < 2_000
