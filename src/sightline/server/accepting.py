"""Connections taken one at a time: from a socket on which other processes wait, too, and before TLS.

asyncio's servers take all that there is whenever they wake, so that of two idle processes the first to wake has the
whole of a burst. Here each takes one and looks after what it has before it takes the next: who has less to do takes
more.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final

log = logging.getLogger(__name__)

_AGAIN_S: Final = 1.0
"""After the process had no descriptor or memory for another connection; asyncio waits as long."""


Opened = Callable[[socket.socket], Coroutine[Any, Any, object]]


class Accepting:
    """What `loop.create_server` gives, as far as a server needs it. Runs from when it is made until `close`."""

    def __init__(self, listener: socket.socket, opened: Opened, *, backlog: int) -> None:
        """`opened` makes what it likes of each connection, which does not block."""
        self._listener = listener
        self._opened = opened
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()
        self._closed = False
        listener.setblocking(False)
        listener.listen(backlog)
        self._loop.add_reader(listener, self._take)

    def close(self) -> None:
        """Connections that there are go on. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._listener.fileno() >= 0:
                self._loop.remove_reader(self._listener)
                self._listener.close()

    async def wait_closed(self) -> None:
        pass

    def _take(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):  # another process was quicker
            return
        except OSError as error:
            log.error("no more connections can be taken for %g s: %s", _AGAIN_S, error.strerror)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(_AGAIN_S, self._listen_again)
            return
        connection.setblocking(False)
        if self._listener.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = self._loop.create_task(self._opened(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _listen_again(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._listener, self._take)
