"""Server-sent events: the framing, the headers, keep-alive, and what ends a stream.

    data: <one line of JSON>\\n\\n        an event
    : ping\\n\\n                           a comment, while nothing else is sent
    data: [DONE]\\n\\n                     the end, only of a stream that did not fail

Source: WHATWG HTML, "Server-sent events"; the `[DONE]` mark is OpenAI's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sightline.api import access
from sightline.api.disconnect import ClientDisconnected, unless_disconnected
from sightline.api.wire import encode

T = TypeVar("T")

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_WRITE_STALL_S = 30.0
"""A client that reads nothing for this long, with the send buffer full, is taken for gone."""


def to_event(value: Any) -> bytes:
    """One event. JSON escapes line ends inside strings, so a value is always one line."""
    return b"data: " + encode(value) + b"\n\n"


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


class EventStream(Response):
    """Sends frames until their source ends, fails or nobody reads any more, and closes the source in every case.

    A failure becomes an event (`to_error_event`) and the stream ends without `[DONE]`; the log has it.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncGenerator[bytes, None],
        *,
        to_error_event: Callable[[Exception], bytes],
        keepalive_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **(headers or {})})
        self._frames = frames
        self._to_error_event = to_error_event
        self._keepalive_s = keepalive_s
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # HEAD never comes here: no route that streams has a GET.
        async with aclosing(self._frames):
            await unless_disconnected(receive, self._stream(scope, send))

    async def _stream(self, scope: Scope, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        keeping_alive = asyncio.create_task(self._keep_alive(send))
        try:
            async with aclosing(self._frames):
                async for frame in self._frames:
                    await self._write(send, frame)
        except ClientDisconnected:
            raise
        except Exception as error:
            access.of(scope).error = error
            await self._write(send, self._to_error_event(error))
        finally:
            keeping_alive.cancel()
            await asyncio.wait((keeping_alive,))
        # Last, with the source closed already: some servers say "disconnected" as soon as a response is complete.
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        clock = asyncio.get_running_loop().time
        self._sent_at = clock()
        while True:
            await asyncio.sleep(self._sent_at + self._keepalive_s - clock())
            if clock() - self._sent_at >= self._keepalive_s:
                with suppress(ClientDisconnected):  # the stream's own next write will find it out
                    await self._write(send, PING)

    async def _write(self, send: Send, frame: bytes) -> None:
        try:
            async with asyncio.timeout(_WRITE_STALL_S):
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        except (OSError, TimeoutError):
            raise ClientDisconnected from None
        self._sent_at = asyncio.get_running_loop().time()
