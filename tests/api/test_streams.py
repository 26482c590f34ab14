"""Streams over the application: framing, keep-alive, late faults, and clients that leave at every stage."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from sightline.api import sse
from sightline.errors import EngineFailed, Overloaded
from sightline.items import ChoiceEvent, Item
from sightline.types import ChatRequest, TextDelta
from tests.api.standin import FINISH, JSON_HEADERS, PREPARED, Call, ScriptedService, app_of, chat, post, say
from tests.reliability.client import DIALECTS, Dialect

pytestmark = pytest.mark.anyio

FREED_WITHIN_S = 0.25


async def silence(request: ChatRequest) -> AsyncIterator[Item]:
    """Queued, or in prefill: the dialect cannot tell."""
    await asyncio.sleep(3600)
    yield PREPARED


async def endless(request: ChatRequest) -> AsyncIterator[Item]:
    yield PREPARED
    while True:
        yield ChoiceEvent(0, TextDelta("x"))
        await asyncio.sleep(0.002)


async def stalled(request: ChatRequest) -> AsyncIterator[Item]:
    yield PREPARED
    yield ChoiceEvent(0, TextDelta("x"))
    await asyncio.sleep(3600)


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.001)


async def test_headers_and_order_of_a_stream() -> None:
    reply = await post(app_of(ScriptedService()), chat(stream=True))
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.headers["x-sightline-engine"] == "scripted"
    assert "x-sightline-path" not in reply.headers
    assert "content-length" not in reply.headers
    *chunks, done = reply.events
    assert done == "[DONE]"
    assert [c["choices"][0]["delta"] for c in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "A "},
        {"content": "cat"},
        {},
    ]
    assert len({(c["id"], c["created"], c["model"]) for c in chunks}) == 1


async def test_each_event_is_sent_as_it_comes() -> None:
    sent: list[bytes] = []
    call = Call("POST", "/v1/chat/completions", json.dumps(chat(stream=True)).encode(), dict(JSON_HEADERS))
    call.on_body = sent.append
    await call.run(app_of(ScriptedService()))
    assert [frame.count(b"data: ") for frame in sent] == [1, 1, 1, 1, 1, 0]
    assert sent[-1] == b""


async def test_text_beyond_ascii_arrives_as_whole_characters_in_every_frame() -> None:
    words = ["naïve ", "日本", "👩‍👩‍👧", "\u2028\u0000\ufeff\x85\u2029", '"\\\n\r', "é" * 1000]
    service = ScriptedService(say(*map(TextDelta, words), FINISH))
    frames: list[bytes] = []
    call = Call("POST", "/v1/chat/completions", json.dumps(chat(stream=True)).encode(), dict(JSON_HEADERS))
    call.on_body = frames.append
    reply = await call.run(app_of(service))
    for frame in frames:
        assert all(not line or line.startswith("data: ") for line in frame.decode("utf-8").splitlines())
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in reply.events[:-1]) == "".join(words)


async def test_an_idle_stream_is_kept_alive_with_comments() -> None:
    async def slow(request: ChatRequest) -> AsyncIterator[Item]:
        yield PREPARED
        await asyncio.sleep(0.3)
        yield ChoiceEvent(0, TextDelta("late"))
        yield ChoiceEvent(0, FINISH)

    reply = await post(app_of(ScriptedService(slow), keepalive_s=0.05), chat(stream=True))
    blocks = reply.body.split(b"\n\n")
    assert 2 <= blocks.count(b": ping") <= 6
    assert blocks[0].startswith(b"data: ")
    assert reply.events[-1] == "[DONE]"
    brisk = await post(app_of(ScriptedService(), keepalive_s=0.05), chat(stream=True))
    assert b": ping" not in brisk.body


async def test_a_fault_before_the_first_event_is_a_true_status() -> None:
    async def refused(request: ChatRequest) -> AsyncIterator[Item]:
        raise Overloaded("Full.", retry_after_s=7)
        yield

    service = ScriptedService(refused)
    for stream in (True, False):
        reply = await post(app_of(service), chat(stream=stream))
        assert (reply.status, reply.headers["retry-after"]) == (503, "7")
        assert reply.json["error"]["code"] == "engine_overloaded"
        assert reply.headers["content-type"] == "application/json"
    assert service.open == 0


@pytest.mark.parametrize("bug", [False, True])
async def test_a_fault_after_the_first_byte_is_an_event_and_no_done(
    bug: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(request: ChatRequest) -> AsyncIterator[Item]:
        yield PREPARED
        yield ChoiceEvent(0, TextDelta("half"))
        if bug:
            raise ZeroDivisionError(request.messages[0].content)  # what a careless library may do
        raise EngineFailed("The engine stopped while it answered.")

    caplog.set_level(logging.INFO)
    service = ScriptedService(breaks)
    body = chat(stream=True, messages=[{"role": "user", "content": "hunter2"}])
    reply = await post(app_of(service), body)
    assert reply.status == 200
    assert reply.complete
    *_, half, last = reply.events
    assert half["choices"][0]["delta"] == {"content": "half"}
    error = last["error"]
    assert (error["type"], error["param"], error["code"]) == ("server_error", None, None)
    assert b"[DONE]" not in reply.body
    assert service.open == 0
    assert "hunter2" not in caplog.text
    assert "hunter2" not in reply.body.decode()
    assert ("ZeroDivisionError" in caplog.text) == bug
    line = json.loads(caplog.messages[-1])
    assert line["error"] == ("ZeroDivisionError" if bug else "EngineFailed")
    if bug:
        assert reply.headers["x-request-id"] in error["message"]
        assert "test_streams.py" in caplog.text, "the log tells where"


async def test_a_stream_that_ends_without_its_finish_does_not_look_complete() -> None:
    reply = await post(app_of(ScriptedService(say(TextDelta("x")))), chat(stream=True))
    assert reply.events[-1]["error"]["type"] == "server_error"


# --- clients that leave ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "fields", "path"),
    [
        (silence, {"stream": True}, "/v1/chat/completions"),
        (silence, {}, "/v1/chat/completions"),
        (endless, {"stream": True}, "/v1/chat/completions"),
        (endless, {}, "/v1/chat/completions"),
        (stalled, {"stream": True}, "/v1/chat/completions"),
        (stalled, {}, "/v1/chat/completions"),
        (silence, {}, "/v1/chat/completions/input_tokens"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_leaving_frees_what_the_request_holds(
    script: Any, fields: dict[str, Any], path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sightline.access")
    before = asyncio.all_tasks()
    service = ScriptedService(script, measuring=3600)
    call = Call("POST", path, json.dumps(chat(fields)).encode(), dict(JSON_HEADERS))
    serving = asyncio.create_task(call.run(app_of(service)))
    await until(lambda: service.open == 1)
    await asyncio.sleep(0.03)  # well into its stage
    assert service.open == 1
    left_at = asyncio.get_running_loop().time()
    call.left.set()
    reply = await serving
    assert service.open == 0
    assert asyncio.get_running_loop().time() - left_at < FREED_WITHIN_S
    assert not reply.complete
    assert json.loads(caplog.messages[-1])["status"] == 499
    assert asyncio.all_tasks() - {serving} == before, "no task is left behind"


async def test_leaving_during_the_upload_starts_nothing() -> None:
    service = ScriptedService()
    pieces = [b'{"model":', b'"m",']

    async def receive() -> dict[str, Any]:
        if pieces:
            return {"type": "http.request", "body": pieces.pop(0), "more_body": True}
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there to be answered")

    headers = [(k.encode(), v.encode()) for k, v in JSON_HEADERS.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers, "root_path": ""}
    await app_of(service)(scope, receive, send)
    assert service.requests == []


async def test_leaving_just_before_the_first_byte_frees_too() -> None:
    """The source has begun, and nobody pulls from it yet."""
    service = ScriptedService(endless)
    call = Call("POST", "/v1/chat/completions", json.dumps(chat(stream=True)).encode(), dict(JSON_HEADERS))
    app = app_of(service)

    async def never_sends(scope: Any, receive: Any, send: Any) -> None:
        async def blocked(message: Any) -> None:
            call.left.set()
            await asyncio.sleep(3600)

        await app(scope, receive, blocked)

    async with asyncio.timeout(5):
        await call.run(never_sends)
    assert (len(service.requests), service.open) == (1, 0)


async def test_a_server_that_cancels_a_request_frees_it_too() -> None:
    service = ScriptedService(silence)
    call = Call("POST", "/v1/chat/completions", json.dumps(chat()).encode(), dict(JSON_HEADERS))
    serving = asyncio.create_task(call.run(app_of(service)))
    await until(lambda: service.open == 1)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert service.open == 0


@pytest.mark.parametrize("script", [endless, stalled], ids=["during a chunk", "during a ping"])
async def test_a_reader_that_stalls_is_taken_for_gone(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "_WRITE_STALL_S", 0.1)
    service = ScriptedService(script)
    call = Call("POST", "/v1/chat/completions", json.dumps(chat(stream=True)).encode(), dict(JSON_HEADERS))
    sends = 0

    async def blocked_after_two() -> None:
        nonlocal sends
        sends += 1
        if sends > 2:
            await asyncio.sleep(3600)

    call.slow_send = blocked_after_two
    async with asyncio.timeout(5):
        reply = await call.run(app_of(service, keepalive_s=0.05))
    assert service.open == 0
    assert not reply.complete


async def test_a_send_that_fails_means_the_client_has_gone() -> None:
    """As servers of ASGI 2.4 say it."""

    async def gone() -> None:
        raise OSError

    service = ScriptedService(endless)
    call = Call("POST", "/v1/chat/completions", json.dumps(chat(stream=True)).encode(), dict(JSON_HEADERS))
    call.slow_send = gone
    await call.run(app_of(service))
    assert service.open == 0


async def test_a_finished_stream_closed_its_source_before_its_last_byte() -> None:
    """Some servers report a disconnect as soon as a response is complete; a finished request is not a cancelled one."""
    service = ScriptedService()
    open_at_end: list[int] = []
    call = Call("POST", "/v1/chat/completions", json.dumps(chat(stream=True)).encode(), dict(JSON_HEADERS))
    call.on_body = lambda body: open_at_end.append(service.open) if body == b"" else None
    reply = await call.run(app_of(service))
    assert reply.complete
    assert open_at_end == [0]


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=list(DIALECTS))
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
async def test_an_answer_in_one_piece_may_be_begun_anew(dialect: Dialect, stream: bool) -> None:
    service = ScriptedService()
    reply = await post(app_of(service), dialect.body("hi", stream=stream), dialect.path)
    assert reply.status == 200
    assert [asked.whole for asked in service.requests] == [not stream]
