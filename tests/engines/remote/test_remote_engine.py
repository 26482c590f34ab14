"""The engine `remote` against a server that misbehaves: each request ends, well or with the right error, in time."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from sightline.config import ModelConfig
from sightline.engines.remote import RemoteEngine
from sightline.errors import (
    BodyTooLarge,
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineUnavailable,
    InvalidRequest,
    Overloaded,
    SightlineError,
    UnsupportedFeature,
    UpstreamFailed,
)
from sightline.testing import answer, ask, ends, patience
from sightline.types import Finish, Image
from tests.engines.remote.toxic import ANSWER, DONE, STREAM, TEXT, USAGE, Connection, Toxic, chunk, toxic

pytestmark = pytest.mark.anyio

SECRET = "postgres://admin:hunter2@10.0.0.7/prompts"


@asynccontextmanager
async def upstream(**options: Any) -> AsyncIterator[tuple[Toxic, RemoteEngine]]:
    async with toxic() as server:
        given = {"base_url": server.base_url, "context_length": 1000, "budget": "as-is", "total_s": 5.0, **options}
        config = ModelConfig(name="m", engine="remote", options=given, start_timeout_s=5.0, max_concurrent=8)
        engine = RemoteEngine(config)
        await engine.start()
        try:
            yield server, engine
        finally:
            await engine.close()


async def streams(connection: Connection) -> None:
    await connection.send(STREAM + ANSWER)


async def test_an_answer() -> None:
    async with upstream() as (server, engine):
        server.misbehave = streams
        text, finish = await answer(engine, ask("hello"))
        assert text == TEXT
        assert (finish.reason, finish.usage.prompt_tokens, finish.usage.completion_tokens) == ("stop", 7, 3)
        assert finish.timing.prefill_s > 0
        sent = server.chats[0]
        assert sent.headers["accept-encoding"] == "identity"
        assert 0 < float(sent.headers["x-request-timeout"]) <= 5.0
        assert "authorization" not in sent.headers


@pytest.mark.parametrize("size", range(1, 8))
async def test_sliced(size: int) -> None:
    async def slices(connection: Connection) -> None:
        await connection.send(STREAM + ANSWER, size=size)

    async with upstream() as (server, engine):
        server.misbehave = slices
        assert (await answer(engine, ask("hello")))[0] == TEXT


async def test_cut_off_anywhere_it_is_no_answer() -> None:
    async with upstream() as (server, engine):
        whole = (STREAM + ANSWER).encode()
        for cut in [*range(0, len(whole), 23), len(whole) - 1]:

            async def cuts(connection: Connection, cut: int = cut) -> None:
                await connection.send(whole[:cut])

            server.misbehave = cuts
            assert isinstance(await ends(engine, ask("hello")), UpstreamFailed), cut


BROKEN = {
    "no reason": chunk("a") + DONE,
    "no end": chunk("a") + chunk(finish_reason="stop") + USAGE,
    "an unknown reason": chunk("a") + chunk(finish_reason="error") + DONE,
    "two reasons": chunk(finish_reason="stop") + chunk(finish_reason="length") + DONE,
    "more after the end": chunk(finish_reason="stop") + chunk("more") + DONE,
    "another choice": chunk("a", index=1) + DONE,
    "no JSON": "data: {nonsense\n\n" + DONE,
    "an array": "data: []\n\n" + DONE,
    "no count": 'data: {"choices":[],"usage":{"prompt_tokens":-1}}\n\n' + DONE,
    "an error event": f'event: error\ndata: {{"error":{{"message":"{SECRET}"}}}}\n\n',
    "an error": chunk("a") + f'data: {{"error":{{"message":"{SECRET}","code":500}}}}\n\n' + DONE,
    "an error that is a text": f'data: {{"error":"{SECRET}"}}\n\n',
    "a call without a name": chunk(delta={"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}) + DONE,
    "bytes": "data: \udcff\udcfe\n\n",
    "nothing": "",
    "a line without an end": "data: " + "x" * 5_000_000,
}


@pytest.mark.parametrize("stream", BROKEN.values(), ids=BROKEN)
async def test_a_broken_stream_never_ends_as_an_answer(stream: str) -> None:
    async def sends(connection: Connection) -> None:
        await connection.send((STREAM + stream).encode("utf-8", "surrogateescape"))

    async with upstream() as (server, engine):
        server.misbehave = sends
        error = await ends(engine, ask("hello"))
        assert isinstance(error, UpstreamFailed)
        assert SECRET not in str(error)


TOLERATED = {
    "the end said twice": chunk("a") + chunk(finish_reason="stop") + chunk(finish_reason="stop") + USAGE + DONE,
    "text and end together": chunk("a", finish_reason="stop") + USAGE + DONE,
    "usage before the end": chunk("a") + USAGE + chunk(finish_reason="stop") + DONE,
    "comments and other fields": ": ping\n\nid: 1\nretry: 5\n" + chunk("a", finish_reason="stop") + USAGE + DONE,
    "CRLF": (chunk("a") + chunk(finish_reason="stop") + USAGE + DONE).replace("\n", "\r\n"),
    "a role without text": chunk(delta={"role": "assistant", "content": None})
    + chunk("a") + chunk(finish_reason="stop") + USAGE + DONE,
}  # fmt: skip


@pytest.mark.parametrize("stream", TOLERATED.values(), ids=TOLERATED)
async def test_what_servers_do_differently(stream: str) -> None:
    async def sends(connection: Connection) -> None:
        await connection.send(STREAM + stream)

    async with upstream() as (server, engine):
        server.misbehave = sends
        text, finish = await answer(engine, ask("hello"))
        assert (text, finish.reason, finish.usage.prompt_tokens) == ("a", "stop", 7)


def error_of(code: str | None = None, **fields: Any) -> Any:
    return {"error": {"message": SECRET, "type": "x", "code": code, **fields}}


REFUSALS: list[tuple[int, Any, type[SightlineError]]] = [
    (400, error_of(), InvalidRequest),
    (400, error_of("context_length_exceeded"), ContextLengthExceeded),
    (400, {"error": {"message": SECRET, "type": "exceed_context_size_error", "code": 400}}, ContextLengthExceeded),
    (400, error_of("unsupported_parameter", param="seed"), UnsupportedFeature),
    (400, {"error": SECRET}, InvalidRequest),
    (401, error_of(), EngineUnavailable),
    (403, error_of(), EngineUnavailable),
    (404, error_of(), EngineUnavailable),
    (408, error_of(), UpstreamFailed),
    (413, error_of(), BodyTooLarge),
    (422, SECRET.encode(), InvalidRequest),
    (429, error_of(), Overloaded),
    (500, error_of("context_length_exceeded"), UpstreamFailed),
    (502, b"<html>", UpstreamFailed),
    (503, error_of(), Overloaded),
    (302, b"", UpstreamFailed),
    (200, error_of(), UpstreamFailed),
    (200, {"choices": []}, UpstreamFailed),
]


@pytest.mark.parametrize(("status", "body", "expected"), REFUSALS, ids=lambda value: str(value)[:40])
async def test_refusals_by_status_and_code(status: int, body: Any, expected: type[SightlineError]) -> None:
    async def refuses(connection: Connection) -> None:
        await connection.reply(status, body, Retry_After="17", Location="http://169.254.169.254/")

    async with upstream() as (server, engine):
        server.misbehave = refuses
        error = await ends(engine, ask("hello", seed=1))
        assert type(error) is expected
        assert SECRET not in str(error)
        if isinstance(error, Overloaded):
            assert error.retry_after_s == 17.0
        if isinstance(error, UnsupportedFeature):
            assert error.param == "seed"
        assert len(server.chats) == 1


async def test_reset_and_slow() -> None:
    async def resets(connection: Connection) -> None:
        await connection.send(STREAM + chunk("a"))
        connection.reset()

    async def drips(connection: Connection) -> None:
        await connection.send(STREAM)
        while True:
            await connection.send(": ping\n\n")
            await asyncio.sleep(0.05)

    async def is_silent(connection: Connection) -> None:
        await connection.left()

    async def drips_text(connection: Connection) -> None:
        await connection.send(STREAM)
        while True:
            await connection.send(chunk("a"))
            await asyncio.sleep(0.05)

    async def runs_out_of_time(connection: Connection) -> None:
        await asyncio.sleep(float(connection.headers["x-request-timeout"]) - 0.05)
        await connection.reply(504, {"error": {"message": "", "type": "server_error", "code": "timeout"}})

    short = 0.3
    cases = [
        (resets, {}, None, UpstreamFailed),
        (is_silent, {"silence_s": short}, None, UpstreamFailed),
        # The engine's own limit: before anything was said another model may do better, afterwards it is too late.
        (drips, {"total_s": short}, None, UpstreamFailed),
        (drips_text, {"total_s": short}, None, DeadlineExceeded),
        # The request's: nobody's fault.
        (is_silent, {}, short, DeadlineExceeded),
        (drips, {}, short, DeadlineExceeded),
        (runs_out_of_time, {}, short, DeadlineExceeded),
    ]
    for misbehave, limits, timeout_s, expected in cases:
        async with upstream(**limits) as (server, engine):
            server.misbehave = misbehave
            began = time.perf_counter()
            assert type(await ends(engine, replace(ask("hello"), timeout_s=timeout_s))) is expected
            assert time.perf_counter() - began < 3.0
            if timeout_s is not None:
                assert 0 < float(server.chats[0].headers["x-request-timeout"]) <= timeout_s


async def test_who_leaves_is_noticed_there_at_once() -> None:
    left = asyncio.Event()

    async def goes_on(connection: Connection) -> None:
        await connection.send(STREAM + chunk("a"))
        await connection.left()
        left.set()

    async with upstream() as (server, engine):
        server.misbehave = goes_on
        async with aclosing(engine.generate(ask("hello"))) as events:
            await anext(events)
        await asyncio.wait_for(left.wait(), 1.0 * patience())
        left.clear()
        task = asyncio.create_task(answer(engine, ask("hello")))
        while len(server.chats) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait_for(left.wait(), 1.0 * patience())


async def test_a_connection_is_used_again_after_a_whole_answer_and_closed_at_a_stop() -> None:
    body = ANSWER.encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n"

    async def keeps_alive(connection: Connection) -> None:
        await connection.send(head.encode() + body)
        await connection.left()

    async with upstream() as (server, engine):
        server.misbehave = keeps_alive
        await answer(engine, ask("hello"))
        assert len(engine.open()._kept) == 1
    async with upstream(kind="llamacpp") as (server, engine):
        server.misbehave = keeps_alive  # or so it seems: the real one closes it a moment later, and says nothing
        await answer(engine, ask("hello"))
        assert engine.open()._kept == []
    closed = asyncio.Event()

    async def has_more_to_say(connection: Connection) -> None:
        if connection.path != "/v1/chat/completions":
            await connection.reply(404, {}, Connection="close")
            return
        await connection.send(STREAM + ANSWER)
        await connection.left()
        closed.set()

    async with upstream(kind="llamacpp") as (server, engine):
        server.misbehave = has_more_to_say
        text, finish = await answer(engine, ask("hello", stop=("\u00dfe",)))
        assert (text, finish.stop_sequence) == ("Gr\u00fc", "\u00dfe")
        await asyncio.wait_for(closed.wait(), 5.0)


async def test_nobody_there(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("sightline.engines.remote.engine._TELL_S", 0.0)
    config = ModelConfig(
        name="m",
        engine="remote",
        options={"base_url": "http://127.0.0.1:9/v1", "context_length": 10},
        start_timeout_s=0.3,
    )
    engine = RemoteEngine(config)
    with pytest.raises(EngineUnavailable, match="cannot be reached"):
        await engine.start()
    waiting = "model m: http://127.0.0.1:9/v1 is waited for, for 0.3 s at most: The server behind this model cannot be"
    assert [r.getMessage().startswith(waiting) for r in caplog.records if r.levelname == "WARNING"] == [True]


async def test_a_server_that_has_gone_is_unavailable_and_comes_back_by_itself() -> None:
    async with upstream() as (server, engine):
        server.misbehave = streams
        await answer(engine, ask("hello"))
        address, engine._upstream._address = engine._upstream._address, type(engine._address)("http://127.0.0.1:9/v1")  # type: ignore[union-attr]
        assert isinstance(await ends(engine, ask("hello")), EngineUnavailable)
        engine._upstream._address = address  # type: ignore[union-attr]
        assert isinstance(await ends(engine, ask("hello")), Finish)


async def test_not_ready_until_it_has_the_model() -> None:
    async with toxic() as server:
        server.lists = {"data": []}
        options = {"base_url": server.base_url, "kind": "vllm"}
        config = ModelConfig(name="m", engine="remote", options=options, start_timeout_s=0.4)
        with pytest.raises(EngineUnavailable, match="does not have the model"):
            await RemoteEngine(config).start()


async def test_a_server_that_takes_connections_and_says_nothing_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.engines.remote.engine._POLL_TIMEOUT_S", 0.1)

    async def silence(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)
        writer.close()

    server = await asyncio.start_server(silence, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    options = {"base_url": f"http://127.0.0.1:{port}/v1", "kind": "vllm"}
    config = ModelConfig(name="m", engine="remote", options=options, start_timeout_s=0.4)
    try:
        with pytest.raises(EngineUnavailable, match=r"not ready within 0\.4 s"):
            await RemoteEngine(config).start()
    finally:
        server.close()


async def test_a_storm_of_everything_ends_in_time() -> None:
    """Resets, slices, truncation, errors, garbage and delays, at random: nobody hangs, and an answer is the answer."""
    chance = random.Random(15)

    async def anything(connection: Connection) -> None:
        await asyncio.sleep(chance.choice([0, 0, 0.01, 0.05]))
        whole = (STREAM + ANSWER).encode()
        match chance.randrange(7):
            case 0:
                connection.reset()
            case 1:
                await connection.send(whole[: chance.randrange(len(whole))])
            case 2:
                await connection.reply(chance.choice([400, 401, 429, 500, 503]), error_of())
            case 3:
                await connection.send(chance.randbytes(200))
            case 4:
                await connection.send(STREAM.encode() + chance.randbytes(200) + b"\n\n")
            case 5:
                await connection.left()
            case _:
                await connection.send(whole, size=chance.randint(1, 7))

    async with upstream(total_s=1.5, silence_s=0.3) as (server, engine):
        server.misbehave = anything

        async def one(number: int) -> tuple[float, BaseException | Finish | str]:
            began = time.perf_counter()
            try:
                outcome: BaseException | Finish | str = (await answer(engine, ask(f"{number}")))[0]
            except SightlineError as error:
                outcome = error
            return time.perf_counter() - began, outcome

        outcomes = [outcome for _ in range(6) for outcome in await asyncio.gather(*(one(i) for i in range(8)))]
        assert all(took < 1.5 + 1.0 for took, _ in outcomes)
        answers = [outcome for _, outcome in outcomes if isinstance(outcome, str)]
        assert answers
        assert set(answers) == {TEXT}
        assert len({type(outcome) for _, outcome in outcomes}) >= 4
        server.misbehave = streams
        assert (await answer(engine, ask("after")))[0] == TEXT


# --- what is sent ----------------------------------------------------------------------------------------------------


async def test_a_picture_is_sent_without_loss_and_is_not_to_be_resized() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (37, 53, 3), np.uint8)
    async with upstream() as (server, engine):
        server.misbehave = streams
        await answer(engine, ask(Image(pixels, "sha256:x", 400, 300, "image/jpeg", 9), "?"))
        part = json.loads(server.chats[0].body)["messages"][0]["content"][0]
        assert part["image_url"]["detail"] == "high"
        assert "uuid" not in part
        file = base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
        assert np.array_equal(np.asarray(PILImage.open(io.BytesIO(file))), pixels)
        assert engine._pictures._held == {}, "nobody uses it any more"


async def test_an_estimate_is_marked_so() -> None:
    async with upstream() as (_, engine):
        count = await engine.count_tokens(ask("x" * 300))
        assert not count.exact
        assert 50 <= count.prompt_tokens <= 200


async def test_the_key_comes_from_our_environment_and_from_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGHTLINE_UPSTREAM_KEY", "sk-123")
    async with upstream(api_key_env="SIGHTLINE_UPSTREAM_KEY") as (server, engine):
        server.misbehave = streams
        await answer(engine, ask("hello"))
        assert server.chats[0].headers["authorization"] == "Bearer sk-123"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "base_url"),
        ({"base_url": "localhost:8000"}, "must be an address"),
        ({"base_url": "file:///etc/passwd"}, "must be an address"),
        ({"base_url": "http://user:secret@h/v1"}, "must be an address"),
        ({"base_url": "http://h/v1", "kind": "tgi"}, "kind is one of"),
        ({"base_url": "http://h/v1", "features": ["wings"]}, "no feature 'wings'"),
        ({"base_url": "http://h/v1", "total_s": 0}, "above 0"),
        ({"base_url": "http://h/v1", "budget": {"type": "Nothing"}}, "budget"),
        ({"base_url": "http://h/v1", "api_key_env": "AWS_SECRET_ACCESS_KEY"}, "begins with SIGHTLINE_"),
        ({"base_url": "http://h/v1", "api_key_env": "SIGHTLINE_NOT_SET"}, "is not set"),
        ({"base_url": "http://h/v1", "base": 1}, "unknown field `base`"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        RemoteEngine(ModelConfig(name="m", engine="remote", options=options))
