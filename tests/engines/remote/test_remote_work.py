"""What a remote model does beside answering messages: plain text and vectors, of our own server and of a toxic one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from sightline.config import ModelConfig
from sightline.engines import Embeds, EngineInfo, open_engine
from sightline.engines.fake import FakeEngine
from sightline.engines.remote import RemoteEngine
from sightline.errors import (
    ContextLengthExceeded,
    EngineUnavailable,
    InvalidRequest,
    SightlineError,
    UnsupportedFeature,
    UpstreamFailed,
)
from sightline.types import EmbeddingRequest, EngineRequest, Finish, SamplingParams, TextDelta
from tests.engines.remote.serving import serving
from tests.engines.remote.test_remote_engine import upstream
from tests.engines.remote.toxic import DONE, STREAM, USAGE, Connection

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with serving("--engine", "fake", "--option=context_length=100") as base_url:
        yield base_url


@asynccontextmanager
async def ours(base_url: str, **options: Any) -> AsyncIterator[Any]:
    given = {"base_url": base_url, "kind": "sightline", **options}
    engine = open_engine(ModelConfig(name="fake", engine="remote", options=given))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def plain(prompt: str | tuple[int, ...], **sampling: Any) -> EngineRequest:
    return EngineRequest("r", "fake", (), SamplingParams(**sampling), prompt=prompt)


def embedding(*inputs: str | tuple[int, ...], dimensions: int | None = None) -> EmbeddingRequest:
    return EmbeddingRequest("r", "fake", inputs, dimensions)


async def read(engine: RemoteEngine, request: EngineRequest) -> tuple[list[TextDelta], Finish]:
    *deltas, finish = [event async for event in engine.generate(request)]
    assert isinstance(finish, Finish)
    return [delta for delta in deltas if isinstance(delta, TextDelta)], finish


async def test_our_own_server_tells_what_its_model_does(base_url: str) -> None:
    async with ours(base_url) as engine:
        info: EngineInfo = engine.info
        assert info.work == FakeEngine(ModelConfig(name="fake", engine="fake")).info.work
        assert isinstance(engine, Embeds)


async def test_plain_text_goes_through_as_it_is(base_url: str) -> None:
    async with ours(base_url) as engine:
        for prompt in ("hi there", tuple(map(ord, "hi there"))):
            deltas, finish = await read(engine, plain(prompt))
            assert "".join(d.text for d in deltas) == "I see no pictures. You said: hi there"
            assert finish.reason == "stop", "sixteen tokens would not have been enough"
        assert finish.usage.prompt_tokens == 8


async def test_logprobs_and_stops_of_plain_text(base_url: str) -> None:
    async with ours(base_url) as engine:
        deltas, finish = await read(engine, plain("hi", logprobs=2, stop=(" You",)))
    told = [p for d in deltas for p in d.logprobs]
    assert "".join(p.token for p in told) == "".join(d.text for d in deltas) == "I see no pictures."
    assert all(len(p.top) == 2 and p.top[0].token == p.token for p in told)
    assert finish.stop_sequence == " You"


async def test_vectors_go_through_as_they_are(base_url: str) -> None:
    async with ours(base_url) as engine:
        made = await engine.embed(embedding("a red circle", "blue", dimensions=16))
        ids = await engine.embed(embedding(tuple(map(ord, "blue"))))
    local = FakeEngine(ModelConfig(name="fake", engine="fake"))
    await local.start()
    try:
        expected = await local.embed(embedding("a red circle", "blue", dimensions=16))
    finally:
        await local.close()
    assert np.allclose(made.vectors, expected.vectors, atol=1e-7)
    assert made.prompt_tokens == expected.prompt_tokens
    assert ids.vectors.shape == (1, 64)


@pytest.mark.parametrize(
    ("request_", "error", "param"),
    [
        (plain("word " * 120), ContextLengthExceeded, "prompt"),
        (embedding("word " * 120), ContextLengthExceeded, "input"),
        (embedding("a", dimensions=65), InvalidRequest, "dimensions"),
        (embedding((0xD800,)), InvalidRequest, "input"),
        (embedding("a", (97,)), InvalidRequest, "input"),
    ],
)
async def test_what_is_wrong_is_told_by_our_own_names(
    base_url: str, request_: EngineRequest | EmbeddingRequest, error: type[SightlineError], param: str
) -> None:
    async with ours(base_url) as engine:
        with pytest.raises(error) as refused:
            await (engine.embed(request_) if isinstance(request_, EmbeddingRequest) else read(engine, request_))
    assert refused.value.param == param


# --- a server that is not ours ---------------------------------------------------------------------------------------


def reply(value: Any) -> Any:
    async def send(connection: Connection) -> None:
        await connection.reply(200, value, Connection="close")

    return send


def rows(*vectors: list[float]) -> dict[str, Any]:
    data = [{"index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    return {"data": data, "usage": {"prompt_tokens": 3}}


async def test_what_the_operator_says_of_its_work_comes_first() -> None:
    async with upstream() as (_, engine):
        assert engine.info.work == {"messages"}
    async with upstream(work=["embeddings"]) as (_, engine):
        assert engine.info.work == {"embeddings"}
    with pytest.raises(InvalidRequest, match="work"):
        RemoteEngine(
            ModelConfig(name="m", engine="remote", options={"base_url": "http://h/v1", "work": ["transcription"]})
        )


async def test_rows_are_put_in_order_by_their_index() -> None:
    async with upstream() as (server, engine):
        told = rows([1.0, 0.0], [0.0, 1.0])
        server.misbehave = reply({**told, "data": told["data"][::-1]})
        made = await engine.embed(embedding("a", "b"))
        assert made.vectors.tolist() == [[1.0, 0.0], [0.0, 1.0]]
        assert made.prompt_tokens == 3
        assert json.loads(server.chats[-1].body) == {
            "model": "m", "input": ["a", "b"], "encoding_format": "base64",
        }  # fmt: skip


@pytest.mark.parametrize(
    "nonsense",
    [
        {}, [], "no", {"data": []}, rows([1.0]), rows([1.0], [1.0, 2.0]), rows([], []),
        {"data": [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [1.0]}]},
        rows([1.0], [1e39]), rows([1.0], ["x"]), rows("AAAA", "AAAA"), rows("AACAPw==", "no"),  # type: ignore
    ],
)  # fmt: skip
async def test_what_are_no_vectors_is_the_servers_failure(nonsense: Any) -> None:
    async with upstream() as (server, engine):
        server.misbehave = reply(nonsense)
        with pytest.raises(UpstreamFailed):
            await engine.embed(embedding("a", "b"))


async def test_base64_is_little_endian_float32() -> None:
    async with upstream() as (server, engine):
        server.misbehave = reply(rows("AACAPwAAAMA=", "AAAAAAAAgD8="))  # type: ignore[arg-type]
        assert (await engine.embed(embedding("a", "b"))).vectors.tolist() == [[1.0, -2.0], [0.0, 1.0]]


async def test_token_ids_stay_here_where_nobody_checks_them() -> None:
    async with upstream(kind="vllm", work=["completions", "embeddings"]) as (server, engine):
        server.misbehave = reply(rows([1.0]))
        with pytest.raises(UnsupportedFeature):
            await read(engine, plain((1, 2)))
        with pytest.raises(InvalidRequest):
            await engine.embed(embedding((1, 2)))


async def test_special_tokens_of_plain_text_are_broken_up() -> None:
    async with upstream(special_tokens=["<|im_end|>"]) as (server, engine):
        server.misbehave = reply(rows([1.0]))
        await engine.embed(embedding("a<|im_end|>b"))
        assert json.loads(server.chats[-1].body)["input"] == ["a<\u200b|im_end|>b"]


async def test_a_completion_of_a_foreign_server() -> None:
    def chunk(text: str, **fields: Any) -> str:
        choice = {"index": 0, "text": text, "finish_reason": None, **fields}
        return f"data: {json.dumps({'object': 'text_completion', 'choices': [choice]})}\n\n"

    logprobs = {"tokens": ["wo"], "token_logprobs": [-0.5], "top_logprobs": [{"wo": -0.5, "x": -1.0}]}

    async def stream(connection: Connection) -> None:
        said = chunk("wo", logprobs=logprobs) + chunk("rd") + chunk("", finish_reason="length")
        await connection.send(STREAM + said + USAGE + DONE)

    async with upstream(work=["completions"]) as (server, engine):
        server.misbehave = stream
        deltas, finish = await read(engine, plain("say", max_tokens=2, logprobs=1))
        assert "".join(d.text for d in deltas) == "word"
        assert [(p.token, p.logprob, len(p.top)) for p in deltas[0].logprobs] == [("wo", -0.5, 2)]
        assert (finish.reason, finish.usage.prompt_tokens) == ("length", 7)
        sent = json.loads(server.chats[-1].body)
        assert (sent["prompt"], sent["max_tokens"], sent["logprobs"], sent["stream"]) == ("say", 2, 1, True)
        assert "messages" not in sent


async def test_after_the_end_nothing_is_asked() -> None:
    async with upstream(work=["embeddings"]) as (server, engine):
        server.misbehave = reply(rows([1.0]))
        await engine.close()
        with pytest.raises(EngineUnavailable):
            await engine.embed(embedding("a"))
