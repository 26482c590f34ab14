"""What uvicorn is given as a connection's transport: closing it is left to its owner, and what it sends is watched."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

_MIN_READ_BYTES = 4096
"""What a client must take of its answer within the time of a stall: a byte now and then is none."""


class Wire:
    def __init__(self, transport: asyncio.Transport, on_close: Callable[[], None]) -> None:
        self._transport = transport
        self._on_close = on_close
        self._written = 0
        self._taken = 0
        """Bytes, when the client last took enough of them."""
        self._taken_at = 0.0
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.is_over = False
        """Closed, as far as requests and answers go."""
        self._head: bytes | None = None
        """Of an answer, kept back until something of its body comes, or the event loop's next turn."""

    def write(self, data: bytes) -> None:
        self._written += len(data)
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.writelines((head, data))  # one system call, one segment: the client wakes once
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            asyncio.get_running_loop().call_soon(self._flush)
        else:
            self._transport.write(data)

    def _flush(self) -> None:
        if self._head is not None:
            head, self._head = self._head, None
            self._transport.write(head)

    def close(self) -> None:
        if not self.is_over:
            self.is_over = True
            self._on_close()

    def is_closing(self) -> bool:
        return self.is_over or self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_stalled(self, now: float, stall_s: float) -> bool:
        """Whether the client has taken next to nothing for so long of what waits for it. To be asked now and then."""
        waiting = self._transport.get_write_buffer_size()
        taken = self._written - waiting
        if not waiting or taken >= self._taken + _MIN_READ_BYTES:
            self._taken, self._taken_at = taken, now
        return now - self._taken_at > stall_s

    def end(self) -> None:
        """Closes, when what waits has been sent."""
        self._flush()
        self._transport.close()

    def end_sending(self) -> bool:
        """Closes our half, when what waits has been sent. False: this kind of connection has no halves."""
        self._flush()
        if not self._transport.can_write_eof():
            return False
        self._transport.write_eof()
        return True

    def abort(self) -> None:
        self._transport.abort()
