"""The clients: each on a connection of its own that it keeps, in one process beside the servers.

They ask the fake engine for the time, so that every word of an answer says when it was made and by which process. All
times are seconds of the machine's monotonic clock, which its processes share (Linux).
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import multiprocessing
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import cast

import numpy as np
import uvloop
from PIL import Image

HOST = "127.0.0.1"
_SLOT = 16
"""Characters of base64 behind a picture, where each request has a number of its own."""
_STAMP = re.compile(rb"(\d+\.\d{6})@(\d+)")
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_END = b"0\r\n\r\n"
_MOST_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What is asked, by how many, how often."""

    ports: tuple[int, ...]
    """Of the servers, each of which a client asks in turn."""
    clients: int
    words: int
    """Of an answer: tokens of the fake engine."""
    text_words: int = 0
    """Of a prompt, beside its picture and the command: tokens too."""
    requests: int | None = None
    """Of each client, one after the other; None: until it is stopped."""
    pause_s: float = 0.0
    """Mean time between an answer and the client's next request; exponential."""
    picture_bytes: int = 2_000
    """Of the one picture, as base64; every request has one that nobody has seen."""
    model: str = "fake"
    stream: bool = True
    seed: int = 0


@dataclass(slots=True)
class Answer:
    """One request, and what came back."""

    port: int
    client: int
    asked: float
    ended: float = 0.0
    made: list[float] = field(default_factory=list)
    """When each word was made."""
    arrived: list[float] = field(default_factory=list)
    """When each word arrived."""
    engine: int = 0
    """Process of the engine that made the last word."""
    prompt_tokens: int = 0
    wrong: str = ""
    """What else came than the answer."""


class Body:
    """Requests that differ by a number, which makes their pictures new ones."""

    def __init__(self, load: Load) -> None:
        url = f"data:image/jpeg;base64,{_picture(load.picture_bytes)}HERE"
        request = {
            "model": load.model,
            "stream": load.stream,
            "stream_options": {"include_usage": True},
            "max_tokens": load.words,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "image_url", "image_url": {"url": url}},
                        {"type": "text", "text": "so " * load.text_words + f"[[fake: clock {load.words}]]"},
                    ],
                }
            ],
        }
        if not load.stream:
            del request["stream_options"]
        self._before, self._after = json.dumps(request).encode().split(b"HERE")
        self._size = len(self._before) + len(self._after) + _SLOT

    def request(self, port: int, number: int) -> bytes:
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}:{port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {self._size}\r\n\r\n"
        )
        return b"".join((head.encode(), self._before, f"{number:0{_SLOT}d}".encode(), self._after))


def _picture(num_bytes: int) -> str:
    """Base64 of a JPEG, of about so many characters; what follows its end does not matter to decoders."""
    side = 224 if num_bytes < 20_000 else 640
    rows, columns = np.mgrid[0 : side * 3 // 4, 0:side]
    waves = 127 + 90 * np.sin(rows / 23) * np.cos(columns / 31)
    file = io.BytesIO()
    Image.fromarray(np.repeat(waves.astype(np.uint8)[..., None], 3, 2)).save(file, "JPEG", quality=40)
    whole = num_bytes * 3 // 4 // 3 * 3
    return base64.b64encode(file.getvalue().ljust(whole, b"\0")[: max(whole, file.tell() // 3 * 3)]).decode()


class Run:
    """All clients of one load."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.body = Body(load)
        self.answers: list[Answer] = []
        self.random = np.random.default_rng(load.seed)
        self.going = True
        self.number = int(time.monotonic() * 1000) * 1000
        """Of the last request: another run's requests have others."""

    async def client(self, client: int) -> None:
        connections = [await _connected(port) for port in self.load.ports]
        turn = client
        for _ in range(self.load.requests or 1 << 62):
            if not self.going:
                break
            port = self.load.ports[turn % len(connections)]
            at, turn = turn % len(connections), turn + 1
            self.number += 1
            answer = Answer(port, client, time.monotonic())
            try:
                await asyncio.wait_for(connections[at].ask(self.body.request(port, self.number), answer), _MOST_S)
            except (OSError, TimeoutError) as error:
                answer.wrong = f"{type(error).__name__}: {error}"
            self._judge(answer)
            if answer.wrong:
                connections[at].close()
                connections[at] = await _connected(port)
            if self.load.pause_s:
                await asyncio.sleep(float(self.random.exponential(self.load.pause_s)))
        for connection in connections:
            connection.close()

    def _judge(self, answer: Answer) -> None:
        answer.ended = answer.ended or time.monotonic()
        if not answer.wrong and len(answer.made) != self.load.words:
            answer.wrong = f"{len(answer.made)} words"
        self.answers.append(answer)


class Connection11(asyncio.Protocol):
    """HTTP/1.1, one request at a time."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._done: asyncio.Future[None] | None = None

    async def ask(self, request: bytes, answer: Answer) -> None:
        """Raises `ConnectionError`."""
        if self._transport.is_closing():
            raise ConnectionResetError("closed before it was asked")
        self._answer, self._head, self._rest, self._left = answer, b"", b"", -1
        self._done = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        await self._done

    def data_received(self, data: bytes) -> None:
        now, answer = time.monotonic(), getattr(self, "_answer", None)
        if answer is None or self._done is None or self._done.done():
            return
        text = self._rest + data
        end = text.rfind(b"\n") + 1  # a word is never cut: what has not ended waits for the rest
        for stamp in _STAMP.finditer(text, 0, end):
            answer.made.append(float(stamp[1]))
            answer.arrived.append(now)
            answer.engine = int(stamp[2])
        self._rest = text[end:]
        if not self._head:
            self._read_head(data, answer)
        elif self._left > 0:
            self._left -= len(data)
        if self._left == 0 or (self._left < 0 and text.endswith(_END)):
            self._told(text, now, answer)

    def _read_head(self, data: bytes, answer: Answer) -> None:
        self._head, mark, body = data.partition(b"\r\n\r\n")
        if mark and (length := _LENGTH.search(self._head + b"\r\n")):
            self._left = int(length[1]) - len(body)
        if not self._head.startswith(b"HTTP/1.1 200"):
            answer.wrong = data[:400].decode("latin-1")

    def _told(self, text: bytes, now: float, answer: Answer) -> None:
        for stamp in _STAMP.finditer(self._rest):  # of an answer in one piece
            answer.made.append(float(stamp[1]))
            answer.arrived.append(now)
            answer.engine = int(stamp[2])
        if usage := re.search(rb'"prompt_tokens":\s*(\d+)', text):
            answer.prompt_tokens = int(usage[1])
        if b'"error"' in text and not answer.wrong:
            answer.wrong = text[-400:].decode("latin-1")
        answer.ended = now
        assert self._done is not None
        self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(ConnectionResetError("the connection broke"))

    def close(self) -> None:
        self._transport.close()


async def _connected(port: int) -> Connection11:
    while True:
        try:
            _, protocol = await asyncio.get_running_loop().create_connection(Connection11, HOST, port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            return protocol


async def _drive(load: Load, link: Connection) -> None:
    run = Run(load)
    clients = [asyncio.create_task(run.client(number)) for number in range(load.clients)]

    async def stopped() -> None:
        await asyncio.to_thread(link.recv)
        run.going = False

    waiting = asyncio.create_task(stopped())
    await asyncio.gather(*clients)
    link.send((run.answers, time.process_time()))
    await waiting


def _run(load: Load, link: Connection) -> None:
    uvloop.run(_drive(load, link))


class Clients:
    """A load under way, in a process of its own. Life: made (it begins) -> `stop` or `finish`, which gives answers."""

    def __init__(self, load: Load) -> None:
        self._link, theirs = multiprocessing.get_context("spawn").Pipe()
        self._process = multiprocessing.get_context("spawn").Process(target=_run, args=(load, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self.cpu_s = 0.0

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def stop(self) -> list[Answer]:
        """What is under way is answered first."""
        self._link.send("stop")
        return self._told()

    def finish(self) -> list[Answer]:
        """All answers, when each client has had its requests answered."""
        return self._told(end=True)

    def _told(self, end: bool = False) -> list[Answer]:
        answers, self.cpu_s = cast(tuple[list[Answer], float], self._link.recv())
        if end:
            self._link.send("end")
        self._process.join(10)
        return answers


def run(load: Load) -> Sequence[Answer]:
    return Clients(load).finish()
