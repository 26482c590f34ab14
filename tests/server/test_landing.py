"""Large bodies of a told length go past the parser: whatever pieces they come in, they arrive whole, and what stands
behind them is a request of its own."""

from __future__ import annotations

import gc
import json
import random
import socket
import ssl
import string
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from sightline.api import bodies
from sightline.server import protocol
from sightline.server.landing import Landing
from sightline.server.tls import Certificate
from sightline.types import Text
from tests.api.serving import serving
from tests.api.standin import ScriptedService, app_of, chat
from tests.server.certificates import issued, trusting
from tests.server.test_slow import connect, status_of, until_closed

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
MIB = 1024 * 1024


def text(num_bytes: int, seed: int = 0) -> str:
    """No part of it is like another."""
    return "".join(random.Random(seed).choices(string.ascii_letters, k=num_bytes))


def request(said: str, headers: bytes = b"") -> bytes:
    body = json.dumps(chat(messages=[{"role": "user", "content": said}])).encode()
    return POST + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def heard(service: ScriptedService) -> list[str]:
    return [part.text for request in service.requests for part in request.messages[0].content if isinstance(part, Text)]


def answers(connection: socket.socket, count: int) -> list[int]:
    """The statuses of so many answers, which are all that is said."""
    received = b""
    while received.count(b"HTTP/1.1 ") < count or not received.endswith(b"}"):
        piece = connection.recv(65536)
        assert piece, "the connection ended"
        received += piece
    return status_of(received)


@contextmanager
def served(**limits: Any) -> Iterator[tuple[ScriptedService, int]]:
    service = ScriptedService()
    with serving(app_of(service, **limits), **limits) as port:
        yield service, port


@pytest.mark.parametrize("num_bytes", [64 * 1024, 70_000, 400_000, MIB, 2 * MIB - 100, 3 * MIB + 1])
def test_a_body_arrives_as_it_was_sent(num_bytes: int) -> None:
    said = text(num_bytes)
    with served() as (service, port), connect(port) as connection:
        connection.sendall(request(said))
        assert answers(connection, 1) == [200]
    assert heard(service) == [said]


@pytest.mark.parametrize("seed", range(6))
def test_in_whatever_pieces(seed: int) -> None:
    chance = random.Random(seed)
    said = text(300_000, seed)
    rest = request(said)
    with served() as (service, port), connect(port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while rest:
            size = chance.choice([1, 7, 100, 5_000, 65_536, 200_000])
            connection.sendall(rest[:size])
            rest = rest[size:]
        assert answers(connection, 1) == [200]
    assert heard(service) == [said]


def test_what_stands_behind_a_body_is_the_next_request() -> None:
    first, second = text(200_000, 1), text(150_000, 2)
    with served() as (service, port), connect(port) as connection:
        connection.sendall(request(first) + GET + request(second) + request("short") + GET)
        assert answers(connection, 5) == [200] * 5
        connection.sendall(request(first) + b"GET / HT")
        assert answers(connection, 1) == [200]
        connection.sendall(b"TP/1.1\r\n no head\r\n\r\n")
        assert status_of(until_closed(connection)[0]) == [400]
    assert heard(service) == [first, second, "short", first]


def test_a_client_that_waits_to_be_told_sends_its_body_then() -> None:
    said = text(200_000)
    head, end, body = request(said, b"Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with served() as (service, port), connect(port) as connection:
        connection.sendall(head + end)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert answers(connection, 1) == [200]
    assert heard(service) == [said]


def test_under_tls_too(tmp_path: Path) -> None:
    said, service = text(3 * MIB), ScriptedService()
    certificate = Certificate(issued(tmp_path))
    with (
        serving(app_of(service), certificate) as port,
        connect(port) as plain,
        trusting().wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        assert isinstance(connection, ssl.SSLSocket)
        connection.sendall(request(said) + request("short"))
        assert answers(connection, 2) == [200, 200]
    assert heard(service) == [said, "short"]


def test_the_rest_of_a_body_that_took_too_long_is_no_request() -> None:
    sent = request(text(200_000))
    with served(body_s=0.3, min_body_rate=MIB) as (service, port), connect(port) as connection:
        connection.sendall(sent[:150_000])
        assert status_of(connection.recv(65536)) == [408]
        connection.sendall(sent[150_000:] + GET)
        assert until_closed(connection)[0] == b""
    assert service.requests == []


def test_a_body_whose_reader_has_answered_is_read_to_its_end() -> None:
    places = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        if scope["method"] == "POST":
            places.append(bytearray(150_000))
            scope[bodies.LAND](memoryview(places[0]))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"{}"})

    with serving(app) as port, connect(port) as connection:
        connection.sendall(POST + b"Content-Length: 150000\r\n\r\n" + b"a" * 10_000)
        assert answers(connection, 1) == [200]
        connection.sendall(b"b" * 140_000 + GET)
        assert answers(connection, 1) == [200]
    assert b"b" not in places[0]


def test_what_has_come_counts_for_the_time_that_a_body_may_take() -> None:
    """Nothing is told of it before all is there."""
    said = text(300_000)
    sent = request(said)
    with served(body_s=0.1, min_body_rate=65_536) as (service, port), connect(port) as connection:
        connection.sendall(sent[:260_000])  # which may take 4 s; 65,536 alone 1.1 s
        connection.settimeout(1.5)
        with pytest.raises(TimeoutError):
            connection.recv(65536)
        connection.settimeout(20)
        connection.sendall(sent[260_000:])
        status = answers(connection, 1)
    assert status in ([200], [408]), "408 on a machine that is very busy"
    assert status == [408] or heard(service) == [said]


def test_a_client_that_leaves_in_the_middle_leaves_nothing() -> None:
    with served() as (service, port):
        for _ in range(5):
            with connect(port) as connection:
                connection.sendall(request(text(400_000))[:300_000])
        with connect(port) as connection:
            connection.sendall(request("still there"))
            assert answers(connection, 1) == [200]
    assert heard(service) == ["still there"]


def test_a_request_that_is_answered_leaves_nothing_to_be_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """What refers to itself stays in memory until the garbage collector looks, for which everybody waits."""
    requests: list[weakref.ref[Landing]] = []

    class Noted(Landing):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            requests.append(weakref.ref(self))

    monkeypatch.setattr(protocol, "Landing", Noted)
    gc.disable()
    try:
        with served() as (_, port), connect(port) as connection:
            for _ in range(3):
                connection.sendall(request(text(300_000)))
                assert answers(connection, 1) == [200]
            connection.sendall(GET)
            assert answers(connection, 1) == [200]
            assert len(requests) == 3
            assert [each() for each in requests] == [None] * 3
    finally:
        gc.enable()
