"""How frames get from one process to another: over a socket pair, descriptors of shared memory beside them.

A pair, made by the parent and given to both: it has no name, so nobody else can connect to it, and there is no file to
protect or to leave behind. Whoever dies, the other reads end-of-file at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from sightline.frontends import frames

log = logging.getLogger(__name__)

In = TypeVar("In", bound=frames.Frame)
Came = TypeVar("Came", bound=frames.Frame, covariant=True)
Received = TypeVar("Received", contravariant=True)

_READ_BYTES = 256 * 1024
_READ_FDS = 64
_LOOK_S = 0.005
_WRITE_BYTES = 256 * 1024
"""Frames are joined up to about this size for one system call."""


class Receive(Protocol[Received]):
    def __call__(self, frame: Received, fd: int | None) -> None:
        """`fd` is the receiver's to close."""
        ...


class Carrier(Protocol[Came]):
    """One end of whatever carries frames from one process to another, in order and whole: a `Link`, here."""

    def open(self, receive: Receive[Came], lost: Callable[[], None]) -> None:
        """From now on. `receive` has what comes; `lost` is called once when the other side is gone, not after
        `close`."""
        ...

    def send(self, frame: Any, fd: int | None = None) -> None:
        """Never waits. `fd`, of shared memory that goes beside the frame, is closed when it is sent or cannot be.

        Raises `ValueError`, `TypeError` or `OverflowError` for a frame that has no form on the wire.
        """
        ...

    async def flushed(self, timeout_s: float) -> None:
        """Returns when the other side has taken all that was sent, or after so long."""
        ...

    def close(self) -> None:
        """Idempotent."""
        ...


class Link(Generic[In]):
    """One end of a socket pair, on the running event loop. Life: made -> `open` -> `send` -> `close`.

    What comes is given to `receive` in order; `lost` is called once, when the other side is gone or talks nonsense,
    and not after `close`.
    """

    def __init__(self, sock: socket.socket, decode: Callable[[bytes], In]) -> None:
        self._sock = sock
        self._decode = decode
        self._bodies = frames.Bodies()
        self._fds: deque[int] = deque()
        """Come, and not yet given to the frame beside which they came."""
        self._outgoing: deque[tuple[bytes | memoryview, int | None]] = deque()
        self._is_writing = False
        """Whether a flush is to come."""
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self, receive: Receive[In], lost: Callable[[], None]) -> None:
        self._receive, self._lost = receive, lost
        self._loop = asyncio.get_running_loop()
        self._sock.setblocking(False)
        self._loop.add_reader(self._sock, self._read)

    def send(self, frame: Any, fd: int | None = None) -> None:
        """As `Carrier.send`. All frames of one turn of the event loop go in one write."""
        try:
            data = frames.encode(frame)
        except BaseException:
            _close(fd)
            raise
        if self._closed:
            _close(fd)
            return
        self._outgoing.append((data, fd))
        if not self._is_writing:
            self._is_writing = True
            assert self._loop is not None
            self._loop.call_soon(self._flush)

    async def flushed(self, timeout_s: float) -> None:
        """Returns when the other side has taken all that was sent, or after so long."""
        for _ in range(int(timeout_s / _LOOK_S)):
            if not self._outgoing or self._closed:
                return
            await asyncio.sleep(_LOOK_S)

    def close(self) -> None:
        """What was not sent is dropped. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._loop is not None:
            self._loop.remove_reader(self._sock)
            self._loop.remove_writer(self._sock)
        for _, fd in self._outgoing:
            _close(fd)
        self._outgoing.clear()
        while self._fds:
            _close(self._fds.popleft())
        self._sock.close()

    def _end(self, reason: str) -> None:
        if not self._closed:
            log.debug("a link has ended: %s", reason)
            self.close()
            self._lost()

    # --- in ------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        cloexec = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # what a process starts must not hold our pictures
        try:
            data, fds, _, _ = socket.recv_fds(self._sock, _READ_BYTES, _READ_FDS, cloexec)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._end(str(error))
            return
        self._fds.extend(fds)
        if not data:
            self._end("end of file")
            return
        try:
            came = [self._with_descriptor(self._decode(body)) for body in self._bodies.feed(data)]
        except (ValueError, IndexError, msgspec.MsgspecError) as error:
            log.error("a link carries nonsense: %s", error)
            self._end("nonsense")
            return
        for frame, fd in came:
            if self._closed:
                _close(fd)
            else:
                self._receive(frame, fd)

    def _with_descriptor(self, frame: In) -> tuple[In, int | None]:
        return frame, self._fds.popleft() if frame.has_descriptor else None

    # --- out -----------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        assert self._loop is not None
        if self._closed:
            return
        try:
            while self._outgoing:
                self._write()
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._sock, self._flush)
            return
        except OSError as error:
            self._end(str(error))
            return
        self._loop.remove_writer(self._sock)
        self._is_writing = False

    def _write(self) -> None:
        """A descriptor rides on the first bytes of its own frame, so that it is never behind it."""
        data, fd = self._outgoing[0]
        if fd is not None:
            sent = socket.send_fds(self._sock, [data], [fd])
            os.close(fd)
            self._outgoing[0] = memoryview(data)[sent:], None
            if sent == len(data):
                self._outgoing.popleft()
            return
        joined = self._join()
        sent = 0
        try:
            sent = self._sock.send(joined)
        finally:
            if sent < len(joined):
                self._outgoing.appendleft((memoryview(joined)[sent:], None))

    def _join(self) -> bytes | memoryview:
        """Takes frames without a descriptor from the front, as one."""
        first = self._outgoing.popleft()[0]
        taken, size = [first], len(first)
        while self._outgoing and self._outgoing[0][1] is None and size < _WRITE_BYTES:
            taken.append(self._outgoing.popleft()[0])
            size += len(taken[-1])
        return first if len(taken) == 1 else b"".join(taken)


def _close(fd: int | None) -> None:
    if fd is not None:
        with contextlib.suppress(OSError):
            os.close(fd)
