"""The end of a server's life: nothing new is taken, and what was taken is done first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from sightline.errors import Overloaded

_ELSEWHERE_S = 5.0
"""When to try again: by then a load balancer asks another server, or this one has been started anew."""


class Draining:
    """Whether the server takes work, and how much of what it took is not done. Used from one event loop."""

    def __init__(self) -> None:
        self.begun = False
        self._under_way = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def under_way(self) -> Iterator[None]:
        """Around work that somebody waits for: the server does not end before it. What is durable (batches) is no such
        work: the next server goes on with it."""
        self._under_way += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()

    def begin(self) -> None:
        """From now on nothing is taken."""
        self.begun = True

    def refuse(self) -> None:
        """Raises `Overloaded` once it has begun."""
        if self.begun:
            raise Overloaded(
                "The server is being stopped and takes no new requests. Try again after the time in Retry-After.",
                retry_after_s=_ELSEWHERE_S,
            )

    async def idle(self) -> None:
        """Returns when all is done that was under way."""
        await self._idle.wait()
