"""The engine `ollama`: the engine contract on a stand-in of Ollama, and what is particular to Ollama."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from sightline import testing as conformance
from sightline.config import ModelConfig
from sightline.engines import Engine
from sightline.engines.ollama import OllamaEngine
from sightline.engines.ollama.server import lines
from sightline.errors import (
    BodyTooLarge,
    ContextLengthExceeded,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    SightlineError,
    UnsupportedFeature,
    UpstreamFailed,
)
from sightline.testing import Clause, Subject, answer, ask, collect, ends, picture
from sightline.types import (
    EmbeddingRequest,
    Finish,
    Image,
    Message,
    ReasoningDelta,
    ResponseFormat,
    Text,
    TextDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from tests.engines.endless import Endless

BUDGET = {"type": "CellBudget", "cell": 28, "min_pixels": 3136, "max_pixels": 1003520}
SPECIALS = ("<|im_start|>", "<|im_end|>", "<|image_pad|>", "[img]", "[img-0]")
NOT_KEPT = {
    "usage_is_exact": "Ollama cannot count a prompt before it runs: count_tokens estimates, and says so",
    "what_exceeds_the_context_is_refused_before_anything_runs": (
        "for the same reason: Ollama refuses a prompt that is too long, and an answer ends where the context does"
    ),
    **{
        clause.__name__: "the stand-in keeps to no schema and calls what it likes"
        for clause in conformance.CLAUSES
        if clause.__module__ == conformance.structured.__name__
    },
}
"""Clauses that cannot hold of Ollama."""
CLAUSES = [clause for clause in conformance.CLAUSES if clause.__name__ not in NOT_KEPT]


@contextmanager
def ollama(*arguments: str) -> Iterator[str]:
    """A stand-in; its address."""
    command = [sys.executable, "-m", "tests.engines.ollama_standin", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def config(base_url: str, model: str = "seer", **options: Any) -> ModelConfig:
    return ModelConfig(name=model, engine="ollama", options={"base_url": base_url, "budget": BUDGET, **options})


@asynccontextmanager
async def started(base_url: str, model: str = "seer", **options: Any) -> AsyncIterator[OllamaEngine]:
    engine = OllamaEngine(config(base_url, model, **options))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def sent(base_url: str) -> Any:
    """What the stand-in was sent for its last chat."""
    with urllib.request.urlopen(f"{base_url}/standin") as reply:
        return json.load(reply)["sent"][-1]


async def sees(engine: Engine) -> None:
    red, blue = picture(engine.info, 640, 480, (255, 0, 0)), picture(engine.info, 100, 100, (0, 0, 255))
    for first, second, colours in ((red, blue, ("red", "blue")), (blue, red, ("blue", "red"))):
        text, _ = await answer(engine, ask("here", first, "there", second, "?", max_tokens=30))
        sizes = [f"{image.served_width}x{image.served_height}" for image in (first, second)]
        assert f"here:{sizes[0]} {colours[0]}; there:{sizes[1]} {colours[1]} ." in text


# --- the contract ----------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    name: str
    """As the table of `make test-engines` shows it."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with ollama() as address:
        yield address


@pytest.fixture(scope="module", params=[Row("ollama")], ids=lambda row: row.name)
def subject(base_url: str) -> Subject:
    return Subject("ollama", config(base_url), Endless, sees, SPECIALS)


@pytest.fixture(scope="module")
async def engine(subject: Subject, anyio_backend: str) -> AsyncIterator[Engine]:
    async with subject.running() as engine:
        yield engine


@pytest.mark.anyio
@pytest.mark.parametrize("clause", CLAUSES, ids=lambda clause: clause.__name__)
async def test_contract(clause: Clause, subject: Subject, engine: Engine) -> None:
    async with asyncio.timeout(100):
        await clause(subject, engine)


def test_what_is_not_kept_is_named_rightly() -> None:
    assert set(NOT_KEPT) < {clause.__name__ for clause in conformance.CLAUSES}


# --- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_it_knows_the_model_once_it_is_loaded(base_url: str) -> None:
    async with started(base_url, context_length=300, keep_alive="10m") as engine:
        info = engine.info
        assert (info.engine, info.context_length) == ("ollama", 300)
        assert {"tools", "logprobs", "json_schema", "seed"} <= info.features
        assert not info.features & {"ignore_eos", "logit_bias", "min_tokens"}
        assert engine.state == "ready"
        await answer(engine, ask("hello", max_tokens=1))
        assert (sent(base_url)["keep_alive"], sent(base_url)["options"]["num_ctx"]) == ("10m", 300)
    assert engine.state == "failed"


@pytest.mark.anyio
async def test_a_model_that_only_reads_gets_no_pictures_and_no_tools(base_url: str) -> None:
    async with started(base_url, "reader") as engine:
        assert engine.info.vision is None
        assert "tools" not in engine.info.features
        image = Image(np.zeros((28, 28, 3), np.uint8), "sha256:a", 28, 28, "image/png", 9)
        assert "cannot see" in str(await ends(engine, ask(image, "?")))


@pytest.mark.anyio
async def test_without_a_budget_pictures_are_served_as_they_are_and_cost_nobody_knows_what(base_url: str) -> None:
    async with started(base_url, budget=None) as engine:
        image = picture(engine.info, 300, 200)
        assert (image.served_width, image.served_height) == (300, 200)
        assert (await engine.count_tokens(ask(image, "?"))).exact is False
        _, finish = await answer(engine, ask(image, "?", max_tokens=2))
        assert finish.usage.image_tokens == (0,)
        assert finish.usage.prompt_tokens == 2 + 11 * 8, "as Ollama counted"


@pytest.mark.anyio
async def test_an_older_ollama_has_no_logprobs_and_tells_no_prompt() -> None:
    with ollama("--version", "0.10.1") as address:
        async with started(address) as engine:
            assert "logprobs" not in engine.info.features
            await sees(engine)


@pytest.mark.anyio
async def test_pictures_after_the_text_where_the_template_is_not_ollamas(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with ollama("--placing", "after") as address:
        async with started(address) as engine:
            red, blue = picture(engine.info, 64, 64, (255, 0, 0)), picture(engine.info, 64, 64, (0, 0, 255))
            text, _ = await answer(engine, ask("<|im_", red, "end|>", blue, max_tokens=9))
            size = f"{red.served_width}x{red.served_height}"
            assert f"end|>:{size} red; :{size} blue ." in text
            message = sent(address)["messages"][0]
            assert (message["content"], len(message["images"])) == ("<|im_\nend|>", 2)
    assert "puts its pictures after the text" in caplog.text


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("nobody", {}, "does not have the model 'nobody'. Pull it (`ollama pull nobody`"),
        ("unknown", {"pull": True}, "could not pull the model 'unknown': pull model manifest: file does not exist"),
        ("lost", {"pull": True}, "could not pull the model 'lost': it does not say why"),
        ("seer-cloud", {}, "allow_cloud=true"),
        ("reader", {"think": True}, "cannot think"),
        ("seer", {"ca_file": "/nowhere.pem", "base_url": "https://127.0.0.1:1"}, "names no file of certificates"),
    ],
)
@pytest.mark.anyio
async def test_what_cannot_be_started_says_why(base_url: str, model: str, options: dict[str, Any], says: str) -> None:
    engine = OllamaEngine(config(**{"base_url": base_url, "model": model, **options}))
    with pytest.raises(EngineUnavailable) as caught:
        await engine.start()
    assert says in caught.value.message
    assert caught.value.message.isprintable()
    assert engine.state == "failed"


@pytest.mark.anyio
async def test_an_ollama_that_is_not_there_is_waited_for_and_then_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sightline.engines.ollama.engine._TELL_S", 0.0)
    own = ModelConfig(name="seer", engine="ollama", options={"base_url": "http://127.0.0.1:9"}, start_timeout_s=0.3)
    with pytest.raises(EngineUnavailable, match=r"did not answer within 0\.3 s: .* Is it running"):
        await OllamaEngine(own).start()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["model seer"]
    assert "Ollama at http://127.0.0.1:9 is waited for, for 0.3 s at most" in caplog.text


@pytest.mark.anyio
async def test_pulling_tells_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with ollama() as address:
        engine = OllamaEngine(config(address, "new", pull=True))
        starting = asyncio.create_task(engine.start())
        seen = set()
        while not starting.done():
            seen.add((engine.state, engine.progress))
            await asyncio.sleep(0.002)
        await starting
        parts = [part for _, part in seen if part is not None]
        assert {state for state, part in seen if part is not None} == {"loading"}
        assert len(parts) > 10
        assert max(parts) == 1.0
        assert (engine.state, engine.progress) == ("ready", None)
        assert 5 <= caplog.text.count("pulling new:") <= 30
        assert "pulling new: 100 % of 4.00 GB" in caplog.text
        await engine.close()


@pytest.mark.anyio
async def test_the_model_leaves_memory_only_when_that_is_wanted(base_url: str) -> None:
    def loaded() -> Any:
        with urllib.request.urlopen(f"{base_url}/standin") as reply:
            return json.load(reply)["loaded"]

    async with started(base_url, "reader"):
        pass
    assert "reader:latest" in loaded()
    async with started(base_url, "reader", unload_at_close=True):
        pass
    assert "reader:latest" not in loaded()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base_url": "http://localhost:11434/v1"}, "address without a path"),
        ({"kind": "vllm"}, "use the engine remote"),
        ({"keep_alive": "soon"}, "keep_alive is a duration"),
        ({"runner_options": {"num_ctx": 5}}, "set by context_length"),
        ({"num_gpu": 1}, "Known: "),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        OllamaEngine(ModelConfig(name="seer", engine="ollama", options=options))
    assert says in caught.value.message


# --- what is sent ----------------------------------------------------------------------------------------------------

LOOK = Tool("look", "looks", {"type": "object", "properties": {"where": {"type": "string"}}})


@pytest.mark.anyio
async def test_every_field_has_its_place(base_url: str) -> None:
    request = ask(
        "hello", max_tokens=3, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, seed=2**40 + 5, presence_penalty=0.25,
        frequency_penalty=-0.5, repetition_penalty=1.5, logprobs=2, stop=("never",),
    )  # fmt: skip
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    request = replace(request, tools=(LOOK,), response_format=ResponseFormat("json_schema", schema))
    async with started(base_url, runner_options={"num_thread": 2}, think="low") as engine:
        await collect(engine, request)
    body = sent(base_url)
    assert body["options"] == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "seed": 5, "num_predict": 3, "num_ctx": 600,
        "presence_penalty": 0.25, "frequency_penalty": -0.5, "repeat_penalty": 1.5, "num_thread": 2,
    }  # fmt: skip
    assert body["format"] == schema
    assert body["tools"][0]["function"]["parameters"] == LOOK.parameters
    assert (body["logprobs"], body["top_logprobs"], body["think"]) == (True, 2, "low")
    assert (body["stream"], body["truncate"], body["shift"]) == (True, False, False)


@pytest.mark.anyio
async def test_what_is_not_said_is_not_left_to_ollamas_defaults(base_url: str) -> None:
    """Which are: top_k 40, top_p 0.9, and what a Modelfile says."""
    async with started(base_url) as engine:
        request = ask("hello", max_tokens=1)
        await collect(engine, replace(request, response_format=ResponseFormat("json_object")))
    options = sent(base_url)["options"]
    assert (options["top_k"], options["top_p"], options["min_p"], options["repeat_penalty"]) == (0, 1.0, 0.0, 1.0)
    assert sent(base_url)["format"] == "json"


@pytest.mark.anyio
async def test_calls_and_their_results_go_back_as_objects(base_url: str) -> None:
    call = ToolCall("call_1", "look", '{"where": "left"}')
    messages = (
        Message[Image]("user", (Text("look"),)),
        Message[Image]("assistant", (), tool_calls=(call,)),
        Message[Image]("tool", (Text("a cat"),), tool_call_id="call_1"),
    )
    async with started(base_url) as engine:
        request = replace(ask("", max_tokens=1), messages=messages, tools=(LOOK,))
        await collect(engine, request)
        _, assistant, result = sent(base_url)["messages"]
        assert assistant["tool_calls"] == [
            {"id": "call_1", "function": {"index": 0, "name": "look", "arguments": {"where": "left"}}}
        ]
        assert result == {"role": "tool", "content": "a cat", "tool_call_id": "call_1", "tool_name": "look"}
        await collect(engine, replace(request, tool_choice=ToolChoice("none")))
        assert "tools" not in sent(base_url)
        broken = replace(messages[1], tool_calls=(replace(call, arguments="[1]"),))
        assert "JSON object" in str(await ends(engine, replace(request, messages=(messages[0], broken))))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": (LOOK,), "tool_choice": ToolChoice("required")}, "tool_choice"),
        ({"tools": (replace(LOOK, strict=True),)}, "tools"),
        ({"messages": (Message[Image]("user", (Text("hi"),), name="ann"),)}, "messages"),
        ({"sampling": replace(ask().sampling, ignore_eos=True)}, "ignore_eos"),
        ({"sampling": replace(ask().sampling, logit_bias={5: 1.0})}, "logit_bias"),
    ],
)
@pytest.mark.anyio
async def test_what_ollama_has_no_field_for_is_refused(base_url: str, change: dict[str, Any], param: str) -> None:
    async with started(base_url) as engine:
        with pytest.raises(UnsupportedFeature) as caught:
            await collect(engine, replace(ask("hi"), **change))
    assert caught.value.param == param


@pytest.mark.anyio
async def test_clients_write_no_pictures_and_no_turns(base_url: str) -> None:
    """[img] in a text would be taken for the place of the picture that follows it."""
    async with started(base_url) as engine:
        red = picture(engine.info, 64, 64, (255, 0, 0))
        text, finish = await answer(engine, ask("[img] [img-0] <|im_end|> here", red, "?", max_tokens=9))
        assert f"see here:{red.served_width}x{red.served_height} red ." in text
        assert finish.reason == "length"
    written = sent(base_url)["messages"][0]["content"]
    assert written.count("[img]") == 1
    assert "<|im_end|>" not in written
    assert "<b>" in (await _written(base_url, "<b>")), "no control token, only a token of its own"


async def _written(base_url: str, text: str) -> str:
    async with started(base_url) as engine:
        await answer(engine, ask(text, max_tokens=1))
    return str(sent(base_url)["messages"][0]["content"])


# --- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_thoughts_and_calls_are_told_apart(base_url: str) -> None:
    async with started(base_url) as engine:
        *deltas, _ = await collect(engine, ask("think"))
        assert [type(delta) for delta in deltas] == [ReasoningDelta, TextDelta]
        *deltas, finish = await collect(engine, replace(ask("call"), tools=(LOOK,)))
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.usage.prompt_tokens, finish.usage.completion_tokens) == ("tool_calls", 7, 9)
    calls = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
    assert [(c.index, c.id, c.name, json.loads(c.arguments)) for c in calls] == [
        (0, "call_a", "look", {"where": "left é"}),
        (1, "call_request_1", "look", {"where": "left é"}),
    ], "Ollama gives both the index 0"


@pytest.mark.parametrize("how", ["break-off", "late-error", "garbage", "half-a-line", "no-reason", "unload"])
@pytest.mark.anyio
async def test_a_stream_that_is_not_whole_is_no_answer(base_url: str, how: str) -> None:
    async with started(base_url) as engine:
        taken = []
        with pytest.raises(UpstreamFailed) as caught:
            async for event in engine.generate(ask(how)):
                taken.append(event)
    assert not any(isinstance(event, Finish) for event in taken)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("busy", Overloaded),
        ("refuse", InvalidRequest),
        ("broken", UpstreamFailed),
        ("who", EngineUnavailable),
        ("gone", EngineUnavailable),
        ("big", BodyTooLarge),
    ],
)
@pytest.mark.anyio
async def test_refusals_by_status(base_url: str, word: str, error: type[SightlineError]) -> None:
    async with started(base_url) as engine:
        with pytest.raises(error) as caught:
            await collect(engine, ask(word))
    assert type(caught.value) is error
    assert "secret" not in str(caught.value)


@pytest.mark.anyio
async def test_what_does_not_fit_the_context(base_url: str) -> None:
    async with started(base_url) as engine:
        for request in (ask("word " * 700), ask("hello", max_tokens=600)):
            with pytest.raises(ContextLengthExceeded, match="600 tokens"):
                await collect(engine, request)


class Pieces:
    """A reply whose body comes in these pieces."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def pieces(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            yield piece


@pytest.mark.anyio
async def test_lines_are_the_same_for_every_cut_of_the_bytes() -> None:
    stream = '{"a":"é"}\n\r\n{"b":1}\n{"c"'.encode()
    whole = ['{"a":"é"}'.encode(), b'{"b":1}']
    for first in range(len(stream) + 1):
        for second in range(first, len(stream) + 1):
            pieces: Any = Pieces([stream[:first], stream[first:second], stream[second:]])
            assert [line async for line in lines(pieces)] == whole


@pytest.mark.anyio
async def test_a_line_without_an_end_does_not_fill_memory() -> None:
    endless: Any = Pieces([b"x" * 1_000_000] * 100)
    with pytest.raises(UpstreamFailed):
        assert not [line async for line in lines(endless)]


@pytest.mark.anyio
async def test_an_answer_cut_by_a_stop_has_its_tokens_counted_as_they_came(base_url: str) -> None:
    async with started(base_url) as engine:
        text, finish = await answer(engine, ask("hello", stop=("nothing",)))
    assert (text, finish.stop_sequence, finish.usage.completion_tokens) == ("I see ", "nothing", 3)
    assert finish.usage.prompt_tokens > 0


# --- Ollama itself ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif("OLLAMA_HOST" not in os.environ, reason="OLLAMA_HOST names no Ollama")
@pytest.mark.engine_reference
@pytest.mark.anyio
async def test_ollama_itself_sees_a_colour() -> None:
    """`OLLAMA_HOST=127.0.0.1:11434 OLLAMA_MODEL=moondream`: pulled if it is not there."""
    host = os.environ["OLLAMA_HOST"]
    own = ModelConfig(
        name=os.environ.get("OLLAMA_MODEL", "moondream"),
        engine="ollama",
        options={"base_url": host if "://" in host else f"http://{host}", "pull": True, "context_length": 2048},
        start_timeout_s=600.0,
    )
    engine = OllamaEngine(own)
    await engine.start()
    try:
        image = picture(engine.info, 224, 224, (255, 0, 0))
        text, finish = await answer(engine, ask(image, "What colour is this picture? One word.", max_tokens=16))
        assert "red" in text.lower()
        assert finish.usage.prompt_tokens > 10
        _, finish = await answer(engine, ask("Count to one hundred.", max_tokens=5))
        assert (finish.reason, finish.usage.completion_tokens) == ("length", 5)
    finally:
        await engine.close()


@pytest.mark.anyio
async def test_a_model_that_only_embeds(base_url: str) -> None:
    async with started(base_url, "texts", context_length=100) as engine:
        assert engine.info.work == {"embeddings"}
        made = await engine.embed(EmbeddingRequest("r", "texts", ("banana", "x")))
        assert made.vectors.tolist() == [[3.0, 3.0], [0.0, 1.0]]
        assert made.prompt_tokens == 7
        for request, param in (
            (EmbeddingRequest("r", "texts", ((1, 2),)), "input"),
            (EmbeddingRequest("r", "texts", ("a",), dimensions=3), "dimensions"),
        ):
            with pytest.raises(InvalidRequest) as refused:
                await engine.embed(request)
            assert refused.value.param == param
    async with started(base_url, "reader") as engine:
        assert engine.info.work == {"messages", "completions"}
