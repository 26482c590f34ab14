"""Who runs, who waits, who is sent away. Decisions only: nothing here touches an engine or a socket."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Self

from sightline.errors import Overloaded

MAX_RETRY_AFTER_S = 120
"""SDKs obey a Retry-After up to this long; above it they give up (wire contract, section 0)."""
_RATE_WINDOW = 64


class Admission:
    """The slots of one engine and the line in front of them.

    A request enters (or is refused because the line is full), then waits for as many slots as it has choices: higher
    priority first, then in order of arrival. The head of the line is never overtaken by a cheaper request, so a wide
    one cannot starve. Used from one event loop; not thread-safe.
    """

    def __init__(self, slots: int, max_waiting: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.slots = slots
        self.max_waiting = max_waiting
        self.running = 0
        self._free = slots
        self._line: list[tuple[int, int, Ticket]] = []
        self._arrivals = itertools.count()
        self._entered = 0
        self._finished: deque[float] = deque(maxlen=_RATE_WINDOW)
        self._clock = clock

    @property
    def waiting(self) -> int:
        """Requests that have entered and hold no slot yet (their pictures may still be decoded)."""
        return self._entered - self.running

    def enter(self, *, priority: int = 0, choices: int = 1) -> Ticket:
        """A place in line. Raises `Overloaded` with an honest `retry_after_s` when the line is full."""
        if self.waiting >= self.max_waiting + max(0, self._free):
            raise Overloaded(
                "The server is at capacity and its queue is full. Try again after the time in Retry-After.",
                retry_after_s=self.retry_after_s(),
            )
        self._entered += 1
        return Ticket(self, priority, min(choices, self.slots))

    def retry_after_s(self) -> float:
        """When a place in line should be free: the line's length over the measured rate of finished requests."""
        if len(self._finished) < 2:
            return 1.0
        span = max(self._clock() - self._finished[0], 1e-3)
        rate = len(self._finished) / span
        return float(min(MAX_RETRY_AFTER_S, max(1, math.ceil(self.waiting / rate / 2))))

    # The ticket's side of the counter.

    def _wait(self, ticket: Ticket) -> None:
        heapq.heappush(self._line, (-ticket.priority, next(self._arrivals), ticket))
        self._grant()

    def _grant(self) -> None:
        while self._line:
            ticket = self._line[0][2]
            if not ticket.left and ticket.cost > self._free:
                return
            heapq.heappop(self._line)
            if not ticket.left:
                self._free -= ticket.cost
                self.running += 1
                ticket.granted.set()

    def _leave(self, ticket: Ticket) -> None:
        self._entered -= 1
        if ticket.granted.is_set():
            self.running -= 1
            self._free += ticket.cost
            self._finished.append(self._clock())
        self._grant()


class Ticket:
    """One request's place: `async with` it; inside, `await slot()` before the engine is asked."""

    def __init__(self, admission: Admission, priority: int, cost: int) -> None:
        self.priority = priority
        self.cost = cost
        self.granted = asyncio.Event()
        self.left = False
        self._admission = admission

    async def slot(self) -> None:
        """Returns when the request may run."""
        self._admission._wait(self)
        await self.granted.wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.left = True
        self._admission._leave(self)
