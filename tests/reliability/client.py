"""A bare HTTP/1.1 client that times what it gets, and can leave at any moment. So that the cores are the server's."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

HOST = "127.0.0.1"
Json = dict[str, Any]


@dataclass
class Reply:
    status: int = 0
    """0: there was none."""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    first_s: float | None = None
    """From the question to the first piece of text."""
    took_s: float = 0.0
    whole: bool = False
    """It ended as HTTP says, and not because the connection did."""


class Connection:
    """One connection, for one question after the other. `async with` it."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(HOST, self._port, limit=2**22)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    def leave(self, *, reset: bool = False) -> None:
        """As a client that is not interested any more; with `reset`, as one whose machine was switched off."""
        if reset:
            raw = self._writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.close()

    async def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        length: int | None = None,
    ) -> None:
        """`length`: what is told of the body, where only a part of it is sent."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        told = len(body) if length is None else length
        lines += [f"Content-Length: {told}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        self._writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await self._writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers. Raises `asyncio.IncompleteReadError` where nothing comes."""
        status = int((await self._reader.readuntil(b"\r\n")).split()[1])
        headers = {}
        while line := (await self._reader.readuntil(b"\r\n")).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return status, headers

    async def piece(self, headers: Mapping[str, str]) -> bytes:
        """The next of the body; empty at its end. Raises `asyncio.IncompleteReadError` where it is cut off."""
        if headers.get("transfer-encoding") != "chunked":
            return await self._reader.readexactly(int(headers.get("content-length", 0)))
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        data = await self._reader.readexactly(size + 2)
        return data[:-2]

    async def ask(
        self, method: str, path: str, body: bytes = b"", *, token: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        """`token`: what marks a piece of text, for `Reply.first_s`. Raises nothing of the connection: see `whole`."""
        reply, began = Reply(), time.perf_counter()
        body_so_far = bytearray()
        try:
            await self.send(method, path, body, headers)
            reply.status, reply.headers = await self.head()
            while data := await self.piece(reply.headers):
                body_so_far += data
                if reply.first_s is None and token and token in data:
                    reply.first_s = time.perf_counter() - began
                if "content-length" in reply.headers:
                    break
            reply.whole = True
        except (OSError, EOFError):
            pass
        reply.body, reply.took_s = bytes(body_so_far), time.perf_counter() - began
        return reply


async def once(port: int, method: str, path: str, body: bytes = b"", *, token: bytes = b"") -> Reply:
    """On a connection of its own. A connection that cannot be had is a reply without a status."""
    try:
        async with Connection(port) as connection:
            return await connection.ask(method, path, body, token=token)
    except OSError:
        return Reply()


# --- what is asked ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dialect:
    path: str
    to_body: Callable[[str, int], Json]
    """From a text and how many tokens are wanted, without `stream`."""
    token: bytes
    """What marks a piece of text in a stream."""
    end: bytes
    """What stands at the end of a stream that did not fail, and only there."""
    failure: bytes
    """What stands at the end of one that did."""
    cut: bytes = b"\0"
    """What stands in place of `end` where the answer was as long as it was allowed to be."""

    def ended_well(self, reply: Reply) -> bool:
        """Of a stream."""
        return reply.whole and (self.end in reply.body or self.cut in reply.body) and self.failure not in reply.body

    def ended_badly(self, reply: Reply) -> bool:
        """Of a stream: with the error as its last event, and without the mark of one that is complete."""
        return reply.whole and self.failure in reply.body and self.end not in reply.body

    def body(self, text: str, *, tokens: int = 1000, stream: bool = True, **more: Any) -> bytes:
        return json.dumps({**self.to_body(text, tokens), "stream": stream, **more}).encode()


def _chat(text: str, tokens: int) -> Json:
    return {"model": "m", "max_tokens": tokens, "messages": [{"role": "user", "content": text}]}


DIALECTS: Mapping[str, Dialect] = {
    "chat": Dialect("/v1/chat/completions", _chat, b'"delta":{"content":', b"data: [DONE]", b'data: {"error":'),
    "completions": Dialect(
        "/v1/completions",
        lambda text, tokens: {"model": "m", "max_tokens": tokens, "prompt": text},
        b'"text":"',
        b"data: [DONE]",
        b'data: {"error":',
    ),
    "responses": Dialect(
        "/v1/responses",
        lambda text, tokens: {"model": "m", "max_output_tokens": tokens, "input": text, "store": False},
        b"response.output_text.delta",
        b"event: response.completed",
        b"event: response.failed",
        b"event: response.incomplete",
    ),
    "messages": Dialect("/v1/messages", _chat, b"event: content_block_delta", b"event: message_stop", b"event: error"),
    "ollama chat": Dialect(
        "/api/chat",
        lambda text, tokens: {
            "model": "m", "options": {"num_predict": tokens}, "messages": [{"role": "user", "content": text}],
        },
        b'"content":"',
        b'"done":true',
        b'{"error":',
    ),
    "ollama generate": Dialect(
        "/api/generate",
        lambda text, tokens: {"model": "m", "options": {"num_predict": tokens}, "prompt": text},
        b'"response":"',
        b'"done":true',
        b'{"error":',
    ),
    "ovms": Dialect("/v3/chat/completions", _chat, b'"delta":{"content":', b"data: [DONE]", b'data: {"error":'),
}  # fmt: skip


def picture_part(file: bytes, media_type: str = "image/jpeg") -> Json:
    url = f"data:{media_type};base64,{base64.b64encode(file).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
