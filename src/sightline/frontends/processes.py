"""The parent's view of a process: started, spoken to, told to end, and gone at the latest when it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any, Literal, Self

from sightline.frontends import orders
from sightline.frontends.link import Link

log = logging.getLogger(__name__)


class Process:
    """Life: `start` -> `up` -> ... -> `exited`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, link: Link[orders.ToParent]) -> None:
        self.name = name
        self.pid = process.pid
        self.up = asyncio.Event()
        """It answers requests."""
        self.exited: asyncio.Task[int] = asyncio.create_task(process.wait())
        self._link = link
        link.open(self._receive, lambda: None)

    @classmethod
    async def start(
        cls,
        role: Literal["core", "front"],
        name: str,
        order: orders.Start,
        inherited: Sequence[socket.socket] = (),
    ) -> Self:
        """`inherited`: sockets that it gets beside the one that we speak to it over. Raises `OSError`."""
        ours, theirs = socket.socketpair()
        try:
            fds = [sock.fileno() for sock in (theirs, *inherited)]
            # -P: a file named like a module, in the directory the server was started from, is not imported.
            # A session of its own: Ctrl-C in the terminal is for us.
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-u", "-X", "faulthandler", "-m", "sightline.frontends", role, *map(str, fds),
                stdin=asyncio.subprocess.DEVNULL, pass_fds=fds, start_new_session=True,
            )  # fmt: skip
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # a copy of the child's end here would hide our death from it
        link = Link(ours, orders.decode_to_parent)
        self = cls(name, process, link)
        self.send(order)
        return self

    def send(self, frame: orders.FromParent, fd: int | None = None) -> None:
        self._link.send(frame, fd)

    async def is_up(self, within_s: float) -> bool:
        """Whether it answers requests, at the latest after so long."""
        up = asyncio.create_task(self.up.wait())
        await asyncio.wait([up, self.exited], timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        up.cancel()
        return self.up.is_set() and not self.exited.done()

    async def ends(self, within_s: float) -> bool:
        """Whether it has ended by itself within so long. It has ended when this returns."""
        await asyncio.wait([self.exited], timeout=within_s)
        if by_itself := self.exited.done():
            self._link.close()
        else:
            log.error("%s has not ended within %g s, and is killed", self.name, within_s)
            await self.kill()
        return by_itself

    async def kill(self) -> None:
        """Returns when it has ended, by itself or otherwise."""
        if not self.exited.done():
            # Not `Process.kill`, which polls first and may reap a child that asyncio's watcher waits for.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        await asyncio.wait([self.exited])
        self._link.close()

    def close(self) -> None:
        """Tells it that we are gone."""
        self._link.close()

    def _receive(self, frame: Any, fd: int | None) -> None:
        if isinstance(frame, orders.Up):
            self.up.set()


def in_words(status: int) -> str:
    """An exit status as `subprocess` gives it: negative for a signal."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
