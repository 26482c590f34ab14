"""What clients send stays between them and the model: no log line, no metric and nobody else's answer has any of it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import re
import secrets
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from PIL import Image, PngImagePlugin

from tests.reliability.serving import Served, fake, serving

pytestmark = pytest.mark.anyio

KEY = "sk-" + secrets.token_hex(24)
CONTROLS = "x\r\n\x1b[31m\x00\x7f\u2028\u202e\x85y"


class Canaries:
    """Strings that occur nowhere else."""

    def __init__(self) -> None:
        self._made: list[str] = []

    def __call__(self) -> str:
        made = f"canary{secrets.token_hex(8)}"
        self._made.append(made)
        return made

    def found_in(self, text: str, *, made_before: int | None = None) -> list[str]:
        """Those that stand in a text, in any of the ways in which text is written down."""
        return [made for made in self._made[:made_before] if any(shape in text for shape in shapes(made))]

    def __len__(self) -> int:
        return len(self._made)


def shapes(canary: str) -> Iterator[str]:
    yield canary
    yield canary.encode().hex()
    yield quote(canary)
    for before in range(3):  # base64 of it, wherever it stands
        yield base64.b64encode(b"x" * before + canary.encode())[4:-4].decode()


def picture(canary: str) -> bytes:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", canary)
    file = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(file, "PNG", pnginfo=notes)
    return file.getvalue()


def url(file: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(file).decode()


def bodies(new: Canaries) -> Iterator[tuple[str, Any]]:
    """Paths, and what is sent there as JSON; bytes as they stand."""

    def text(script: str = "") -> str:
        return f"{script} {new()}"

    def chat(content: Any, **more: Any) -> dict[str, Any]:
        return {"model": "m", "messages": [{"role": "user", "content": content}], **more}

    def seen(file: Any) -> list[Any]:
        return [{"type": "text", "text": text()}, {"type": "image_url", "image_url": {"url": file}}]

    tool = {"type": "function", "function": {"name": new(), "description": new(), "parameters": {"type": "object"}}}
    schema = {"name": new(), "schema": {"type": "object", "properties": {new(): {"type": "string"}}}}
    for path in ("/v1/chat/completions", "/v3/chat/completions"):
        yield path, chat(text())
        yield path, chat(text(), stream=True)
        yield path, chat(seen(url(picture(new()))))
        yield path, chat(seen(url(new().encode())))
        yield path, chat(seen(new()))
        yield path, chat(seen(f"https://{new()}.example/{new()}?token={new()}"))
        yield path, chat(text(), tools=[tool], stop=[new()], user=new(), metadata={new(): new()})
        yield path, chat(text(), response_format={"type": "json_schema", "json_schema": schema})
        yield path, chat(text(), **{new(): new()})
        yield path, chat(text(), temperature=new())
        yield path, chat([{"type": new(), "text": new()}])
        yield path, chat(text("[[fake: error 0]]"))
        yield path, chat(text("[[fake: error 2]]"), stream=True)
        yield path, chat(text("[[fake: refuse]]"))
        yield path, f'{{"model":"m","messages":"{new()}'.encode()
        yield path, json.dumps([new()]).encode()
        yield path, f'{{"{new()}":1,"{new()}":NaN}}'.encode()
    yield "/v1/completions", {"model": "m", "prompt": text()}
    yield "/v1/completions", {"model": "m", "prompt": {new(): new()}}
    yield "/v1/embeddings", {"model": "m", "input": text()}
    yield "/v1/responses", {"model": "m", "input": text(), "instructions": new()}
    yield "/v1/responses", {"model": "m", "input": text("[[fake: error 1]]"), "stream": True}
    yield "/v1/responses", {"model": "m", "previous_response_id": new(), "input": text()}
    part = {"type": "input_image", "image_url": url(picture(new()))}
    yield "/v1/responses", {"model": "m", "input": [{"role": "user", "content": [part]}]}
    messages = {"model": "m", "max_tokens": 20, "messages": [{"role": "user", "content": text()}], "system": new()}
    yield "/v1/messages", messages
    yield "/v1/messages", {**messages, "stream": True, "metadata": {"user_id": new()}}
    yield "/v1/messages", {**messages, "stop_sequences": new()}
    yield "/v1/messages/count_tokens", {k: v for k, v in messages.items() if k != "max_tokens"}
    yield "/api/chat", {"model": "m", "messages": [{"role": "user", "content": text(), "images": [new()]}]}
    yield "/api/chat", {"model": "m", "messages": [{"role": "user", "content": text()}], "format": new()}
    yield "/api/generate", {"model": "m", "prompt": text(), "system": new(), "template": new()}
    yield "/api/embed", {"model": "m", "input": [text()]}
    yield "/v1/batches", {"input_file_id": new(), "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    yield f"/v1/{new()}?{new()}={new()}", chat(text())


async def ask_all(client: httpx.AsyncClient, new: Canaries) -> list[str]:
    """Asks everything; the answers in which somebody else's canary stands."""
    foreign = []
    before = len(new)
    for path, body in bodies(new):
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {
            "authorization": f"Bearer {KEY}",
            "content-type": "application/json",
            "user-agent": new(),
            "cookie": f"session={new()}",
            "x-request-id": f"!{new()}",
            "openai-organization": new(),
            "referer": f"https://{new()}.example/",
        }
        reply = await client.post(path, content=sent, headers=headers)
        assert reply.status_code < 600
        foreign += new.found_in(reply.text + str(reply.headers), made_before=before)
        before = len(new)
    return foreign


async def send_others(client: httpx.AsyncClient, port: int, new: Canaries) -> None:
    """Forms, files, keys, names, and bytes that are no HTTP."""
    good = {"authorization": f"Bearer {KEY}"}
    line = {"custom_id": new(), "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", new(): 1}}
    upload = {"file": (f"{new()}.jsonl", json.dumps(line).encode()), "purpose": (None, "batch")}
    file = (await client.post("/v1/files", files=upload, headers=good)).json()
    batch = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = (await client.post("/v1/batches", json={**batch, "metadata": {"a": new()}}, headers=good)).json()
    while (await client.get(f"/v1/batches/{batch['id']}", headers=good)).json()["status"] != "completed":
        await asyncio.sleep(0.02)
    odd = {new(): (new(), new().encode()), "file": (f"{new()}.wav", new().encode()), "model": (None, "m")}
    for path in ("/v1/files", "/v1/audio/transcriptions", "/analyze"):
        await client.post(path, files=odd, headers=good)
    for headers in ({"authorization": f"Bearer sk-{new()}"}, {"x-api-key": new()}, {"authorization": f"Basic {new()}"}):
        assert (await client.get("/v1/models", headers=headers)).status_code == 401
    assert (await client.get("/v1/models", headers={**good, "host": f"{new()}.example"})).status_code == 421
    for raw in (
        f"GET /{new()} HTTP/1.1\r\nX : {new()}\r\n\r\n",
        f"{new()}\r\n\r\n",
        f"GET http://{new()}/ HTTP/1.1\r\n\r\n",
    ):
        await asyncio.to_thread(send_raw, port, raw.encode())


def send_raw(port: int, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        while connection.recv(65536):
            pass


async def send_controls(client: httpx.AsyncClient, port: int) -> None:
    """Control characters wherever a client names something."""
    good = {"authorization": f"Bearer {KEY}"}
    for path in ("/v1/chat/completions", "/v1/messages", "/api/chat", "/v1/responses", "/v1/completions"):
        body = {"model": CONTROLS, "max_tokens": 9, "messages": [{"role": "user", "content": "hello"}]}
        assert (await client.post(path, json=body, headers=good)).status_code in (400, 404)
    for path in ("/v1/models/", "/v1/files/", "/v1/batches/", "/v1/responses/"):
        reply = await client.get(path + quote("a\u2028\u202e\x85", safe=""), headers=good)
        assert reply.status_code in (400, 404)
    name = CONTROLS.replace("\r", "").replace("\n", "")
    form = {"file": (name, b"{}"), "purpose": (None, CONTROLS), CONTROLS.replace("\r\n", ""): (None, "x")}
    await client.post("/v1/files", files=form, headers=good)
    request = f"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
    await asyncio.to_thread(send_raw, port, request.encode() + b"X-Request-Id: \x9b31m\xe2\x80\xae\r\n\r\n")


async def test_nothing_that_clients_send_is_left_anywhere() -> None:
    new = Canaries()
    access = {"keys": [{"name": "test", "sha256": hashlib.sha256(KEY.encode()).hexdigest(), "admin": True}]}
    async with serving(fake(), level="debug", ready=False, access=access) as served:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{served.port}", timeout=60) as client:
            while (await client.get("/ready")).status_code != 200:
                await asyncio.sleep(0.05)
            assert await ask_all(client, new) == []
            await send_others(client, served.port, new)
            await send_controls(client, served.port)
            good = {"authorization": f"Bearer {KEY}"}
            model = Canaries()
            named = {"model": model(), "messages": [{"role": "user", "content": "hello"}]}
            assert (await client.post("/v1/chat/completions", json=named, headers=good)).status_code == 404
            shown = [(await client.get(path, headers=good)).text for path in ("/metrics", "/v1/models")]
        log = await logged(served)
    assert model.found_in(log) != []  # a model's name is logged, so the log is what it seems to be
    assert len(new) > 200
    assert new.found_in("\n".join(shown)) == []
    assert new.found_in(log) == []
    assert KEY not in log
    assert KEY[3:20] not in log
    assert hashlib.sha256(KEY.encode()).hexdigest() not in log
    assert_unforgeable(log)


def test_a_canary_is_found_however_it_is_written() -> None:
    new = Canaries()
    canary = new()
    for at in range(5):
        text = base64.b64encode(b"a" * at + canary.encode() + b"b" * 9).decode()
        assert new.found_in(text) == [canary]
    assert new.found_in(canary[:-1]) == []


async def logged(served: Served) -> str:
    """All of it: the server has ended."""
    assert await served.end() == 0
    return await asyncio.to_thread(served.log.read_text)


def assert_unforgeable(log: str) -> None:
    """Each line is JSON and harmless, and each request has one."""
    lines = log.splitlines()
    assert len(lines) > 60
    for line in lines:
        assert re.fullmatch(r"[ -~]+", line), line
        assert json.loads(line)["message"]
