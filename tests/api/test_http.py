"""Bytes on a socket: what is ambiguous is refused and the connection closed, so that nothing hides in a body."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator

import pytest

from tests.api.serving import serving
from tests.api.standin import ScriptedService, app_of, chat

BODY = json.dumps(chat()).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"%x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
SMUGGLED = GET + b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(app_of(ScriptedService())) as port:
        yield port


def exchange(port: int, sent: bytes) -> tuple[list[int], bytes]:
    """The statuses of all answers until the server closes, and everything it said."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(sent)
        try:
            while piece := connection.recv(65536):
                received += piece
        except ConnectionResetError:
            pass
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", received)], received


@pytest.mark.parametrize(
    "sent",
    [
        POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED,
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n" + CHUNKED,
        POST + LENGTH + LENGTH + b"\r\n" + BODY,
        POST + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY,
        POST + b"Content-Length: %d, %d\r\n\r\n" % (len(BODY), len(BODY)) + BODY,
        POST + b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY,
        POST + b"Content-Length: -1\r\n\r\n" + BODY,
        POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
        POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKED,
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY + b"\r\n0\r\n\r\n",
        POST.replace(b"\r\n", b"\n") + LENGTH + b"\n" + BODY,
        GET + b"X: a\r\n folded\r\n\r\n",
        GET + b"X : a\r\n\r\n",
        GET + b"X: a\0b\r\n\r\n",
        GET.replace(b"HTTP/1.1", b"HTTP/9.9") + b"\r\n",
    ],
    ids=["CL+TE", "TE+CL", "CL twice", "two CLs", "CL list", "CL plus", "CL minus", "odd TE", "TE twice", "bad chunk",
         "bare LF", "folded", "space before colon", "NUL", "version"],
)  # fmt: skip
def test_an_ambiguous_request_is_refused_and_nothing_behind_it_is_answered(port: int, sent: bytes) -> None:
    statuses, received = exchange(port, sent + SMUGGLED)
    assert statuses == [400]
    assert b'"ok"' not in received


def test_plain_requests_follow_each_other_on_one_connection(port: int) -> None:
    both = [POST + LENGTH + b"\r\n" + BODY, POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED]
    statuses, received = exchange(port, b"".join(both) + SMUGGLED)
    assert statuses == [200, 200, 200]
    assert received.endswith(b'{"status":"ok"}')


def test_a_host_is_needed_and_the_path_decides_not_the_target(port: int) -> None:
    close = b"Connection: close\r\n\r\n"
    assert exchange(port, b"GET /v1/models HTTP/1.1\r\n" + close)[0] == [400]
    absolute = b"GET http://localhost/v1/models HTTP/1.1\r\nHost: evil.example\r\n" + close
    assert exchange(port, absolute)[0] == [421]
    assert exchange(port, b"GET /v1/models?x=/health HTTP/1.1\r\nHost: evil.example\r\n" + close)[0] == [421]
    assert exchange(port, b"GET /health/../v1/models HTTP/1.1\r\nHost: evil.example\r\n" + close)[0] == [421]


def test_nothing_a_client_sends_becomes_a_header(port: int) -> None:
    sent = (
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a%0d%0aSet-Cookie:x\r\nConnection: close\r\n\r\n"
    )
    statuses, received = exchange(port, sent)
    head = received.partition(b"\r\n\r\n")[0].lower()
    assert statuses == [200]
    assert b"set-cookie" not in head
    assert b"server:" not in head
