"""Server-sent events: the framing, the headers, keep-alive, and what ends a stream.

    data: <one line of JSON>\\n\\n        an event
    : ping\\n\\n                           a comment, while nothing else is sent
    data: [DONE]\\n\\n                     the end, only of a stream that did not fail

Source: WHATWG HTML, "Server-sent events"; the `[DONE]` mark is OpenAI's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from time import monotonic
from typing import Any, Generic, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sightline.api import access
from sightline.api.disconnect import ClientDisconnected, unless_disconnected
from sightline.api.wire import encode

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


async def first_event(receive: Receive, events: AsyncGenerator[T, None]) -> T:
    """The first event, or the error that came instead (which can then still be a true status), or
    `ClientDisconnected`. In the last two cases the stream has been closed.

    Without this race a client that leaves during prefill would keep its slot until prefill ends.
    """

    async def first() -> T:
        return await anext(events)

    try:
        return await unless_disconnected(receive, first())
    except BaseException:
        await events.aclose()
        raise


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
    """Sends events until their source ends, fails or nobody reads any more, and closes the source in every case.

    `first` is an event that has been taken from the source already (`first_event`).
    """

    def __init__(
        self,
        first: T,
        rest: AsyncGenerator[T, None],
        framer: Framer[T],
        *,
        keepalive_s: float,
        headers: Mapping[str, str] | None = None,
        framing: Framing = EVENTS,
    ) -> None:
        self.status_code = 200
        self.media_type = framing.media_type
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        self._first = first
        self._rest = rest
        self._framer = framer
        self._keepalive_s = keepalive_s
        self._ping = framing.ping
        self._writing = False
        self._since = 0.0
        """When the last write began, while there is one; else when it ended."""

    def reframe(self, reframed: Callable[[Framer[T]], Framer[T]]) -> None:
        """Has what follows written by another framer, made of its own."""
        self._framer = reframed(self._framer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            await unless_disconnected(receive, self._stream(scope, send), self._tend(send))

    async def _stream(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async with aclosing(self._rest):
                await self._write(send, self._framer.to_frames(self._first))
                async for event in self._rest:
                    if frames := self._framer.to_frames(event):
                        await self._write(send, frames)
            await self._write(send, self._framer.end())
        except ClientDisconnected:
            raise
        except Exception as error:
            access.of(scope).error = error
            await self._write(send, self._framer.to_error_frame(error))
        # Last, with the source closed already: some servers say "disconnected" as soon as a response is complete.
        await self._write(send, b"", more=False)

    async def _tend(self, send: Send) -> None:
        """Sends a ping whenever nothing else has been sent for a while. Ends when the client reads no more.

        One task a stream rather than a timeout a write: those would cost more than all else that a chunk costs.
        """
        self._since = monotonic()
        while True:
            due = self._since + (_WRITE_STALL_S if self._writing else self._keepalive_s)
            if (wait_s := due - monotonic()) > 0:
                await asyncio.sleep(wait_s)
            elif self._writing:
                return
            elif self._ping is None:
                self._since = monotonic()
            else:
                try:
                    async with asyncio.timeout(_WRITE_STALL_S):
                        await self._write(send, self._ping)
                except (TimeoutError, ClientDisconnected):
                    return

    async def _write(self, send: Send, frame: bytes, *, more: bool = True) -> None:
        self._writing, self._since = True, monotonic()
        try:
            await send({"type": "http.response.body", "body": frame, "more_body": more})
        except OSError:
            raise ClientDisconnected from None
        finally:
            self._writing, self._since = False, monotonic()
