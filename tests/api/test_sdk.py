"""OpenAI's own SDK against the real service and the fake engine: over a socket, and in process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
import openai
import pytest
from PIL import Image as PILImage

from sightline.api.app import create_app
from sightline.config import HttpLimits, ModelConfig, Settings
from sightline.service import Service
from tests.api.serving import serving

SETTINGS = Settings(
    models=(ModelConfig(name="org/fake", engine="fake", max_concurrent=4, max_queue=4),),
    http=HttpLimits(keepalive_s=0.2),
)
MODEL = "org/fake"


def data_url(width: int, height: int, colour: str, kind: str = "PNG") -> str:
    file = io.BytesIO()
    PILImage.new("RGB", (width, height), colour).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def picture(*args: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(*args)}}


def user(*content: Any) -> Any:
    return [{"role": "user", "content": [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]}]


# --- over a socket ---------------------------------------------------------------------------------------------------


@dataclass
class Server:
    port: int
    service: Service

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=30)

    @property
    def running(self) -> int:
        return sum(m.admission.running + m.admission.waiting for m in self.service._models.values())

    def wait_until_idle(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while self.running:
            assert time.monotonic() < deadline, f"{self.running} requests still hold a slot after {within_s} s"
            time.sleep(0.005)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    service = Service(SETTINGS)
    with serving(create_app(service, SETTINGS, wait=True)) as port:
        yield Server(port, service)


def test_the_sdk_lists_and_finds_models(server: Server) -> None:
    assert [m.id for m in server.client.models.list()] == [MODEL]
    model = server.client.models.retrieve(MODEL)
    assert model.model_extra is not None
    assert model.model_extra["sightline"]["state"] == "ready"
    with pytest.raises(openai.NotFoundError) as refused:
        server.client.models.retrieve("org/other")
    assert refused.value.code == "model_not_found"


def test_the_sdk_asks_about_pictures(server: Server) -> None:
    reply = server.client.chat.completions.create(
        model=MODEL, messages=user(picture(600, 300, "red"), "hello", picture(56, 56, "blue", "JPEG"))
    )
    text = reply.choices[0].message.content or ""
    assert "2 pictures: 600x300 mostly red; 56x56 mostly blue" in text
    assert text.endswith("hello")
    assert reply.choices[0].finish_reason == "stop"
    usage = reply.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    image_tokens = usage.prompt_tokens_details.to_dict()["image_tokens"]
    assert reply.model_extra is not None
    seen = reply.model_extra["sightline"]["images"]
    assert [(p["width"], p["height"]) for p in seen] == [(600, 300), (56, 56)]
    assert sum(p["tokens"] for p in seen) == image_tokens < usage.prompt_tokens
    assert all(p["digest"].startswith("sha256:") for p in seen)


def test_streamed_and_whole_answers_are_equal(server: Server) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": user(picture(64, 48, "green"), "naïve 日本 👩‍👩‍👧")}
    whole = server.client.chat.completions.create(**ask)
    chunks = list(server.client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert len({c.id for c in chunks}) == 1


def test_the_helper_that_accumulates_a_stream(server: Server) -> None:
    with server.client.chat.completions.stream(model=MODEL, messages=user("one two three")) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert (final.choices[0].message.content or "").endswith("one two three")
    assert final.choices[0].finish_reason == "stop"


def test_several_choices(server: Server) -> None:
    ask: dict[str, Any] = {"model": MODEL, "messages": user("hello"), "n": 3}
    assert len(server.client.chat.completions.create(**ask).choices) == 3
    texts = ["", "", ""]
    for chunk in server.client.chat.completions.create(**ask, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert len(set(texts)) == 1
    assert texts[0].endswith("hello")


def test_stop_length_refusal_and_tools(server: Server) -> None:
    create = server.client.chat.completions.create
    stopped = create(model=MODEL, messages=user("[[fake: say one two three]]"), stop=["two"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("one ", "stop")
    cut = create(model=MODEL, messages=user("[[fake: say one two three]]"), max_completion_tokens=2)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("one two", "length")
    refused = create(model=MODEL, messages=user("[[fake: refuse]]"))
    assert refused.choices[0].message.content is None
    assert refused.choices[0].message.refusal
    tools: Any = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    called = create(model=MODEL, messages=user('[[fake: tool f {"a": 1}]]'), tools=tools)
    assert called.choices[0].finish_reason == "tool_calls"
    calls = called.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert json.loads(calls[0].function.arguments) == {"a": 1}
    answer: Any = [
        *user("what is f?"),
        called.choices[0].message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": calls[0].id, "content": "7"},
    ]
    assert create(model=MODEL, messages=answer).choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}, "invalid_image_url",
         "messages[0].content[0].image_url.url"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, "invalid_image_url",
         "messages[0].content[0].image_url.url"),
        ({"type": "image_url", "image_url": "/etc/passwd"}, "invalid_image_url", "messages[0].content[0].image_url"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}, "invalid_base64_image",
         "messages[0].content[0].image_url.url"),
        ({"type": "image", "image": "aGVsbG8="}, "invalid_image_format", "messages[0].content[0].image"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}, "empty_image_file",
         "messages[0].content[0].image_url.url"),
    ],
)  # fmt: skip
def test_bad_pictures_are_named(server: Server, content: dict[str, Any], code: str, param: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            server.client.chat.completions.create(model=MODEL, messages=user(content), stream=stream)
        assert (refused.value.code, refused.value.param) == (code, param)
        assert refused.value.request_id


def test_a_bare_base64_picture(server: Server) -> None:
    part = {"type": "image", "image": data_url(30, 40, "red").partition(",")[2]}
    reply = server.client.chat.completions.create(model=MODEL, messages=user(part, "?"))
    assert "30x40 mostly red" in (reply.choices[0].message.content or "")


def test_a_prompt_beyond_the_context_is_refused(server: Server) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.client.chat.completions.create(model=MODEL, messages=user("word " * 20_000))
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")


def test_a_fault_in_mid_stream_raises(server: Server) -> None:
    ask: Any = user("[[fake: say a b c d e f]] [[fake: error 3]]")
    text = ""
    with pytest.raises(openai.APIError) as broken:
        for chunk in server.client.chat.completions.create(model=MODEL, messages=ask, stream=True):
            text += chunk.choices[0].delta.content or ""
    assert not isinstance(broken.value, openai.APIStatusError)
    assert text == "a b c"
    assert broken.value.type == "server_error"


def test_input_tokens_are_what_the_answer_then_costs(server: Server) -> None:
    body = {"model": MODEL, "messages": user(picture(600, 300, "red"), "hello")}
    counted = httpx2.post(f"http://127.0.0.1:{server.port}/v1/chat/completions/input_tokens", json=body).json()
    usage = server.client.chat.completions.create(**body).usage
    assert usage is not None
    assert counted["input_tokens"] == usage.prompt_tokens
    assert counted["images"][0]["tokens"] == counted["image_tokens"]
    assert counted["images"][0]["served_width"] > counted["images"][0]["served_height"] > 0


# --- leaving, over a socket ------------------------------------------------------------------------------------------


def send_request(server: Server, text: str, *, stream: bool) -> socket.socket:
    body = json.dumps({"model": MODEL, "messages": user(text), "stream": stream}).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"  # noqa: E501
    connection.sendall(head.encode() + body)
    return connection


def wait_for_running(server: Server, count: int) -> None:
    deadline = time.monotonic() + 10
    while server.running != count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stage", ["prefill", "decode", "queued"])
def test_a_connection_that_closes_sets_its_slot_free(server: Server, stage: str, stream: bool) -> None:
    """The promise is one step and 250 ms; here the machine may be busy with other things."""
    server.wait_until_idle(5)
    text = "[[fake: slow 0.05]] [[fake: say " + "word " * 500 + "]]" if stage == "decode" else "[[fake: hang]]"
    connections = [send_request(server, text, stream=stream) for _ in range(6 if stage == "queued" else 1)]
    wait_for_running(server, len(connections))
    if stage == "decode" and stream:
        assert connections[0].recv(1000).startswith(b"HTTP/1.1 200")
    time.sleep(0.05)
    assert server.running == len(connections)
    for connection in connections:
        connection.close()
    server.wait_until_idle(1.0)


def test_a_full_queue_is_503_with_a_time_to_wait(server: Server) -> None:
    server.wait_until_idle(5)
    connections = [send_request(server, "[[fake: hang]]", stream=True) for _ in range(8)]
    wait_for_running(server, 8)
    with pytest.raises(openai.APIStatusError) as refused:
        server.client.chat.completions.create(model=MODEL, messages=user("hello"))
    assert (refused.value.status_code, refused.value.code) == (503, "engine_overloaded")
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 120
    for connection in connections:
        connection.close()
    server.wait_until_idle(1)


def test_a_body_that_is_too_large_is_answered(server: Server) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        server.client.chat.completions.create(model=MODEL, messages=user("x" * (65 << 20)))
    assert (refused.value.status_code, refused.value.code) == (413, "request_too_large")


def test_an_idle_stream_is_kept_alive(server: Server) -> None:
    connection = send_request(server, "[[fake: slow 0.5]] [[fake: say a b]]", stream=True)
    received = b""
    while b"[DONE]" not in received:
        received += connection.recv(65536)
    connection.close()
    assert b": ping\n\n" in received


# --- in process ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def in_process() -> AsyncIterator[openai.AsyncOpenAI]:
    service = Service(SETTINGS)
    await service.start()
    try:
        transport = httpx2.ASGITransport(app=create_app(service, SETTINGS))
        http = openai.DefaultAsyncHttpxClient(transport=transport)
        async with openai.AsyncOpenAI(
            base_url="http://localhost/v1", api_key="x", max_retries=0, http_client=http
        ) as c:
            yield c
    finally:
        await service.close()


@pytest.mark.anyio
async def test_the_async_sdk_in_process() -> None:
    async with in_process() as client:
        ask: dict[str, Any] = {"model": MODEL, "messages": user(picture(64, 48, "red"), "hello")}
        whole = await client.chat.completions.create(**ask)
        text = ""
        async for chunk in await client.chat.completions.create(**ask, stream=True):
            text += chunk.choices[0].delta.content or ""
        assert text == whole.choices[0].message.content
        assert "64x48 mostly red" in text
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(**{**ask, "model": "other"})
        answers = await asyncio.gather(*(client.chat.completions.create(**ask) for _ in range(8)))
        assert {a.choices[0].message.content for a in answers} == {text}
