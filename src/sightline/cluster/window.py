"""How far a replica may run ahead of who reads its answer. Decisions only; knows no Ray.

Ray carries what a replica yields to the ingress at once, however slowly a client reads there. So a replica stops when
that many parcels are on their way, and goes on when the ingress says how many it has read: a reader that stops holds a
window's worth of memory, and no whole answer. Most answers are shorter than half a window, and nothing is told of them.
"""

from __future__ import annotations

import asyncio

WINDOW = 512
"""Parcels of one answer: with what Ray keeps of each, a megabyte or two."""
_TOLD_EACH = WINDOW // 2


class Ahead:
    """In the replica: parcels that nobody has read yet."""

    def __init__(self) -> None:
        self._sent = 0
        self._read = 0
        self._moved = asyncio.Event()

    async def send(self) -> None:
        """To be awaited before each parcel; returns when it may go."""
        while self._sent - self._read >= WINDOW:
            self._moved.clear()
            await self._moved.wait()
        self._sent += 1

    def read(self, count: int) -> None:
        """So many have been read since the answer began. What comes late or twice does no harm."""
        self._read = max(self._read, count)
        self._moved.set()


class Reading:
    """In the ingress: what has been read, and when the replica should be told."""

    def __init__(self) -> None:
        self.count = 0

    def next(self) -> bool:
        """One more has been read; whether to tell."""
        self.count += 1
        return self.count % _TOLD_EACH == 0
