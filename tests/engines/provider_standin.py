"""Speaks the wires of OpenAI and of Anthropic, without a model: a raw HTTP/1.1 server, for engines that call providers.

Sources: openai-openapi 2.3.0 (`CreateChatCompletionStreamResponse`), Anthropic's Messages API (streaming events). Its
model is that of `ollama/standin.py`: it never ends by itself. What it does beside that is asked for by words of the
prompt. `requests` holds what it was sent, headers and all.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

from PIL import Image

from tests.engines.ollama_standin import STEP_S, Prompt, words_of

CONTEXT = 600
FAULTS = {
    "busy": (429, "rate_limit_error", "rate_limit_exceeded"),
    "overload": (529, "overloaded_error", None),
    "refuse": (400, "invalid_request_error", None),
    "broken": (500, "api_error", None),
    "who": (401, "authentication_error", "invalid_api_key"),
    "gone": (404, "not_found_error", "model_not_found"),
}
SECRET = "secret of /opt/path"


@dataclass
class Received:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class Provider:
    base_url: str = ""
    requests: list[Received] = field(default_factory=list)
    num_left: int = 0
    """Clients that went before the end."""


@asynccontextmanager
async def provider() -> AsyncIterator[Provider]:
    standin = Provider()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError):
                while True:
                    received = await read(reader)
                    standin.requests.append(received)
                    await reply(received, writer)
        except ConnectionError:
            standin.num_left += 1
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**26)
    standin.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield standin
    finally:
        server.close()


async def read(reader: asyncio.StreamReader) -> Received:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = json.loads(await reader.readexactly(int(headers["content-length"])))
    return Received(head[0].split()[1], headers, body)


async def reply(received: Received, writer: asyncio.StreamWriter) -> None:
    wire = Anthropic() if received.path.endswith("/messages") else OpenAI()
    prompt = wire.prompt(received.body)
    wanted = received.body.get("max_completion_tokens") or received.body.get("max_tokens")
    most = min(wanted or CONTEXT, CONTEXT - prompt.tokens)
    for word in prompt.words:
        if word in FAULTS:
            return await refuse(writer, *FAULTS[word])
    if most <= 0:
        return await refuse(writer, 400, "invalid_request_error", "context_length_exceeded", wire.too_long)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    if "silent" in prompt.words:
        await asyncio.sleep(30)
    if "call" in prompt.words:
        return await send_all(writer, wire.call(prompt.tokens))
    words, reason = answer(received.body, prompt, most)
    await send(writer, wire.begin(prompt.tokens))
    made = 0
    for word in words:
        await asyncio.sleep(0.05 if "slow" in prompt.words else STEP_S)
        await send(writer, wire.delta(word if made == 0 else f" {word}", received.body))
        made += 1
        if made == 2 and "cut" in prompt.words:
            return await end(writer)
        if made == 2 and "reset" in prompt.words:
            writer.transport.abort()
            return None
        if made == 2 and "late-error" in prompt.words:
            return await send_all(writer, wire.error())
    return await send_all(writer, wire.end(reason, prompt.tokens, made))


def answer(body: dict[str, Any], prompt: Prompt, most: int) -> tuple[list[str], str]:
    """Words, and why there are no more."""
    words = list(islice(words_of(prompt, body), most))
    stops = body.get("stop") or body.get("stop_sequences") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop in words:
            return words[: words.index(stop)], "stop"
    return words, "length"


async def refuse(writer: asyncio.StreamWriter, status: int, kind: str, code: str | None, text: str = SECRET) -> None:
    error = {"type": "error", "error": {"type": kind, "code": code, "param": None, "message": text}}
    body = json.dumps(error).encode()
    fields = ("Content-Type: application/json", f"Content-Length: {len(body)}", "Retry-After: 7")
    head = "\r\n".join((f"HTTP/1.1 {status} No", *fields, "\r\n"))
    writer.write(head.encode() + body)
    await writer.drain()


async def send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


async def end(writer: asyncio.StreamWriter) -> None:
    writer.write(b"0\r\n\r\n")
    await writer.drain()


async def send_all(writer: asyncio.StreamWriter, events: Iterator[bytes]) -> None:
    for event in events:
        await send(writer, event)
    await end(writer)


def logprobs_of(text: str, body: dict[str, Any]) -> dict[str, Any]:
    if not body.get("logprobs"):
        return {}
    chosen = {"token": text, "logprob": -0.25, "bytes": list(text.encode())}
    others = [{"token": f"other{i}", "logprob": -1.0 - i, "bytes": [111]} for i in range(20)]
    return {"logprobs": {"content": [{**chosen, "top_logprobs": [chosen, *others][: body["top_logprobs"]]}]}}


def open_picture(media_type: str, data: str) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    assert picture.get_format_mimetype() == media_type  # type: ignore[attr-defined]
    return picture.convert("RGB")


class Wire:
    """What the two have in common: a prompt of roles, texts and pictures."""

    too_long = SECRET

    def prompt(self, body: dict[str, Any]) -> Prompt:
        pictures: list[Image.Image] = []
        texts = []
        for message in body["messages"]:
            content = message["content"]
            texts.append(message["role"])
            for part in [{"type": "text", "text": content}] if isinstance(content, str) else content or []:
                if part["type"] == "text":
                    texts.append(part["text"])
                elif (picture := self.picture(part)) is not None:
                    texts.append(f"[img-{len(pictures)}]")
                    pictures.append(picture)
        return Prompt(" ".join(texts), pictures)

    def picture(self, part: dict[str, Any]) -> Image.Image | None:
        raise NotImplementedError


class OpenAI(Wire):
    too_long = "This model's maximum context length is 600 tokens."

    def picture(self, part: dict[str, Any]) -> Image.Image | None:
        head, _, data = part["image_url"]["url"].partition(";base64,")
        return open_picture(head.removeprefix("data:"), data)

    def begin(self, prompt_tokens: int) -> bytes:
        return self.chunk({"role": "assistant", "content": ""})

    def delta(self, text: str, body: dict[str, Any]) -> bytes:
        return self.chunk({"content": text}, **logprobs_of(text, body))

    def chunk(self, delta: dict[str, Any], reason: str | None = None, **fields: Any) -> bytes:
        return self.event(choices=[{"index": 0, "delta": delta, "finish_reason": reason, **fields}])

    def event(self, **fields: Any) -> bytes:
        common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        return f"data: {json.dumps({**common, **fields})}\n\n".encode()

    def end(self, reason: str, prompt_tokens: int, made: int) -> Iterator[bytes]:
        yield self.chunk({}, reason)
        total = prompt_tokens + made
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": made, "total_tokens": total}
        yield self.event(choices=[], usage=usage)
        yield b"data: [DONE]\n\n"

    def error(self) -> Iterator[bytes]:
        yield f"data: {json.dumps({'error': {'message': SECRET, 'type': 'server_error', 'code': None}})}\n\n".encode()

    def call(self, prompt_tokens: int) -> Iterator[bytes]:
        begun = {"index": 0, "id": "call_a", "type": "function", "function": {"name": "look", "arguments": ""}}
        yield self.chunk({"role": "assistant", "tool_calls": [begun]})
        for piece in ('{"where":', ' "left"}'):
            yield self.chunk({"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})
        yield from self.end("tool_calls", prompt_tokens, 9)


class Anthropic(Wire):
    too_long = "prompt is too long: 700 tokens > 600 maximum"
    reasons: ClassVar = {"length": "max_tokens", "stop": "stop_sequence", "tool_calls": "tool_use"}

    def picture(self, part: dict[str, Any]) -> Image.Image | None:
        if part["type"] != "image":
            return None
        assert part["source"]["type"] == "base64"
        return open_picture(part["source"]["media_type"], part["source"]["data"])

    def event(self, kind: str, **fields: Any) -> bytes:
        return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()

    def begin(self, prompt_tokens: int) -> bytes:
        return self.start(prompt_tokens) + self.block(0, {"type": "text", "text": ""})

    def start(self, prompt_tokens: int) -> bytes:
        usage = {"input_tokens": prompt_tokens, "output_tokens": 1}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}
        return self.event("message_start", message={**message, "stop_reason": None, "usage": usage})

    def block(self, index: int, block: dict[str, Any]) -> bytes:
        return self.event("content_block_start", index=index, content_block=block)

    def delta(self, text: str, body: dict[str, Any]) -> bytes:
        return self.event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})

    def end(self, reason: str, prompt_tokens: int, made: int) -> Iterator[bytes]:
        yield self.event("content_block_stop", index=0)
        delta = {"stop_reason": self.reasons[reason], "stop_sequence": None}
        yield self.event("message_delta", delta=delta, usage={"output_tokens": made})
        yield self.event("message_stop")

    def error(self) -> Iterator[bytes]:
        yield self.event("error", error={"type": "overloaded_error", "message": SECRET})

    def call(self, prompt_tokens: int) -> Iterator[bytes]:
        yield self.start(prompt_tokens)
        yield self.block(0, {"type": "tool_use", "id": "call_a", "name": "look", "input": {}})
        for piece in ('{"where":', ' "left"}'):
            delta = {"type": "input_json_delta", "partial_json": piece}
            yield self.event("content_block_delta", index=0, delta=delta)
        yield from self.end("tool_calls", prompt_tokens, 9)
