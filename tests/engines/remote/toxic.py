"""A server that misbehaves on purpose: raw sockets, because no library would let it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

Misbehave = Callable[["Connection"], Awaitable[None]]

STREAM = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@dataclass
class Connection:
    """One request, and what it is answered with."""

    path: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter
    reader: asyncio.StreamReader

    async def send(self, text: str | bytes, *, size: int | None = None) -> None:
        """In pieces of `size` bytes."""
        data = text.encode() if isinstance(text, str) else text
        for start in range(0, len(data), size or len(data) or 1):
            self.writer.write(data[start : start + (size or len(data))])
            await self.writer.drain()
            if size is not None:
                await asyncio.sleep(0)

    async def reply(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}
        head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in lines.items())
        await self.send(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + data)

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def left(self) -> None:
        """Returns when the other side has closed."""
        await self.reader.read()


@dataclass
class Toxic:
    """Where it is, what it was asked, and how it answers the next chat."""

    base_url: str = ""
    chats: list[Connection] = field(default_factory=list)
    misbehave: Misbehave | None = None
    lists: Any = field(default_factory=lambda: {"data": [{"id": "m"}]})


@asynccontextmanager
async def toxic() -> AsyncIterator[Toxic]:
    own = Toxic()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = head.strip().split("\r\n")
            headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            connection = Connection(first.split()[1], headers, body, writer, reader)
            if connection.path == "/v1/models":
                await connection.reply(200, own.lists, Connection="close")
            elif connection.path in ("/health", "/props"):
                await connection.reply(200, {}, Connection="close")
            else:
                own.chats.append(connection)
                assert own.misbehave is not None
                await own.misbehave(connection)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    own.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield own
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def chunk(content: str | None = None, **fields: Any) -> str:
    choice = {"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": None, **fields}
    return f"data: {json.dumps({'choices': [choice]}, ensure_ascii=False)}\n\n"


USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3,"total_tokens":10}}\n\n'
DONE = "data: [DONE]\n\n"
ANSWER = chunk("Gr\u00fc") + chunk("\u00dfe \U0001f431") + chunk(finish_reason="stop") + USAGE + DONE
TEXT = "Gr\u00fc\u00dfe \U0001f431"
