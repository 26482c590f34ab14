"""Pieces of a stream that an application hands to the server past ASGI's `send`: they arrive the same."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import httpx
from starlette.types import Receive, Scope, Send

from sightline import metrics
from sightline.api.sse import PASS, Pass
from sightline.server import Endpoint, Server
from tests.api.serving import serving
from tests.api.standin import ScriptedService, app_of, chat

Streams = Callable[[Pass, Scope], Awaitable[None]]


class App:
    """Streams what it is told to, by `Pass`."""

    def __init__(self, streams: Streams, headers: list[tuple[bytes, bytes]]) -> None:
        self._streams = streams
        self._headers = headers
        self.left: list[str] | None = None
        """Keys of ours in the scope of a request when it was over."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        await self._streams(scope[PASS], scope)
        await send({"type": "http.response.body", "body": b""})
        self.left = [key for key in scope if key == PASS]


@contextmanager
def running(app: App) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server([Endpoint(app, [listener])])
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        assert server.started.wait(30)
        try:
            yield listener.getsockname()[1]
        finally:
            server.stop()
            thread.join(30)


async def _three(pass_on: Pass, scope: Scope) -> None:
    for piece in (b"one ", b"", b"two ", b"three"):
        if (waiting := pass_on(piece)) is not None:
            await waiting


def ask(port: int, method: bytes = b"GET") -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(method + b" / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n\r\n")[2]


def test_pieces_are_chunks_and_an_empty_one_is_not_the_end() -> None:
    app = App(_three, [])
    with running(app) as port:
        assert ask(port) == b"4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n"
    assert app.left == [], "what leads from a request's scope to itself is taken out when it is over"


def test_a_body_of_a_known_length_has_no_chunks() -> None:
    with running(App(_three, [(b"content-length", b"13")])) as port:
        assert ask(port) == b"one two three"


def test_the_answer_to_head_has_no_body() -> None:
    with running(App(_three, [])) as port:
        assert ask(port, b"HEAD") == b""


def test_a_client_that_does_not_read_is_waited_for() -> None:
    full = threading.Event()
    handed = 0

    async def streams(pass_on: Pass, scope: Scope) -> None:
        nonlocal handed
        for _ in range(4000):
            handed += 1
            if (waiting := pass_on(b"x" * 65536)) is not None:
                full.set()
                await waiting
                return

    with running(App(streams, [])) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert full.wait(20), "the server holds no more than its send buffer"
        received = b"".join(iter(lambda: connection.recv(1 << 20), b""))
    assert received.count(b"x") == handed * 65536
    assert received.endswith(b"0\r\n\r\n")


def test_what_is_passed_on_is_counted() -> None:
    def sent() -> float:
        labels = {"route": "/v1/chat/completions"}
        return metrics.REGISTRY.get_sample_value("sightline_http_response_bytes_total", labels) or 0.0

    before = sent()
    with serving(app_of(ScriptedService())) as port:
        reply = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=chat(stream=True))
    words = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: {")]
    assert "".join(word["choices"][0]["delta"].get("content", "") for word in words) == "A cat"
    assert sent() - before == len(reply.content)
