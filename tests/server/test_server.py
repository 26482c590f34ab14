"""Several applications in one loop, how they end, and what is left in the log of what goes wrong."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from sightline.logs import Formatter
from sightline.server import Drain, Endpoint, Server
from tests.api.serving import serving

CANARY = "what a client sent"


class App:
    """Answers with its name, and notes what becomes of it."""

    def __init__(self, name: str, life: list[str]) -> None:
        self._name = name
        self._life = life

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                self._life.append(f"{self._name} {event}")
                await send({"type": f"lifespan.{event}.complete"})
            return
        body = self._name.encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def two(life: list[str], drain: Drain | None = None) -> Iterator[tuple[Server, list[int]]]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    endpoints = [Endpoint(App(name, life), [each]) for name, each in zip(("a", "b"), listeners, strict=True)]
    server = Server(endpoints, drain)
    ports = [each.getsockname()[1] for each in listeners]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.started.wait(30)
    try:
        yield server, ports
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


def test_each_application_has_its_own_port_and_they_end_the_other_way_round() -> None:
    life: list[str] = []
    with two(life) as (_, ports):
        assert [httpx.get(f"http://127.0.0.1:{port}/").text for port in ports] == ["a", "b"]
    assert life == ["a startup", "b startup", "b shutdown", "a shutdown"]
    for port in ports:
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"http://127.0.0.1:{port}/")


def test_while_it_drains_everything_is_answered() -> None:
    draining, drained = threading.Event(), threading.Event()

    async def drain() -> None:
        draining.set()
        await asyncio.to_thread(drained.wait, 20)

    with two([], drain) as (server, ports):
        server.stop()
        assert draining.wait(20)
        assert [httpx.get(f"http://127.0.0.1:{port}/").text for port in ports] == ["a", "b"]
        drained.set()


def test_told_twice_it_waits_for_nobody_and_applications_end_all_the_same() -> None:
    life: list[str] = []
    draining = threading.Event()

    async def drain() -> None:
        draining.set()
        await asyncio.Event().wait()

    with two(life, drain) as (server, _):
        server.stop()
        assert draining.wait(20)
        server.stop()
    assert life == ["a startup", "b startup", "b shutdown", "a shutdown"]


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n", b"X\r\n\r\n"]
)
def test_who_is_in_the_middle_of_a_sentence_does_not_keep_it(sent: bytes) -> None:
    with two([]) as (server, ports), socket.create_connection(("127.0.0.1", ports[0]), timeout=20) as connection:
        connection.sendall(sent)
        assert httpx.get(f"http://127.0.0.1:{ports[0]}/").text == "a"  # by now it has read what was sent
        began = time.monotonic()
        server.stop()
        try:
            while connection.recv(65536):
                pass
        except ConnectionResetError:
            pass
        assert time.monotonic() - began < 5


def test_an_application_that_cannot_start_ends_the_server() -> None:
    life: list[str] = []

    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    server = Server([Endpoint(App("a", life), [listeners[0]]), Endpoint(broken, [listeners[1]])])
    with pytest.raises(SystemExit):
        server.run()
    assert life == ["a startup", "a shutdown"]
    for listener in listeners:
        listener.close()


async def faulty(scope: Scope, receive: Receive, send: Send) -> None:
    """Fails in every way that a bug can, with a client's words in each message."""
    if scope["type"] == "lifespan":
        await App("faulty", [])(scope, receive, send)
        return
    path = scope["path"]
    if path == "/at-once":
        raise ValueError(CANARY)
    if path == "/unawaited":
        task = asyncio.get_running_loop().create_task(fail())
        await asyncio.wait([task])
        del task
    header = (b"x-said", CANARY.encode() + b"\r\nSet-Cookie: a=b") if path == "/header" else (b"x", b"y")
    await send({"type": "http.response.start", "status": 200, "headers": [header]})
    await send({"type": "http.response.body", "body": b"some", "more_body": True})
    if path == "/late":
        raise ValueError(CANARY)
    await send({"type": "http.response.body", "body": b""})


async def fail() -> None:
    raise ValueError(CANARY)


def test_what_goes_wrong_is_logged_without_what_clients_sent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(faulty) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        assert client.get("/at-once").status_code == 500
        for path in ("/late", "/header"):
            with pytest.raises(httpx.RemoteProtocolError):
                client.get(path)
        assert client.get("/unawaited").text == "some"
    log = "\n".join(Formatter("json").format(record) for record in caplog.records)
    assert log.count("ValueError") >= 3
    assert CANARY not in log
