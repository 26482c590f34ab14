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
CHUNK = b"%x\r\n" % len(BODY) + BODY + b"\r\n"
CHUNKED = CHUNK + b"0\r\n\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
TE = POST + b"Transfer-Encoding: chunked\r\n\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
SMUGGLED = GET + b"Connection: close\r\n\r\n"
CLOSE = b"Connection: close\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(app_of(ScriptedService())) as port:
        yield port


def exchange(port: int, *sent: bytes) -> tuple[list[int], bytes]:
    """The statuses of all answers until the server closes, and everything it said."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for piece in sent:
            connection.sendall(piece)
        while piece := connection.recv(65536):
            received += piece
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3})", received)], received


def body_of(received: bytes) -> dict[str, object]:
    value: dict[str, object] = json.loads(received.rpartition(b"\r\n\r\n")[2])
    return value


def line(target: bytes, version: bytes = b"HTTP/1.1", method: bytes = b"GET") -> bytes:
    return b"%s %s %s\r\nHost: localhost\r\n\r\n" % (method, target, version)


AMBIGUOUS = {
    # the length of a body
    "CL+TE": (400, POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED),
    "TE+CL": (400, POST + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n" + CHUNKED),
    "CL+TE identity": (400, POST + LENGTH + b"Transfer-Encoding: identity\r\n\r\n" + BODY),
    "CL twice": (400, POST + LENGTH + LENGTH + b"\r\n" + BODY),
    "two CLs": (400, POST + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY),
    "CL 0, then another": (400, POST + b"Content-Length: 0\r\n" + LENGTH + b"\r\n" + BODY),
    "CL list": (400, POST + b"Content-Length: %d, %d\r\n\r\n" % (len(BODY), len(BODY)) + BODY),
    "CL plus": (400, POST + b"Content-Length: +%d\r\n\r\n" % len(BODY) + BODY),
    "CL minus": (400, POST + b"Content-Length: -1\r\n\r\n" + BODY),
    "CL hexadecimal": (400, POST + b"Content-Length: 0x%x\r\n\r\n" % len(BODY) + BODY),
    "CL with a space in it": (400, POST + b"Content-Length: 1 0\r\n\r\n" + BODY),
    "CL underscore": (400, POST + b"Content-Length: 1_0\r\n\r\n" + BODY),
    "CL empty": (400, POST + b"Content-Length:\r\n\r\n" + BODY),
    "CL vertical tab": (400, POST + b"Content-Length: \x0b5\r\n\r\n" + BODY),
    "CL beyond 64 bits": (400, POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY),
    "odd TE": (501, POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED),
    "TE quoted": (501, POST + b'Transfer-Encoding: "chunked"\r\n\r\n' + CHUNKED),
    "TE compressed": (501, POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKED),
    "TE identity": (501, POST + b"Transfer-Encoding: identity\r\n\r\n" + CHUNKED),
    "TE twice": (400, POST + b"Transfer-Encoding: chunked, chunked\r\n\r\n" + CHUNKED),
    "TE in two headers": (400, POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n" + CHUNKED),
    "TE, then identity": (400, POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED),
    "TE empty": (400, POST + b"Transfer-Encoding:\r\n\r\n" + CHUNKED),
    "TE vertical tab": (400, POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKED),
    "TE in HTTP/1.0": (400, POST.replace(b"/1.1", b"/1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED),
    # chunks
    "chunk of no number": (400, TE + b"zz\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk beyond 64 bits": (400, TE + b"FFFFFFFFFFFFFFFFF\r\n" + BODY),
    "chunk minus": (400, TE + b"-5\r\nhello\r\n0\r\n\r\n"),
    "chunk 0x": (400, TE + b"0x5\r\nhello\r\n0\r\n\r\n"),
    "chunk bare LF": (400, TE + b"5\nhello\r\n0\r\n\r\n"),
    "chunk longer than told": (400, TE + b"5\r\nhelloXX\r\n0\r\n\r\n"),
    "chunk without an end": (400, TE + b"5\r\nhello0\r\n\r\n"),
    "chunk extension with LF": (400, TE + b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "chunk extension with CR": (400, TE + b"5;a\rb\r\nhello\r\n0\r\n\r\n"),
    "chunk after a space": (400, TE + b" 5\r\nhello\r\n0\r\n\r\n"),
    "CL in the trailer": (400, TE + CHUNK + b"0\r\nContent-Length: 7\r\n\r\n"),
    # lines and headers
    "bare LF": (400, POST.replace(b"\r\n", b"\n") + LENGTH + b"\n" + BODY),
    "bare LF in one header": (400, GET + b"X: a\nY: b\r\n\r\n"),
    "bare LF at the end": (400, GET + b"\n"),
    "bare CR": (400, GET + b"X: a\rY: b\r\n\r\n"),
    "folded": (400, GET + b"X: a\r\n folded\r\n\r\n"),
    "folded with a tab": (400, GET + b"X: a\r\n\tfolded\r\n\r\n"),
    "folded at once": (400, b"GET /health HTTP/1.1\r\n X: a\r\nHost: localhost\r\n\r\n"),
    "space before colon": (400, GET + b"X : a\r\n\r\n"),
    "no colon": (400, GET + b"X\r\n\r\n"),
    "no name": (400, GET + b": a\r\n\r\n"),
    "name with a parenthesis": (400, GET + b"X(: a\r\n\r\n"),
    "name beyond ASCII": (400, GET + b"X\xe9: a\r\n\r\n"),
    "NUL in a name": (400, GET + b"X\0: a\r\n\r\n"),
    "NUL": (400, GET + b"X: a\0b\r\n\r\n"),
    "control character": (400, GET + b"X: a\x01b\r\n\r\n"),
    "no Host": (400, b"GET /health HTTP/1.1\r\nX: a\r\n\r\n"),
    "two Hosts": (400, GET + b"Host: localhost\r\n\r\n"),
    # the first line
    "version": (400, line(b"/health", b"HTTP/9.9")),
    "HTTP/2.0": (505, line(b"/health", b"HTTP/2.0")),
    "HTTP/0.9": (400, b"GET /health\r\n\r\n"),
    "HTTP/2's preface": (400, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "lower-case version": (400, line(b"/health", b"http/1.1")),
    "method unknown": (400, line(b"/health", method=b"FOO")),
    "CONNECT": (400, line(b"localhost:443", method=b"CONNECT")),
    "CONNECT with a path": (400, line(b"/health", method=b"CONNECT")),
    "space in the target": (400, line(b"/health x")),
    "tabs between the words": (400, b"GET\t/health\tHTTP/1.1\r\nHost: localhost\r\n\r\n"),
    "target beyond ASCII": (400, line(b"/h\xc3\xa9alth")),
    "control character in the target": (400, line(b"/health\x01")),
    "NUL in the path": (400, line(b"/health%00")),
    "line break in the path": (400, line(b"/health%0d%0aX:%20y")),
    "fragment": (400, line(b"/health#x")),
    "asterisk": (400, line(b"*")),
    "asterisk for OPTIONS": (400, line(b"*", method=b"OPTIONS")),
    "no slash": (400, line(b"health")),
    "backslash": (400, line(b"\\health")),
    "somebody else's URL": (400, line(b"http://evil.example/health")),
    "URL with a user": (400, line(b"http://user@localhost/health")),
    "URL of no server": (400, line(b"file:///health")),
    # too much
    "long header": (431, GET + b"X: " + b"a" * 40_000 + b"\r\n\r\n"),
    "long name": (431, GET + b"X" * 40_000 + b": a\r\n\r\n"),
    "long target": (431, line(b"/health?" + b"a" * 40_000)),
    "large head": (431, GET + b"".join(b"X%d: %s\r\n" % (i, b"a" * 1000) for i in range(40)) + b"\r\n"),
    "many headers": (431, GET + b"".join(b"X%d: a\r\n" % i for i in range(100)) + b"\r\n"),
    "long extension": (400, TE + b"5;" + b"a" * 2_000_000 + b"\r\nhello\r\n0\r\n\r\n"),
    "long extensions": (400, TE + (b"1;" + b"a" * 4000 + b"\r\nx\r\n") * 500 + b"0\r\n\r\n"),
    "long trailer": (431, TE + CHUNK + b"0\r\n" + b"X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" * 4000 + b"\r\n"),
    # another protocol
    "upgrade of a body": (400, POST + LENGTH + b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n" + BODY),
    "upgrade of chunks": (400, TE[:-2] + b"Connection: Upgrade\r\nUpgrade: foo\r\n\r\n" + CHUNKED),
}


@pytest.mark.parametrize(("status", "sent"), AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_an_ambiguous_request_is_refused_and_nothing_behind_it_is_answered(port: int, status: int, sent: bytes) -> None:
    statuses, received = exchange(port, sent + SMUGGLED)
    assert statuses == [status]
    assert b'"ok"' not in received
    head, _, body = received.partition(b"\r\n\r\n")
    assert json.loads(body)["error"]["message"]
    assert re.search(rb"\r\nx-request-id: req_[0-9a-f]{24}\r\n", head + b"\r\n")
    assert b"\r\nconnection: close" in head


def test_what_is_wrong_is_told_after_the_answers_that_are_due(port: int) -> None:
    honest = POST + LENGTH + b"\r\n" + BODY
    statuses, received = exchange(port, honest + GET + b"\r\n" + GET + b"X : a\r\n\r\n" + SMUGGLED)
    assert statuses == [200, 200, 400]
    assert received.count(b'"ok"') == 1


def test_plain_requests_follow_each_other_on_one_connection(port: int) -> None:
    both = [POST + LENGTH + b"\r\n" + BODY, POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED]
    statuses, received = exchange(port, b"".join(both) + SMUGGLED)
    assert statuses == [200, 200, 200]
    assert received.endswith(b'{"status":"ok"}')


def test_an_answer_comes_in_one_piece(port: int) -> None:
    """In one system call: in two, a client would wake twice, and Nagle's algorithm could hold the second back."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for _ in range(20):
            connection.sendall(GET + b"\r\n")
            assert connection.recv(65536).endswith(b'{"status":"ok"}')


def test_a_request_may_come_byte_by_byte(port: int) -> None:
    request = POST + LENGTH + b"\r\n" + BODY + SMUGGLED
    assert exchange(port, *(request[i : i + 1] for i in range(len(request))))[0] == [200, 200]


def test_only_so_many_requests_are_taken_ahead_of_their_answers(port: int) -> None:
    statuses, _ = exchange(port, (GET + b"\r\n") * 100)
    assert statuses[-1] == 400
    assert set(statuses[:-1]) == {200}
    assert 20 < len(statuses) < 40


def test_what_stands_behind_a_body_is_no_header_of_the_request(port: int) -> None:
    sent = TE + CHUNK + b"0\r\nX-Request-Id: from-the-trailer\r\nHost: evil.example\r\n\r\n" + SMUGGLED
    statuses, received = exchange(port, sent)
    assert statuses == [200, 200]
    assert b"from-the-trailer" not in received


@pytest.mark.parametrize("target", [b"http://localhost/v1/models", b"HTTP://LOCALHOST/v1/models"])
def test_a_whole_url_of_this_server_is_a_target(port: int, target: bytes) -> None:
    assert exchange(port, line(target) + SMUGGLED)[0] == [200, 200]


def test_another_protocol_is_not_spoken_and_nothing_follows(port: int) -> None:
    sent = GET + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    assert exchange(port, sent + SMUGGLED)[0] == [200]


@pytest.mark.parametrize("keep", [b"", b"Connection: keep-alive\r\n"])
def test_http_1_0_is_answered_and_closed(port: int, keep: bytes) -> None:
    request = b"GET /v1/models HTTP/1.0\r\nHost: localhost\r\n" + keep + b"\r\n"
    statuses, received = exchange(port, request + SMUGGLED)
    assert statuses == [200]
    assert received.endswith(b"}")
    assert b"chunked" not in received


def test_head_has_the_headers_of_get_and_no_body(port: int) -> None:
    statuses, received = exchange(port, b"HEAD /health HTTP/1.1\r\nHost: localhost\r\n\r\n" + SMUGGLED)
    assert statuses == [200, 200]
    first, rest = received.split(b"\r\n\r\n", 1)
    assert b"content-length: 15" in first
    assert rest.startswith(b"HTTP/1.1 200")


def test_a_body_is_asked_for_when_the_client_waits_to_be_asked(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(POST + LENGTH + b"Expect: 100-continue\r\n\r\n")
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_a_body_that_was_not_asked_for_ends_the_connection(port: int) -> None:
    """Whether it comes nevertheless nobody knows, so nothing behind it can be a request."""
    expecting = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\nExpect: 100-continue\r\n\r\n"
    statuses, received = exchange(port, expecting + SMUGGLED)
    assert statuses == [404]
    assert b'"ok"' not in received


def test_the_path_decides_not_the_target(port: int) -> None:
    for target in (b"/v1/models?x=/health", b"/health/../v1/models", b"//health", b"/health%2F..%2Fv1%2Fmodels"):
        assert exchange(port, b"GET %s HTTP/1.1\r\nHost: evil.example\r\n" % target + CLOSE)[0] == [421]


def test_nothing_a_client_sends_becomes_a_header(port: int) -> None:
    sent = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a%0d%0aSet-Cookie:x\r\n" + CLOSE
    statuses, received = exchange(port, sent)
    head = received.partition(b"\r\n\r\n")[0].lower()
    assert statuses == [200]
    assert b"set-cookie" not in head
    assert b"server:" not in head
    assert b"\r\ndate: " in head
