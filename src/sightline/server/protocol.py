"""One connection: uvicorn's protocol on llhttp's parser, and what neither of them guards.

llhttp refuses most of what is ambiguous (a length told twice or beside chunks, bare line feeds, folded headers). Here
is the rest: what it takes too freely, how large and how slow a request's bytes may be, readers that do not read, and a
connection that is closed only after its client could read why.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from collections.abc import Awaitable
from functools import partial
from typing import Any, Literal, cast

import httptools
import uvicorn
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from sightline import metrics
from sightline.api.bodies import LAND
from sightline.api.disconnect import Presence
from sightline.api.sse import PASS
from sightline.server.connections import Connections
from sightline.server.landing import COMMON, Buffered, Landing
from sightline.server.refusal import MALFORMED, Refusal
from sightline.server.wire import Wire

log = logging.getLogger(__name__)

MAX_AHEAD = 32
"""Requests that a client may send before it has the answer to the first (pipelining)."""
FRAMING_PER_BYTE = 16
"""Bytes of chunk sizes and extensions for each byte of a body, beside `max_head_bytes`: a body in chunks of one byte
has five."""
LINGER_S = 30.0
LINGER_SILENCE_S = 5.0
LINGER_BYTES = 256 * 1024 * 1024
"""For how long, in all and from its last byte, and how many bytes a client may go on sending what it had begun to send
before it was refused. Were the connection closed at once, TCP would reset it, and most clients would lose the answer,
because they look for it only after they have sent everything."""

_CHECKED = frozenset({b"host", b"content-length", b"transfer-encoding"})
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)

_OVERLONG = Refusal("overlong", 431, "The first line and the headers of the request are too long or too many.")
_SLOW_HEAD = Refusal("slow", 408, "The head of the request took too long to arrive.")
_FRAMING = Refusal("overlong", 400, "The body's chunks are far longer than what is in them.")
_VERSION = Refusal("unsupported", 505, "This server speaks HTTP/1.1 and HTTP/1.0.")
_HOST = Refusal("malformed", 400, "The request needs one Host header.")
_TARGET = Refusal("malformed", 400, "The request's target must be a path of this server, without a fragment.")
_CODING = Refusal(
    "unsupported", 501, "A body is sent with its length or in chunks: no other Transfer-Encoding is known here."
)
_CODING_1_0 = Refusal("malformed", 400, "HTTP/1.0 has no Transfer-Encoding: send the body's length.")
_CONNECT = Refusal("unsupported", 400, "This server is no proxy: it takes no CONNECT.")
_UPGRADE = Refusal("unsupported", 400, "This server speaks HTTP/1.1 alone: send a body without Upgrade.")
_AHEAD = Refusal("overlong", 400, "Too many requests were sent ahead of their answers.")


class _NotTaken(Exception):
    """Stops the parser."""


class Guarded(HttpToolsProtocol):
    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        connections: Connections,
        *,
        is_counted: bool = False,
    ) -> None:
        """`is_counted`: by whoever accepted it."""
        super().__init__(config=config, server_state=server_state, app_state=app_state)
        self._all = connections
        self._limits = connections.limits
        self._is_counted = is_counted
        self.buffered = Buffered(self)
        """What an event loop is given."""
        self._wire: Wire
        self._reading: Literal["nothing", "head", "body"] = "nothing"
        """Of which request the rest is awaited; nothing: the next one's first byte."""
        self._since = 0.0
        """When that began."""
        self._is_fresh = True
        """No request has come yet."""
        self._told_bytes = self._body_bytes = self._framing_bytes = 0
        self._landing: Landing | None = None
        """Of the body that is being read past the parser."""
        self._messages = 0
        self._live: deque[RequestResponseCycle] = deque()
        """Requests whose answer is not complete; the first is being answered."""
        self._fault: Refusal | None = None
        """Why nothing more is read; told after the answers that are due."""
        self._is_last = False
        """What comes behind this request is no HTTP."""
        self._last_byte = 0.0
        self._lingering = 0
        """Bytes that may still come, once the connection is over."""

    # ---- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._wire = Wire(transport, self._close)
        super().connection_made(self._wire)  # type: ignore[arg-type]
        self._since = self.loop.time()
        if not self._is_counted:
            refusal = self._all.open(self, self.client[0] if self.client else None)
            if refusal is not None:
                self._refuse_connection(refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._all.close(self)
        for cycle in self._live:  # uvicorn tells the one that came last alone
            _end(cycle)
        self._landing = None
        super().connection_lost(exc)

    def _refuse_connection(self, refusal: Refusal) -> None:
        """There are too many."""
        if self._all.has_room_to_answer():
            self._fault = refusal
            self._tell_fault()
        else:
            metrics.HTTP_CUT.labels(refusal.reason).inc()
            self._wire.is_over = True
            self._wire.abort()

    def _close(self) -> None:
        """At once if the client has said all; else it may end its sentence, and read the answer."""
        if self._fault is None and self._reading == "nothing":
            self._wire.end()
            return
        now = self.loop.time()
        self._since = self._last_byte = now
        self._lingering = LINGER_BYTES
        self._wire.resume_reading()
        self._wire.end_sending()

    def shutdown(self) -> None:
        super().shutdown()
        if self._wire.is_over:  # nobody is waited for who is in the middle of a sentence
            self._wire.end()

    def check(self, now: float) -> bool:
        """Part of `Connection`."""
        if self.transport is None:
            return False  # its handshake has a clock of its own
        limits = self._limits
        waited = now - self._since
        if self._wire.is_stalled(now, limits.write_stall_s):
            metrics.HTTP_CUT.labels("stalled").inc()
            self._wire.abort()
        elif self._wire.is_over:
            if waited <= LINGER_S and (not self._lingering or now - self._last_byte <= LINGER_SILENCE_S):
                return False
            self._wire.abort()
        elif self._live:
            return False  # the client waits for us; a body that is being read has its own clock (`api/wire.py`)
        elif self._reading == "head" and waited > limits.head_s:
            self._refuse(_SLOW_HEAD)
        elif (self._reading == "nothing" and self._is_fresh and waited > limits.head_s) or (
            self._reading == "body" and waited > LINGER_S
        ):
            self._wire.is_over = True
            self._wire.end()
        else:
            return False
        return True

    # ---- bytes

    def get_buffer(self, sizehint: int) -> memoryview:
        return COMMON if self._landing is None or self._wire.is_over else self._landing.rest()

    def buffer_updated(self, num_bytes: int) -> None:
        if self._landing is None or self._wire.is_over:
            self.data_received(COMMON[:num_bytes])
        elif self._landing.take(num_bytes):
            self._landing = None
            self.parser = self._new_parser()  # the old one still waits for what it has not seen
            self.on_message_complete()

    def _land(self, landing: Landing) -> None:
        self._landing = landing
        self.flow.resume_reading()

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return parser

    def data_received(self, data: bytes | memoryview) -> None:
        """`data` is not kept: the parser copies what it gives out."""
        if self._wire.is_over:
            self._discard(len(data))
            return
        if self._fault is not None or self._is_last:
            return
        if self._reading == "nothing":
            self._since = self.loop.time()
            self._reading = "head"
        message, reading, body = self._messages, self._reading, self._body_bytes
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._end_with_this()
        except httptools.HttpParserError:  # at what the parser finds, or at what we do
            self._refuse(self._fault or MALFORMED)
        if self._fault is None and (message, reading) == (self._messages, self._reading):  # all of it was of one kind
            self._framing_bytes += len(data) - (self._body_bytes - body)
            if self._framing_bytes > self._limits.max_head_bytes + FRAMING_PER_BYTE * self._body_bytes:
                self._refuse(_OVERLONG if reading == "head" else _FRAMING)

    def _discard(self, num_bytes: int) -> None:
        self._last_byte = self.loop.time()
        self._lingering -= num_bytes
        if self._lingering <= 0:
            self._wire.abort()

    def _end_with_this(self) -> None:
        """The request is answered as if it had asked for no other protocol (RFC 9110, section 7.8). The parser takes
        what follows for that protocol, so it is the last."""
        self._is_last = True
        for cycle in self._live:
            cycle.keep_alive = cycle is not self._live[-1]

    def _refuse(self, refusal: Refusal) -> None:
        """Answers what is being read, after the answers that are due before, and ends the connection."""
        if self._wire.is_over:
            return
        self._fault = refusal
        if self._reading == "body" and self._live and self._live[-1] is self.cycle:
            cycle = self._live.pop()
            self.pipeline = deque(item for item in self.pipeline if item[0] is not cycle)
            _end(cycle)
            if cycle.response_started:  # what has been sent is no answer to this
                metrics.HTTP_CUT.labels(refusal.reason).inc()
                self._wire.close()
                return
        if not self._live:
            self._tell_fault()

    def _tell_fault(self) -> None:
        assert self._fault is not None
        metrics.HTTP_CUT.labels(self._fault.reason).inc()
        log.debug("a connection of %s is ended: %s", self.client, self._fault.reason)
        self._wire.write(self._fault.to_bytes())
        self._wire.close()

    # ---- the parser's callbacks: what they raise stops it

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._reading != "head":  # it came in one piece with the one before
            self._since = self.loop.time()
            self._reading = "head"
        self._is_fresh = False
        self._messages += 1
        self._told_bytes = self._body_bytes = self._framing_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """uvicorn's, without what stands behind a body: it was not there when the request was let in."""
        if self._reading == "head":
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value.rstrip(b" \t")))  # no part of it (RFC 9110, 5.5), but llhttp leaves it
            return
        self._framing_bytes += len(name) + len(value) + 4
        if self._framing_bytes > self._limits.max_head_bytes + FRAMING_PER_BYTE * self._body_bytes:
            self._stop(_OVERLONG)

    def on_headers_complete(self) -> None:
        self._check_head()
        super().on_headers_complete()
        self._reading = "body"
        self._since = self.loop.time()
        self._live.append(self.cycle)
        if self._told_bytes > len(COMMON):
            Landing(self.cycle, self._told_bytes, self._land)
            self.flow.pause_reading()  # until there is a place, or somebody wants it otherwise
        Presence(self.flow.resume_reading).put(cast(Scope, self.cycle.scope))
        self.scope[PASS] = partial(_pass_on, self.cycle)  # type: ignore[typeddict-unknown-key]

    def _check_head(self) -> None:
        version = self.parser.get_http_version()
        if version != "1.1" and version != "1.0":
            self._stop(MALFORMED if version == "0.9" else _VERSION)
        host, hosts, has_body, size = b"", 0, False, len(self.url)
        for name, value in self.headers:
            size += len(name) + len(value) + 4
            if name not in _CHECKED:
                continue
            if name == b"host":
                host = value
                hosts += 1
            elif name == b"content-length":
                self._told_bytes = int(value)
                has_body = has_body or self._told_bytes > 0
            else:
                has_body = True
                if version == "1.0":
                    self._stop(_CODING_1_0)
                if value.lower() != b"chunked":
                    self._stop(_CODING if value else MALFORMED)
        if size > self._limits.max_head_bytes or len(self.headers) > self._limits.max_headers:
            self._stop(_OVERLONG)
        if hosts != 1 and (hosts or version == "1.1"):
            self._stop(_HOST)
        if self.parser.should_upgrade():  # CONNECT is one, to llhttp
            self._check_upgrade(has_body)
        self._check_target(host)
        if len(self._live) > MAX_AHEAD:
            self._stop(_AHEAD)

    def _check_upgrade(self, has_body: bool) -> None:
        if self.parser.get_method() == b"CONNECT":
            self._stop(_CONNECT)
        if has_body:
            self._stop(_UPGRADE)

    def _check_target(self, host: bytes) -> None:
        """A path; or a whole URL, of the host that the Host header names (RFC 9112, section 3.2.2)."""
        url = self.url
        if not url.startswith(b"/"):
            absolute = _ABSOLUTE.match(url)
            if absolute is None or absolute[1].lower() != host.lower():
                self._stop(_TARGET)
        if b"#" in url:
            self._stop(_TARGET)

    def _stop(self, refusal: Refusal) -> None:
        self._fault = refusal
        raise _NotTaken

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._reading = "nothing"
        super().on_message_complete()

    # ---- answers

    def on_response_complete(self) -> None:
        cycle = self._live.popleft()
        _let_go(cycle)
        self._since = self.loop.time()
        if (landing := cast(Scope, cycle.scope).get(LAND)) is not None:
            landing.forget()
        if self._fault is not None and not self._live:
            self._tell_fault()
        elif cycle is self.cycle and self._reading == "body" and self.expect_100_continue:
            # It may send the body nevertheless, or not: what comes next could be anything.
            self._wire.close()
        super().on_response_complete()


def _pass_on(cycle: RequestResponseCycle, piece: bytes) -> Awaitable[None] | None:
    """As `api.sse.Pass`: what uvicorn's `send` does of a piece of a stream, where nothing is to be waited for."""
    if cycle.disconnected:
        return None
    if cycle.flow.write_paused or not cycle.chunked_encoding or not piece or cycle.scope["method"] == "HEAD":
        return cycle.send({"type": "http.response.body", "body": piece, "more_body": True})
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    return None


def _let_go(cycle: RequestResponseCycle) -> None:
    """What holds itself in a circle is only freed by a search for such."""
    cast(Scope, cycle.scope).pop(PASS, None)


def _end(cycle: RequestResponseCycle) -> None:
    """Its client has left, or is taken for gone."""
    _let_go(cycle)
    cycle.disconnected = True
    cycle.message_event.set()
    Presence.end(cast(Scope, cycle.scope))
