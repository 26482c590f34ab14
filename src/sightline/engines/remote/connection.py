"""One HTTP/1.1 connection: a request goes out, its response comes in, and then perhaps the next.

Read by llhttp (httptools), on asyncio's protocol: a piece of a stream costs no task and no timeout of its own. What a
connection may carry is our own requests and a server's responses, one at a time; never an upgrade, never two at once.
"""

from __future__ import annotations

import asyncio
import re
import select
from collections.abc import Mapping, Sequence
from typing import cast

import httptools

_MAX_HEAD_BYTES = 64 * 1024
_MOST_BYTES_WAITING = 256 * 1024
"""Of a body whose reader is slower than the server: beyond it the server has to wait."""
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_TARGET = re.compile(r"[\x21-\x7e]+")


class Broken(Exception):
    """No whole response came. The message is for the log."""


class Connection(asyncio.Protocol):
    """Life: made by `connect` -> `ask`, then `piece` until the body has ended, any number of times -> `close`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[None] | None = None
        self._since = 0.0
        """When the waiting began."""
        self._silence_s = self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._lost = False
        self._reset()
        self.ended = True
        """No response is awaited, or the last one has come whole."""

    def _reset(self) -> None:
        self.ended = False
        self.status = 0
        self.headers: dict[str, str] = {}
        """Names in lower case; of several with one name the last."""
        self._parser = httptools.HttpResponseParser(self)
        self._has_head = False
        self._head_bytes = 0
        self._pieces: list[bytes] = []
        self._bytes_waiting = 0
        self._paused = False
        self._keeps = False
        self._problem: str | None = None

    @property
    def reusable(self) -> bool:
        """Whether it can carry another request. What says anything unasked has been closed by the server."""
        if self._lost or not (self.ended and self._keeps) or self._transport.is_closing():
            return False
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    async def ask(self, request: Sequence[bytes], *, silence_s: float, deadline: float) -> None:
        """Sends a request; returns when `status` and `headers` are those of its response. Raises `Broken`, and
        `TimeoutError` when nothing comes for `silence_s` or until `deadline`, on the loop's clock; `piece` does too."""
        self._reset()
        if self._lost:
            raise Broken("the connection was closed")
        self._silence_s, self._deadline = silence_s, deadline
        self._timer = self._loop.call_at(min(self._loop.time() + silence_s, deadline), self._look)
        self._transport.writelines(request)
        while not self._has_head:
            await self._more()

    async def piece(self) -> bytes | None:
        """What has come of the body since the last; None at its end."""
        while not self._pieces:
            if self.ended:
                return None
            await self._more()
        piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces.clear()
        self._bytes_waiting = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return piece

    def rest(self) -> None:
        """The response has been read, or will not be. Without it the time limits go on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def close(self) -> None:
        """At once, whatever is under way. Idempotent."""
        self.rest()
        self._transport.abort()

    def give_up(self) -> None:
        """Whoever waits for the server does so no longer: `TimeoutError`."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())

    # --- waiting -------------------------------------------------------------------------------------------------

    async def _more(self) -> None:
        if self._problem is not None or self._lost:
            raise Broken(self._problem or "the connection was closed")
        self._since = self._loop.time()
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._problem is not None:
            raise Broken(self._problem)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _look(self) -> None:
        """Whether somebody has waited for too long: one timer a request, which is moved on while pieces come."""
        now = self._loop.time()
        waiting = self._waiter is not None
        due = min((self._since if waiting else now) + self._silence_s, self._deadline)
        if waiting and now >= due:
            self.give_up()
        self._timer = self._loop.call_at(due if due > now else now + self._silence_s, self._look)

    # --- asyncio's side ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.ended:
            self._transport.abort()  # nobody has asked
            return
        if not self._has_head:
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break("what came is no HTTP response")
        if not self._has_head and self._head_bytes > _MAX_HEAD_BYTES:
            self._break("a head without an end")
        if self._bytes_waiting > _MOST_BYTES_WAITING and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        if not self.ended:
            names = ("content-length", "transfer-encoding")
            if self._has_head and error is None and not any(name in self.headers for name in names):
                self.ended = True  # a body that ends with its connection
            else:
                self._problem = self._problem or "the connection was closed"
        self._wake()

    def _break(self, problem: str) -> None:
        if not self.ended:  # else the response is whole, and only the connection is of no use
            self._problem = self._problem or problem
        self._transport.abort()

    # --- the parser's side ---------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.ended:
            self._keeps = False  # more than one response

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.ended:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if not self.ended:
            self.status = self._parser.get_status_code()
            self._has_head = self.status >= 200

    def on_body(self, piece: bytes) -> None:
        if not self.ended:
            self._pieces.append(piece)
            self._bytes_waiting += len(piece)

    def on_message_complete(self) -> None:
        if self._has_head and not self.ended:
            self.ended = True
            self._keeps = self._parser.should_keep_alive()
        else:
            self.headers = {}  # of a provisional response


def to_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """The bytes before a request's body. Raises `ValueError` for what would be more than the lines it seems to be."""
    if not _TARGET.fullmatch(target) or not all(_VALUE.fullmatch(value) for value in headers.values()):
        raise ValueError("A header has a character that none can have.")
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
