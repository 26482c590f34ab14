"""Clients that are slow, that do not read, that are too many: what they cost ends, and others notice nothing."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from sightline import metrics
from sightline.items import ChoiceEvent, Item
from sightline.server import protocol
from sightline.server.tls import Certificate
from sightline.types import ChatRequest, TextDelta
from tests.api.serving import serving
from tests.api.standin import PREPARED, ScriptedService, app_of, chat
from tests.server.certificates import issued, trusting

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
LATE_S = 1.0
"""By which something may end later than it should: a sweep, and a machine that is busy."""


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def drip(connection: socket.socket, data: bytes, every_s: float) -> None:
    """A byte at a time until all is sent or the server has closed."""
    for byte in data:
        try:
            connection.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(every_s)


def until_closed(connection: socket.socket) -> tuple[bytes, float]:
    """What the server said, and after how many seconds it closed."""
    started, received = time.monotonic(), b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received, time.monotonic() - started


@contextmanager
def dripping(connection: socket.socket, data: bytes, every_s: float = 0.05) -> Iterator[None]:
    thread = threading.Thread(target=drip, args=(connection, data, every_s))
    thread.start()
    try:
        yield
    finally:
        connection.close()
        thread.join(20)


def status_of(received: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", received)]


# ---- slow heads and bodies


def test_a_connection_on_which_nothing_comes_is_closed_without_a_word() -> None:
    with serving(app_of(ScriptedService()), head_s=0.4) as port, connect(port) as connection:
        received, took = until_closed(connection)
    assert received == b""
    assert 0.3 < took < 0.4 + LATE_S


@pytest.mark.parametrize("before", [b"", GET], ids=["first request", "second request"])
@pytest.mark.parametrize("head", [GET[:10] + b"a" * 1000, b"\r\n" * 500], ids=["target", "empty lines"])
def test_a_head_that_trickles_in_is_ended(before: bytes, head: bytes) -> None:
    with serving(app_of(ScriptedService()), head_s=0.4) as port, connect(port) as connection:
        if before:
            connection.sendall(before)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        with dripping(connection, head):
            received, took = until_closed(connection)
    assert status_of(received) == [408]
    assert json.loads(received.rpartition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
    assert took < 0.4 + LATE_S


def test_a_body_that_trickles_in_is_ended_in_the_words_of_its_dialect() -> None:
    service = ScriptedService()
    with serving(app_of(service, body_s=0.4), body_s=0.4) as port, connect(port) as connection:
        messages = POST.replace(b"/v1/chat/completions", b"/v1/messages") + b"anthropic-version: 2023-06-01\r\n"
        connection.sendall(messages + b"Content-Length: 1000\r\n\r\n")
        with dripping(connection, b" " * 1000):
            received, took = until_closed(connection)
    assert status_of(received) == [408]
    assert json.loads(received.rpartition(b"\r\n\r\n")[2])["type"] == "error"
    assert took < 0.4 + LATE_S
    assert service.requests == []


def test_a_slow_link_may_send_a_large_body() -> None:
    """Longer than `body_s`, faster than `min_body_rate`."""
    body = json.dumps(chat(padding="x" * 8000)).encode()
    limits: dict[str, Any] = {"body_s": 0.2, "min_body_rate": 2000}
    with serving(app_of(ScriptedService(), **limits), **limits) as port, connect(port) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body))
        started = time.monotonic()
        for at in range(0, len(body), 1000):
            connection.sendall(body[at : at + 1000])
            time.sleep(0.05)
        took = time.monotonic() - started
        received = connection.recv(65536)
    assert took > 0.2
    assert status_of(received) in ([200], [400])  # the padding is no field: what matters is that it was read
    assert b"arrive" not in received


def test_a_body_that_nobody_reads_does_not_hold_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_S", 0.4)
    with serving(app_of(ScriptedService())) as port, connect(port) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        with dripping(connection, b"x" * 1000):
            received, took = until_closed(connection)
    assert status_of(received) == [404]
    assert took < 0.4 + LATE_S


def test_an_idle_connection_is_kept_for_the_next_request_and_then_closed() -> None:
    with serving(app_of(ScriptedService()), idle_s=0.5) as port, connect(port) as connection:
        for _ in range(3):
            connection.sendall(GET)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(0.2)
        received, took = until_closed(connection)
    assert received == b""
    assert took < 0.5 + LATE_S


# ---- slow readers


class Flood(ScriptedService):
    """Answers without end, as fast as it is read."""

    def __init__(self) -> None:
        super().__init__(self._flood)
        self.produced = 0

    async def _flood(self, request: ChatRequest) -> AsyncIterator[Item]:
        yield PREPARED
        while True:
            await asyncio.sleep(0)
            yield ChoiceEvent(0, TextDelta("x" * 4000))
            self.produced += 4000


@pytest.mark.parametrize("secure", [False, True], ids=["HTTP", "HTTPS"])
def test_who_does_not_read_loses_the_connection_and_the_slot(secure: bool, tmp_path: Path) -> None:
    service = Flood()
    certificate = Certificate(issued(tmp_path)) if secure else None
    with serving(app_of(service), certificate, write_stall_s=0.5) as port, ExitStack() as stack:
        plain = stack.enter_context(connect(port))
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection = (
            stack.enter_context(trusting().wrap_socket(plain, server_hostname="localhost")) if secure else plain
        )
        body = json.dumps(chat(stream=True)).encode()
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        produced, full_at = -1, 0.0
        deadline = time.monotonic() + 20
        while not service.closed_at:
            assert time.monotonic() < deadline
            if service.produced != produced:
                produced, full_at = service.produced, time.monotonic()
            time.sleep(0.02)
        assert service.open == 0
        assert time.monotonic() - full_at < 0.5 + LATE_S
    assert service.produced < 16 * 1024 * 1024  # what the kernel's buffers take, and ours


def test_who_reads_slowly_keeps_the_connection() -> None:
    service = Flood()
    with serving(app_of(service), write_stall_s=0.5) as port, connect(port) as connection:
        body = json.dumps(chat(stream=True)).encode()
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            assert connection.recv(1 << 20)
            time.sleep(0.1)
        assert service.open == 1


# ---- too many


def test_one_address_has_so_many_connections_and_no_more() -> None:
    limits: dict[str, Any] = {"max_connections_per_ip": 3, "uncounted_networks": ()}
    with serving(app_of(ScriptedService()), **limits) as port:
        kept = [connect(port) for _ in range(3)]
        for each in kept:
            each.sendall(GET)
            assert status_of(each.recv(65536)) == [200]
        with connect(port) as fourth:
            received, _ = until_closed(fourth)
        assert status_of(received) == [429]
        assert b"retry-after: 1" in received
        assert json.loads(received.rpartition(b"\r\n\r\n")[2])["error"]["type"] == "rate_limit_error"
        kept.pop().close()
        assert until_admitted(port) == 200
        for each in kept:
            each.close()


def test_this_machine_has_as_many_as_it_likes() -> None:
    with serving(app_of(ScriptedService()), max_connections_per_ip=1) as port, connect(port), connect(port):
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200


def test_the_server_has_so_many_connections_and_no_more() -> None:
    with serving(app_of(ScriptedService()), max_connections=3) as port:
        kept = [connect(port) for _ in range(3)]
        for each in kept:
            each.sendall(GET)
            assert status_of(each.recv(65536)) == [200]
        refused = [connect(port) for _ in range(200)]
        received = [until_closed(each)[0] for each in refused]
        assert status_of(received[0]) == [503]
        assert b"retry-after: 1" in received[0]
        assert {*map(tuple, map(status_of, received))} <= {(503,), ()}  # beyond some, nobody is told
        for each in kept + refused:
            each.close()
        assert until_admitted(port) == 200


def test_what_is_cut_is_counted() -> None:
    def count(reason: str) -> float:
        return metrics.REGISTRY.get_sample_value("sightline_http_connections_cut_total", {"reason": reason}) or 0.0

    reasons = {"malformed": b"GET\r\n\r\n", "overlong": GET[:-2] + b"X: y\r\n" * 200 + b"\r\n", "slow": b"GET"}
    before = {reason: count(reason) for reason in reasons}
    with serving(app_of(ScriptedService()), head_s=0.3) as port:
        for sent in reasons.values():
            with connect(port) as connection:
                connection.sendall(sent)
                until_closed(connection)
        with connect(port) as connection:
            connection.sendall(GET)
            assert connection.recv(65536)
            assert metrics.REGISTRY.get_sample_value("sightline_http_connections") == 1
    assert {reason: count(reason) - was for reason, was in before.items()} == dict.fromkeys(reasons, 1)
    assert metrics.REGISTRY.get_sample_value("sightline_http_connections") == 0


def until_admitted(port: int) -> int:
    """The server sees only after a while that others have left."""
    for _ in range(200):
        with connect(port) as connection:
            connection.sendall(GET)
            received = until_closed_or_answered(connection)
        if status_of(received) == [200]:
            return 200
        time.sleep(0.01)
    return status_of(received)[0]


def until_closed_or_answered(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


# ---- too much


@pytest.mark.parametrize("secure", [False, True], ids=["HTTP", "HTTPS"])
@pytest.mark.parametrize("told", [True, False], ids=["length", "chunks"])
def test_who_sends_too_much_is_told_so_and_not_cut_off(told: bool, secure: bool, tmp_path: Path) -> None:
    """Most clients look for the answer only after they have sent everything."""
    certificate = Certificate(issued(tmp_path)) if secure else None
    piece = b"x" * 65536
    with serving(app_of(ScriptedService(), max_body_bytes=100_000), certificate) as port, ExitStack() as stack:
        plain = stack.enter_context(connect(port))
        connection = (
            stack.enter_context(trusting().wrap_socket(plain, server_hostname="localhost")) if secure else plain
        )
        if told:
            connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % (len(piece) * 320))
        else:
            connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(320):
            connection.sendall(piece if told else b"%x\r\n%s\r\n" % (len(piece), piece))
        if not told:
            connection.sendall(b"0\r\n\r\n")
        received = b""
        while b"}}" not in received:
            more = connection.recv(65536)
            assert more
            received += more
    assert status_of(received) == [413]
    assert b"connection: close" in received.lower()


def test_a_body_that_is_too_large_is_refused_before_it_is_sent() -> None:
    with serving(app_of(ScriptedService(), max_body_bytes=1000)) as port, connect(port) as connection:
        connection.sendall(POST + b"Content-Length: 100000000\r\nExpect: 100-continue\r\n\r\n")
        assert status_of(connection.recv(65536)) == [413]


def test_who_goes_on_sending_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "LINGER_BYTES", 1 << 20)
    with serving(app_of(ScriptedService(), max_body_bytes=1000)) as port, connect(port) as connection:
        connection.sendall(POST + b"Content-Length: 100000000000\r\n\r\n")
        with pytest.raises((ConnectionError, ssl.SSLError)):
            while True:
                connection.sendall(b"x" * 65536)
