"""A few at once, fairly: whose turn it is among tenants who all want the same scarce thing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """At most `at_once` holders; a free place goes to the waiting tenant that holds the fewest, then to who came first.

    So a tenant alone may have every place, and one with a thousand waiting keeps nobody else waiting for longer than
    one turn takes. Used from one event loop.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._held: Counter[str] = Counter()
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @asynccontextmanager
    async def take(self, tenant: str) -> AsyncIterator[None]:
        """Holds a place while the block runs. Cancelled while it waits, it leaves the queue."""
        await self._acquire(tenant)
        try:
            yield
        finally:
            self._release(tenant)

    async def _acquire(self, tenant: str) -> None:
        if self._free:
            self._grant(tenant)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((tenant, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove((tenant, turn))
            else:  # its turn came just as it was cancelled
                self._release(tenant)
            raise

    def _grant(self, tenant: str) -> None:
        self._free -= 1
        self._held[tenant] += 1

    def _release(self, tenant: str) -> None:
        self._free += 1
        self._held[tenant] -= 1
        if not self._held[tenant]:
            del self._held[tenant]
        waiting = [(who, turn) for who, turn in self._waiting if not turn.done()]
        if waiting:
            following = min(waiting, key=lambda waiter: self._held[waiter[0]])
            self._waiting.remove(following)
            self._grant(following[0])
            following[1].set_result(None)
