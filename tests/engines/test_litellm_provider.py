"""The engine `litellm` itself: on local stand-ins of OpenAI's and Anthropic's wires, in its own process.

`sightline engine install litellm --into DIRECTORY` makes an environment, in which `pip install -e '.[dev]'` puts what
tests need; its Python runs this with `-m engine_reference`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple

import psutil
import pytest

from sightline import testing as conformance
from sightline.config import ModelConfig
from sightline.engines import ENGINES, Engine, open_engine
from sightline.engines.worker import WorkerEngine
from sightline.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    SightlineError,
    UnsupportedFeature,
    UpstreamFailed,
)
from sightline.testing import Clause, Subject, answer, ask, collect, picture
from sightline.types import Finish, Message, ResponseFormat, Text, Tool, ToolCallDelta, ToolChoice
from tests.engines.endless import Endless
from tests.engines.provider_standin import CONTEXT, Provider, provider

pytestmark = [
    pytest.mark.engine_reference,
    pytest.mark.anyio,
    pytest.mark.skipif(find_spec("litellm") is None, reason="the package litellm is not installed"),
]

BUDGET = {"type": "CellBudget", "cell": 28, "min_pixels": 3136, "max_pixels": 1003520}
KEY = "sk-named-1234"
CANARY = "canary-5678"
LOOK = Tool("look", "looks", {"type": "object", "properties": {"where": {"type": "string"}}})


class Row(NamedTuple):
    name: str
    """As the table of `make test-engines` shows it."""
    model: str
    path: str
    key: str


ROWS = [
    Row("litellm-openai", "openai/gpt-4.1-mini", "/v1", "OPENAI_API_KEY"),
    Row("litellm-anthropic", "anthropic/claude-sonnet-4-5", "", "ANTHROPIC_API_KEY"),
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", autouse=True)
def keys() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for row in ROWS:
            patch.setenv(row.key, KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
        patch.setenv("SIGHTLINE_UPSTREAM_KEY", CANARY)
        yield


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
async def standin(anyio_backend: str) -> AsyncIterator[Provider]:
    async with provider() as standin:
        yield standin


def config(row: Row, standin: Provider, **options: Any) -> ModelConfig:
    own = {"model": row.model, "api_base": standin.base_url + row.path, "env": [row.key], "context_length": CONTEXT}
    return ModelConfig(name="theirs", engine="litellm", options={**own, "budget": BUDGET, **options})


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def subject(request: pytest.FixtureRequest, standin: Provider) -> Subject:
    row: Row = request.param
    return Subject(row.name, config(row, standin), Endless, sees, ("<|im_end|>",))


@pytest.fixture(scope="module")
async def engine(subject: Subject, anyio_backend: str) -> AsyncIterator[Engine]:
    async with subject.running() as engine:
        yield engine


@asynccontextmanager
async def started(row: Row, standin: Provider, **options: Any) -> AsyncIterator[WorkerEngine]:
    engine = open_engine(config(row, standin, **options))
    assert isinstance(engine, WorkerEngine)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def sees(engine: Engine) -> None:
    red, blue = picture(engine.info, 640, 480, (255, 0, 0)), picture(engine.info, 100, 100, (0, 0, 255))
    for first, second, colours in ((red, blue, ("red", "blue")), (blue, red, ("blue", "red"))):
        text, _ = await answer(engine, ask("here", first, "there", second, "?", max_tokens=30))
        sizes = [f"{image.served_width}x{image.served_height}" for image in (first, second)]
        assert f"here:{sizes[0]} {colours[0]}; there:{sizes[1]} {colours[1]} ." in text


@pytest.mark.parametrize("clause", conformance.CLAUSES, ids=lambda clause: clause.__name__)
async def test_contract(clause: Clause, subject: Subject, engine: Engine) -> None:
    async with asyncio.timeout(100):
        await clause(subject, engine)


# --- whose keys ------------------------------------------------------------------------------------------------------


async def test_its_process_sees_the_named_keys_and_no_others(row: Row, standin: Provider) -> None:
    async with started(row, standin) as engine:
        seen = psutil.Process(engine.pid).environ()
        await answer(engine, ask("hello", max_tokens=1))
    assert seen[row.key] == KEY
    assert CANARY not in seen.values()
    assert not {other.key for other in ROWS} - {row.key} & seen.keys()
    assert seen["HOME"] == "/nonexistent"
    headers = standin.requests[-1].headers
    assert KEY in (headers.get("x-api-key"), headers.get("authorization", "").removeprefix("Bearer "))
    assert CANARY not in str(standin.requests[-1])


def test_importing_it_calls_nobody() -> None:
    program = (
        "import socket, sys\n"
        "def refuse(*a, **k): print('CALLED', a, file=sys.stderr); raise OSError\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse\n"
        "from sightline.engines.litellm_provider.provider import import_litellm\n"
        "litellm = import_litellm()\n"
        "assert litellm.get_model_info('gpt-4.1-mini')['max_input_tokens']\n"
        "print(litellm.drop_params, litellm.callbacks, litellm.success_callback, litellm.num_retries)\n"
    )
    environment = {**(ENGINES["litellm"].environment or {}), "PATH": "/usr/bin"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False [] [] 0"
    assert "CALLED" not in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"env": ["NOT_SET_ANYWHERE"]}, "NOT_SET_ANYWHERE (option env) is not set"),
        ({"env": []}, "set it in this server's environment, and name it in the option env"),
        ({"model": "nobody/nothing"}, "knows no provider of 'nobody/nothing'"),
        ({"model": "openai/unheard-of", "context_length": None}, "set the option context_length"),
        ({"env": ["sk-1234567890"]}, "never their values"),
        ({"env": ["AIza1234567890"]}, "never their values"),
        ({"modle": "x"}, "Known: "),
    ],
)
async def test_what_cannot_be_started_says_why(standin: Provider, options: dict[str, Any], says: str) -> None:
    engine = open_engine(config(ROWS[0], standin, **options))
    try:
        with pytest.raises(EngineUnavailable) as caught:
            await engine.start()
        assert says in caught.value.message
        assert "sk-" not in caught.value.message
        assert "AIza" not in caught.value.message, "no part of a key"
    finally:
        await engine.close()


async def test_what_is_known_of_a_model(standin: Provider) -> None:
    async with started(ROWS[0], standin, budget=None, context_length=None) as engine:
        info = engine.info
        assert (info.context_length, info.max_images) == (1_047_576, 500)
        assert type(info.vision).__name__ == "OpenAIPatches"
        assert info.features == {"seed", "penalties", "logit_bias", "logprobs", "tools", "json_object", "json_schema"}
    async with started(ROWS[1], standin, budget=None, context_length=None) as engine:
        assert (engine.info.context_length, engine.info.max_images) == (200_000, 100)
        assert "seed" not in engine.info.features
        assert "top_k" in engine.info.features


# --- what is sent, and what comes back -------------------------------------------------------------------------------


async def test_fields_arrive(standin: Provider) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    request = ask("hello", max_tokens=3, seed=5, presence_penalty=0.5, logit_bias={7: 1.0}, stop=("never",))
    async with started(ROWS[0], standin) as engine:
        await collect(engine, replace(request, response_format=ResponseFormat("json_schema", schema)))
        body = standin.requests[-1].body
        assert (body["model"], body["temperature"], body["seed"]) == ("gpt-4.1-mini", 0.0, 5)
        assert (body["presence_penalty"], body["logit_bias"], body["stop"]) == (0.5, {"7": 1.0}, ["never"])
        assert body["response_format"]["json_schema"]["schema"] == schema
        assert "top_p" not in body
        assert body.get("max_tokens", body.get("max_completion_tokens")) == 3
    async with started(ROWS[1], standin) as engine:
        await collect(engine, ask("hello", max_tokens=3, top_k=4, stop=("never",)))
        body = standin.requests[-1].body
        assert (body["model"], body["max_tokens"], body["top_k"]) == ("claude-sonnet-4-5", 3, 4)
        assert (body["temperature"], body["stop_sequences"]) == (0.0, ["never"])
        assert "top_p" not in body


async def test_tools_and_usage(row: Row, standin: Provider) -> None:
    async with started(row, standin) as engine:
        request = replace(ask("call"), tools=(LOOK,), tool_choice=ToolChoice("required", ("look",)))
        *deltas, finish = await collect(engine, request)
        assert isinstance(finish, Finish)
        assert finish.reason == "tool_calls"
        assert finish.usage.completion_tokens == 9
        calls = [delta for delta in deltas if isinstance(delta, ToolCallDelta)]
        assert [(call.id, call.name) for call in calls if call.name] == [("call_a", "look")]
        assert json.loads("".join(call.arguments for call in calls)) == {"where": "left"}
        assert "look" in json.dumps(standin.requests[-1].body["tool_choice"])


async def test_stops_are_the_providers(row: Row, standin: Provider) -> None:
    async with started(row, standin) as engine:
        text, finish = await answer(engine, ask("hello", stop=("nothing",)))
        assert (text.strip(), finish.reason, finish.usage.completion_tokens) == ("I see", "stop", 2)
        assert finish.usage.prompt_tokens == 2, "as the provider counted"


@pytest.mark.parametrize("how", ["cut", "reset", "late-error"])
async def test_a_stream_that_is_not_whole_is_no_answer(row: Row, standin: Provider, how: str) -> None:
    """LiteLLM by itself gives a broken stream the end `stop`, and a usage."""
    async with started(row, standin) as engine:
        taken = []
        with pytest.raises((UpstreamFailed, Overloaded)) as caught:
            async for event in engine.generate(ask(how)):
                taken.append(event)
    assert taken
    assert not any(isinstance(event, Finish) for event in taken)
    assert "secret" not in str(caught.value)


FAULTS: list[tuple[str, type[SightlineError]]] = [
    ("busy", Overloaded),
    ("overload", UpstreamFailed),  # LiteLLM has no class for Anthropic's 529
    ("refuse", InvalidRequest),
    ("broken", UpstreamFailed),
    ("who", UpstreamFailed),
    ("gone", UpstreamFailed),
    ("word " * 700, ContextLengthExceeded),
]


async def test_refusals_by_class_and_none_is_tried_again(row: Row, standin: Provider) -> None:
    async with started(row, standin) as engine:
        pid = engine.pid
        for text, error in FAULTS:
            before = len(standin.requests)
            with pytest.raises(error) as caught:
                await collect(engine, ask(text, max_tokens=5))
            assert type(caught.value) is error
            assert "secret" not in str(caught.value)
            assert len(standin.requests) == before + 1, f"{text:.10} was tried again"
            if isinstance(caught.value, Overloaded):
                assert caught.value.retry_after_s == 7.0
        assert engine.pid == pid, "none of them costs the process"


IMPOSSIBLE: list[tuple[Row, dict[str, Any], type[SightlineError]]] = [
    (ROWS[0], {"sampling": replace(ask().sampling, ignore_eos=True)}, UnsupportedFeature),
    (ROWS[0], {"sampling": replace(ask().sampling, repetition_penalty=1.5)}, UnsupportedFeature),
    (ROWS[0], {"sampling": replace(ask().sampling, stop=tuple("abcde"))}, InvalidRequest),
    (ROWS[0], {"sampling": replace(ask().sampling, max_tokens=CONTEXT)}, ContextLengthExceeded),
    (ROWS[1], {"sampling": replace(ask().sampling, temperature=1.5)}, InvalidRequest),
    (ROWS[1], {"sampling": replace(ask().sampling, seed=1)}, UnsupportedFeature),
    (ROWS[1], {"sampling": replace(ask().sampling, logprobs=1)}, UnsupportedFeature),
    (ROWS[1], {"messages": (Message("user", (Text("hi"),), name="ann"),)}, UnsupportedFeature),
]


async def test_what_a_provider_cannot_do_never_reaches_it(row: Row, standin: Provider) -> None:
    before = len(standin.requests)
    async with started(row, standin) as engine:
        for _, change, error in (case for case in IMPOSSIBLE if case[0] == row):
            with pytest.raises(error):
                await collect(engine, replace(ask("hi"), **change))
    assert len(standin.requests) == before


async def test_what_people_write_is_not_logged(row: Row, standin: Provider, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with started(row, standin) as engine:
        for fault, _ in FAULTS[:6]:
            with pytest.raises(SightlineError):
                await collect(engine, ask(f"{fault} {CANARY}", max_tokens=5))
        for how in ("cut", "late-error"):
            with pytest.raises(SightlineError):
                await collect(engine, ask(f"{how} {CANARY}"))
    assert "AuthenticationError" in caplog.text, "the operator is told, by LiteLLM's class"
    for secret in (CANARY, KEY, "secret"):
        assert secret not in caplog.text


async def test_it_ends_in_time(row: Row, standin: Provider) -> None:
    for options, error in (({"silence_s": 0.3}, UpstreamFailed), ({"total_s": 0.3}, DeadlineExceeded)):
        async with started(row, standin, **options) as engine:
            began = time.monotonic()
            with pytest.raises(error) as caught:
                await collect(engine, ask("silent"))
            assert type(caught.value) is error
            assert time.monotonic() - began < 5.0


async def test_who_leaves_is_heard_of(row: Row, standin: Provider) -> None:
    async with started(row, standin) as engine:
        before = standin.num_left
        async with aclosing(engine.generate(ask("slow"))) as events:  # half a minute of it
            await anext(events)
        async with asyncio.timeout(10):
            while standin.num_left == before:
                await asyncio.sleep(0.01)
