"""Who runs on an engine and who waits, in which order; who is sent away, and when to come again.

Decisions only: nothing here touches an engine or a socket, and the clock can be another. What a request costs is told
in tokens, those of its pictures among them, and how long a token takes is learnt from the requests that have ended.
"""

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
from sightline.routing import BACKGROUND, MAX_RETRY_AFTER_S

_OF_LATE_S = 10.0
_LEARNT_FROM = 64
"""Requests that ended last."""
_LARGE = 2.0
"""Times the mean of late: what costs more is large."""
_ENOUGH = 8
"""Requests that must have ended before any is called large."""
_COMPLETION_TOKENS = 256
"""Of an answer, until some have been seen."""


class Pace:
    """What requests have cost of late, and how long it took: the last ones count, each as much as any."""

    def __init__(self) -> None:
        self._ended: deque[tuple[float, float]] = deque(maxlen=_LEARNT_FROM)
        self._tokens = self._seconds = 0.0
        self._completions: deque[int] = deque(maxlen=_LEARNT_FROM)

    def ended(self, tokens: float, seconds: float) -> None:
        """A request of so many tokens has held its slots for so long."""
        if len(self._ended) == _LEARNT_FROM:
            old_tokens, old_seconds = self._ended[0]
            self._tokens -= old_tokens
            self._seconds -= old_seconds
        self._ended.append((tokens, seconds))
        self._tokens += tokens
        self._seconds += seconds

    def answered(self, completion_tokens: int) -> None:
        self._completions.append(completion_tokens)

    def tokens_of(self, prompt_tokens: int, max_tokens: int | None) -> float:
        """Of a prompt and its answer. Clients allow answers far longer than they get, so that one is expected to be at
        most twice as long as those of late."""
        seen = self._completions
        expected = math.ceil(_LARGE * sum(seen) / len(seen)) if seen else _COMPLETION_TOKENS
        return prompt_tokens + (expected if max_tokens is None else min(max_tokens, expected))

    @property
    def mean_tokens(self) -> float:
        return self._tokens / len(self._ended) if self._ended else 1.0

    def seconds(self, tokens: float) -> float:
        """How long requests of so many tokens hold a slot, one after the other; 0 while nothing has been learnt."""
        return max(0.0, self._seconds) / self._tokens * tokens if self._tokens > 0 else 0.0

    def is_large(self, tokens: float) -> bool:
        return len(self._ended) >= _ENOUGH and tokens > _LARGE * self.mean_tokens


class Admission:
    """The slots of one engine and the line in front of them. Used from one event loop; not thread-safe.

    A request enters, or is refused because the line is full or the wait would be too long. When it is known what it
    costs it gets in line for as many slots as it has choices: higher priority first, then in order of arrival. The head
    of the line is never overtaken by one of fewer choices, so a wide one cannot starve.

    Nobody waits behind an album who is not one: a large request (more than twice the tokens of the mean of late) stands
    in line as if it had come later by the time that it will take, and leaves a quarter of the slots to others while
    such come. It ages like everybody else and is overtaken by no one who came after that time, so it cannot starve.

    What runs in the background (batches) leaves one slot free for whoever comes and waits, and has no more than half
    of them while such requests have come of late.
    """

    def __init__(
        self,
        slots: int,
        max_waiting: int,
        *,
        max_wait_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`max_wait_s`: who would wait longer is refused, as far as that can be told."""
        self.slots = slots
        self.max_waiting = max_waiting
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._pace = Pace()
        self._free = slots
        self._entered = 0
        self._running: set[Ticket] = set()
        self._ahead = {False: 0.0, True: 0.0}
        """Tokens, times slots, of all that somebody waits for and that has no slot yet; True: of what is large."""
        self._line: list[_Place] = []
        self._large: list[_Place] = []
        """The line of those that are large."""
        self._arrivals = itertools.count()
        self._slots_of_background = 0
        self._slots_of_large = 0
        self._interactive = -math.inf
        """When a request last came that somebody waits for."""
        self._ordinary = -math.inf
        """When one last came that is not large."""
        self._promised = -math.inf
        """When the last of those who were refused has been told to come again."""

    @property
    def running(self) -> int:
        """Requests that hold their slots."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that have entered and hold no slot yet (their pictures may still be decoded)."""
        return self._entered - self.running

    def enter(self, *, priority: int = 0, choices: int = 1) -> Ticket:
        """A place in line. Raises `Overloaded` with an honest `retry_after_s` when there is none."""
        if self.waiting >= self.max_waiting + max(0, self._free):
            raise self._refusal("its queue is full")
        if priority > BACKGROUND:
            if self.predicted_wait_s() > self._max_wait_s:
                raise self._refusal("the wait would be too long")
            self._interactive = self._clock()
        self._entered += 1
        ticket = Ticket(self, priority, min(choices, self.slots), self._pace.mean_tokens)
        self._count(ticket, +1)
        return ticket

    def predicted_wait_s(self, *, large: bool = False) -> float:
        """How long who comes now would wait for a slot; 0 where nothing has been learnt yet.

        All that is before it, shared by the slots: what waits, and what is left of those that run. One that has run for
        longer than was expected is expected to go on for as long again as it is late.
        """
        if self._free > self.waiting:
            return 0.0
        now = self._clock()
        left_s = sum(t.cost * abs(self._pace.seconds(t.tokens) - (now - t.since)) for t in self._running)
        ahead = self._ahead[False] + self._ahead[True] * large
        return (self._pace.seconds(ahead) + left_s) / self.slots

    def retry_after_s(self) -> float:
        """When there should be room again: half of what may wait has got its slots by then."""
        wait_s = self.predicted_wait_s()
        return _within(wait_s - min(self._max_wait_s, wait_s) / 2)

    def _refusal(self, why: str) -> Overloaded:
        """Those who are refused are told to come back one after the other, as there will be room for them."""
        now = self._clock()
        after_s = _within(max(self.retry_after_s(), self._promised - now))
        self._promised = now + after_s + self._pace.seconds(self._pace.mean_tokens) / self.slots
        return Overloaded(
            f"The server is at capacity and {why}. Try again after the time in Retry-After.",
            retry_after_s=after_s,
        )

    # The ticket's side of the counter.

    def _wait(self, ticket: Ticket, tokens: float | None) -> None:
        """Raises `Overloaded` for one that is large where those have no room."""
        now, later_s = self._clock(), 0.0
        if tokens is not None:
            self._count(ticket, -1)
            ticket.tokens, ticket.is_large = tokens, self._pace.is_large(tokens)
            self._count(ticket, +1)
        if ticket.is_large:
            self._refuse_large(ticket)
            later_s = self._pace.seconds(ticket.tokens)
        else:
            self._ordinary = now
        place = (-ticket.priority, now + later_s, next(self._arrivals), ticket)
        heapq.heappush(self._large if ticket.is_large else self._line, place)
        self._grant()

    def _refuse_large(self, ticket: Ticket) -> None:
        """They may fill no more than half of the line, or there would be no place in it for anyone else."""
        if not ticket.is_awaited or self._free > self.waiting:
            return
        if len(self._large) > self.max_waiting // 2:
            raise self._refusal("its queue is full of requests as large as this one")
        if self.predicted_wait_s(large=True) > self._max_wait_s:
            raise self._refusal("the wait would be too long for a request as large as this one")

    def _count(self, ticket: Ticket, sign: int) -> None:
        """Adds what it costs to what is ahead of others, or takes it away."""
        if ticket.is_awaited:
            self._ahead[ticket.is_large] += sign * ticket.cost * ticket.tokens

    def _grant(self) -> None:
        while (line := self._next_line()) is not None and self._may_take(line[0][-1]):
            ticket = heapq.heappop(line)[-1]
            self._free -= ticket.cost
            self._slots_of_background += ticket.cost * (not ticket.is_awaited)
            self._slots_of_large += ticket.cost * ticket.is_large
            self._count(ticket, -1)
            ticket.since = self._clock()
            self._running.add(ticket)
            ticket.granted.set()

    def _next_line(self) -> list[_Place] | None:
        """The line whose head is the next, unless that one leaves its turn to who is not large."""
        for line in (self._line, self._large):
            while line and line[0][-1].left:
                heapq.heappop(line)
        if not self._large:
            return self._line or None
        if self._line and (self._line[0] < self._large[0] or not self._has_room_for_large(self._large[0][-1].cost)):
            return self._line
        return self._large if self._has_room_for_large(self._large[0][-1].cost) else None

    def _has_room_for_large(self, cost: int) -> bool:
        if self._clock() - self._ordinary >= _OF_LATE_S or not self._slots_of_large:
            return True
        return self._slots_of_large + cost <= self.slots - max(1, self.slots // 4)

    def _may_take(self, ticket: Ticket) -> bool:
        """Whether it may have its slots now, being the next."""
        if ticket.cost > self._free:
            return False
        if ticket.is_awaited or self.running == 0:
            return True
        of_late = self._clock() - self._interactive < _OF_LATE_S
        most = self.slots - (self.slots // 2 if of_late else min(1, self.slots - 1))
        return self._slots_of_background + ticket.cost <= most and ticket.cost < self._free

    def _leave(self, ticket: Ticket) -> None:
        self._entered -= 1
        if ticket in self._running:
            self._running.remove(ticket)
            self._free += ticket.cost
            self._slots_of_background -= ticket.cost * (not ticket.is_awaited)
            self._slots_of_large -= ticket.cost * ticket.is_large
            self._pace.ended(ticket.tokens, self._clock() - ticket.since)
        else:
            self._count(ticket, -1)
        if not self.waiting:
            self._ahead = {False: 0.0, True: 0.0}  # what rounding has left of it
        if not self._entered:
            self._promised = -math.inf  # those who were told to come have not
        self._grant()


class Ticket:
    """One request's place: `async with` it; inside, `await slot()` before the engine is asked."""

    def __init__(self, admission: Admission, priority: int, cost: int, tokens: float) -> None:
        self.priority = priority
        self.cost = cost
        """Slots."""
        self.tokens = tokens
        """What it is taken to cost; until it has been looked at, as much as others."""
        self.is_awaited = priority > BACKGROUND
        self.is_large = False
        self.since = 0.0
        """When it got its slots."""
        self.granted = asyncio.Event()
        self.left = False
        self._admission = admission

    async def slot(self, prompt_tokens: int | None = None, max_tokens: int | None = None) -> None:
        """As `ask`; returns when the request may run."""
        self.ask(prompt_tokens, max_tokens)
        await self.granted.wait()

    def ask(self, prompt_tokens: int | None = None, max_tokens: int | None = None) -> None:
        """Gets in line, with what the request costs if that is known: `prompt_tokens`, its pictures' among them, and
        how long its answer may be. Raises `Overloaded` for one that is large where those have no room."""
        pace = self._admission._pace
        tokens = None if prompt_tokens is None else pace.tokens_of(prompt_tokens, max_tokens)
        self._admission._wait(self, tokens)

    def answered(self, completion_tokens: int) -> None:
        """One of its choices has ended, with so many tokens."""
        self._admission._pace.answered(completion_tokens)

    def leave(self) -> None:
        """It has ended, whether it ran or not."""
        self.left = True
        self._admission._leave(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.leave()


_Place = tuple[int, float, int, Ticket]
"""Less is earlier: by priority, by when it came or is taken to have come, by arrival."""


def _within(seconds: float) -> float:
    """What a Retry-After may say."""
    return min(float(MAX_RETRY_AFTER_S), max(1.0, seconds))
