"""Server-sent events: the framing, the headers, keep-alive, and what ends a stream.

    data: <one line of JSON>\\n\\n        an event
    : ping\\n\\n                           a comment, while nothing else is sent
    data: [DONE]\\n\\n                     the end, only of a stream that did not fail

Source: WHATWG HTML, "Server-sent events"; the `[DONE]` mark is OpenAI's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sightline.api import access
from sightline.api.disconnect import Attended
from sightline.api.wire import encode
from sightline.telling import Source, taken

T = TypeVar("T")
T_contra = TypeVar("T_contra", contravariant=True)


@dataclass(frozen=True, slots=True)
class Framing:
    """How a stream is declared, and what is sent on it while nothing else is."""

    media_type: str
    ping: bytes | None
    """None: nothing may be sent between values."""


DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
EVENTS = Framing("text/event-stream", PING)
_WRITE_STALL_S = 30.0
"""A client that reads nothing for this long, with the send buffer full, is taken for gone."""


def to_event(value: Any) -> bytes:
    """One event. JSON escapes line ends inside strings, so a value is always one line."""
    return b"data: " + encode(value) + b"\n\n"


def to_named_event(name: str, value: Any) -> bytes:
    """One event with a type of its own, which some dialects repeat in the value."""
    return b"event: %b\n" % name.encode() + to_event(value)


PASS: Final = "sightline.pass"
"""In the ASGI scope of a request, where the server can do so: a `Pass`."""
Pass: TypeAlias = Callable[[bytes], Awaitable[None] | None]
"""Sends a piece of a body whose answer has begun and goes on, as ASGI's `send` does; what it returns is awaited first
where the client is slow. Nothing between the server and whoever calls it sees the bytes."""


class Framer(Protocol[T_contra]):
    """How a dialect writes its events."""

    def to_frames(self, event: T_contra) -> bytes:
        """An event as it is sent: no frame, one or several."""
        ...

    def end(self) -> bytes:
        """The last frames of a stream that did not fail."""
        ...

    def to_error_frame(self, error: Exception) -> bytes:
        """The last frame of one that did."""
        ...


class EventStream(Response, Generic[T]):
    """Sends a source's events as it tells them, until it ends or fails or nobody reads any more.

    All of it is one task, the request's own: what an engine tells goes out before the engine is asked for more. Until
    the first event nothing is sent, so that an error (or `ClientDisconnected`) can still be a true status.
    """

    def __init__(
        self,
        source: Source[T],
        framer: Framer[T],
        *,
        keepalive_s: float,
        begin: Callable[[T], Mapping[str, str]] = lambda _: {},
        ending: Callable[[Exception | None], Awaitable[None]] | None = None,
        framing: Framing = EVENTS,
    ) -> None:
        """`begin`: gives more headers, by the first event. `ending`: awaited when a stream that has begun is over,
        before its client is told so, with what it failed with."""
        self.status_code = 200
        self.media_type = framing.media_type
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._source = source
        self._framer = framer
        self._begin = begin
        self._ending = ending
        self._keepalive_s = keepalive_s
        self._ping = framing.ping
        self._begun = False
        self._writing = False
        self._since = 0.0
        """When the last write began."""
        self._send: Send
        self._passing: Pass | None = None
        self._record: access.Record
        self._attended: Attended
        self._timer: asyncio.TimerHandle | None = None
        self._pinging: asyncio.Task[None] | None = None

    def reframe(self, reframed: Callable[[Framer[T]], Framer[T]]) -> None:
        """Has what follows written by another framer, made of its own."""
        self._framer = reframed(self._framer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        self._passing = scope.get(PASS)
        self._record = access.of(scope)
        self._attended = Attended(scope, receive)
        async with self._attended:
            try:
                await self._run()
            finally:
                if self._timer is not None:
                    self._timer.cancel()
                await self._end_ping()

    async def _run(self) -> None:
        error: Exception | None = None
        try:
            await self._source(self._tell)
        except Exception as caught:
            if not self._begun:
                raise
            error = caught
        try:
            if self._ending is not None:
                await self._ending(error)
            last = self._framer.end() if error is None else self._framer.to_error_frame(error)
        except Exception as caught:
            error = caught
            last = self._framer.to_error_frame(error)
        self._record.error = error
        await self._write(last)
        await self._end_ping()
        # Last, with the source ended already: some servers say "disconnected" as soon as a response is complete.
        await self._write(b"", more=False)

    def _tell(self, event: T) -> Awaitable[None] | None:
        if not self._begun:
            return self._open(event)
        return self._pass_on(frames) if (frames := self._framer.to_frames(event)) else None

    async def _open(self, event: T) -> None:
        self.headers.update(self._begin(event))
        self._begun = True
        await self._send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._since = monotonic()
        self._look()
        if frames := self._framer.to_frames(event):
            await taken(self._pass_on(frames))

    def _pass_on(self, frames: bytes) -> Awaitable[None] | None:
        """Part of an answer. With our own server it is written here and now, unless the client is slow: by way of
        `send` it would go through three more functions, each of which makes a coroutine of it."""
        if self._passing is None:
            return self._write(frames)
        self._since = monotonic()
        self._record.bytes_out += len(frames)
        waiting = self._passing(frames)
        return None if waiting is None else self._sent(waiting)

    async def _write(self, frames: bytes, *, more: bool = True) -> None:
        await self._sent(self._send({"type": "http.response.body", "body": frames, "more_body": more}))

    async def _sent(self, sending: Awaitable[None]) -> None:
        self._writing, self._since = True, monotonic()
        try:
            await sending
        except OSError:
            self._attended.leave()
            await asyncio.sleep(0)  # and the rest of us is cancelled
        self._writing = False

    # --- what time brings ----------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Sends a ping where nothing else has been sent for a while; a client that reads no more is taken for gone.

        One timer a stream rather than a timeout a write: those would cost more than all else that a chunk costs.
        """
        now = monotonic()
        due = self._since + (_WRITE_STALL_S if self._writing else self._keepalive_s)
        if now >= due:
            if self._writing:
                self._attended.leave()
                return
            self._since, due = now, now + self._keepalive_s
            if self._ping is not None:
                self._pinging = asyncio.create_task(self._write(self._ping))
        self._timer = asyncio.get_running_loop().call_later(due - now, self._look)

    async def _end_ping(self) -> None:
        if self._pinging is not None and not self._pinging.done():
            self._pinging.cancel()
            await asyncio.wait([self._pinging])
