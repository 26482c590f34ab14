"""For how long a request is of use; what is tried again, where and when, and when no more.

Decisions only: nothing here touches an engine or a socket, and every clock can be another.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Any, Literal, Self

from sightline.errors import ContextLengthExceeded, DeadlineExceeded, EngineError, Overloaded, UnsupportedFeature

MAX_RETRY_AFTER_S = 120
"""SDKs obey a Retry-After up to this long; above it they give up (wire contract, section 0)."""
BACKGROUND = -10
"""The priority of what nobody waits for."""
_BACKOFF_S = 0.1
_BACKOFF_MOST_S = 2.0
_RELOAD_S = 2.0
_RELOAD_MOST_S = 60.0
_ROUNDING = 1e-9
"""Five fifths are not quite one."""
_FAILURES_KEPT = 256
_SUSPECTS = 4096
"""Pictures remembered as suspects; the oldest are forgotten."""


class Deadline:
    """When a request is of no use any more. `async with` it: what is inside ends then, with `DeadlineExceeded`."""

    def __init__(self, timeout_s: float, *, clock: Callable[[], float] | None = None) -> None:
        self.timeout_s = timeout_s
        self._clock = clock or asyncio.get_running_loop().time
        self._until = self._clock() + timeout_s
        self._scope: asyncio.Timeout | None = None

    def left_s(self) -> float:
        return max(0.0, self._until - self._clock())

    def check(self) -> None:
        """Raises `DeadlineExceeded` when it is over, also where the event loop was too busy to say so in time."""
        if not self.left_s():
            raise self._exceeded()

    def _exceeded(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"The request took longer than its deadline of {self.timeout_s:g} s.")

    async def __aenter__(self) -> Self:
        self._scope = asyncio.timeout(self.left_s())
        await self._scope.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        assert self._scope is not None
        try:
            await self._scope.__aexit__(*error)
        except TimeoutError:
            raise self._exceeded() from None


# --- failures --------------------------------------------------------------------------------------------------------


def is_engine_failure(error: BaseException) -> bool:
    """Whether it says something of the engine: then it counts against its breaker, and may be tried again."""
    return isinstance(error, EngineError)


def falls_back(error: BaseException) -> bool:
    """Whether the next model in line may do better: this one failed (`EngineError`) or is full (`Overloaded`).

    Never after an error of the request itself, a deadline or a client that left: those would be the same anywhere.
    """
    return is_engine_failure(error) or isinstance(error, Overloaded)


def passes_over(error: BaseException) -> bool:
    """Whether a model that stands in for another is left out for it: it cannot do what the first could."""
    return falls_back(error) or isinstance(error, UnsupportedFeature | ContextLengthExceeded)


def backoff_s(retry: int, *, random: Callable[[], float] = random.random) -> float:
    """How long to wait before the retry of this number (from 0): anything up to a time that doubles, so that requests
    that failed together do not come back together ("full jitter", AWS Architecture Blog, 2015)."""
    return random() * min(_BACKOFF_MOST_S, _BACKOFF_S * 2.0**retry)


def reload_after_s(failures: int, *, random: Callable[[], float] = random.random) -> float:
    """How long to wait before a model is loaded again that has failed to so many times in a row (from 1): a time that
    doubles, up to a minute; at most half of it is drawn."""
    return (0.5 + 0.5 * random()) * min(_RELOAD_MOST_S, _RELOAD_S * 2.0 ** min(failures - 1, 16))


class RetryBudget:
    """How much of an engine's load may be second tries: each request earns a fifth of one, and few are saved up.

    So an engine in an outage gets at most 1.2 tries for each request, beside `saved` (Finagle's `RetryBudget`).
    """

    def __init__(self, *, ratio: float = 0.2, saved: float = 10.0) -> None:
        self._ratio = ratio
        self._most = saved
        self._tokens = saved

    def earn(self) -> None:
        """For every first try."""
        self._tokens = min(self._most, self._tokens + self._ratio)

    def spend(self) -> bool:
        """Whether one more try may be made; it is then paid for."""
        if self._tokens < 1.0 - _ROUNDING:
            return False
        self._tokens -= 1.0
        return True


BreakerState = Literal["closed", "half_open", "open"]


class Breaker:
    """Keeps requests from an engine that fails: five failures within ten seconds open it.

    A request counts once, however often and in however many choices it was tried. Requests that are alike count once
    together as long as others are answered meanwhile: then it is they that are bad, and one client that sends the same
    again and again must not close the engine to everybody. While nobody is answered, all count.

    Five seconds later it is half-open: one request is let through as a probe, and what becomes of it closes the
    breaker or opens it again. A probe that leaves without an outcome makes way for the next.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        within_s: float = 10.0,
        probe_after_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures = failures
        self._failed: deque[tuple[float, Hashable]] = deque(maxlen=_FAILURES_KEPT)
        self._answered = -math.inf
        self._within_s = within_s
        self._probe_after_s = probe_after_s
        self._clock = clock
        self._opened: float | None = None
        self._probe: Pass | None = None

    @property
    def state(self) -> BreakerState:
        if self._opened is None:
            return "closed"
        return "half_open" if self._clock() - self._opened >= self._probe_after_s else "open"

    def enter(self) -> Pass | None:
        """Leave to ask the engine; None: it must not be asked now. `with` it, and tell it what became of the try."""
        state = self.state
        if state == "open" or (state == "half_open" and self._probe is not None):
            return None
        ticket = Pass(self)
        if state == "half_open":
            self._probe = ticket
        return ticket

    # The pass's side.

    def _admits(self, ticket: Pass) -> bool:
        return self._opened is None or ticket is self._probe

    def _succeeded(self, ticket: Pass) -> None:
        self._answered = self._clock()
        if ticket is self._probe:
            self._opened = self._probe = None
            self._failed.clear()

    def _failed_once(self, ticket: Pass, request: Hashable) -> None:
        now = self._clock()
        if self._opened is not None:
            if ticket is self._probe:
                self._opened, self._probe = now, None
            return  # others began before it opened, and say nothing new
        self._failed.append((now, request))
        while now - self._failed[0][0] > self._within_s:
            self._failed.popleft()
        others_do_well = self._answered >= self._failed[0][0]
        if len({alike for _, alike in self._failed} if others_do_well else self._failed) >= self._failures:
            self._opened = now

    def _left(self, ticket: Pass) -> None:
        if ticket is self._probe:
            self._probe = None


class Pass:
    """One request's leave to ask an engine."""

    def __init__(self, breaker: Breaker) -> None:
        self._breaker = breaker
        self._has_failed = False

    @property
    def valid(self) -> bool:
        """Whether the engine may still be asked: not when the breaker has opened since."""
        return self._breaker._admits(self)

    def succeeded(self) -> None:
        """The engine has begun to answer."""
        self._breaker._succeeded(self)

    def failed(self, request: Hashable = None) -> None:
        """The engine broke, whether it had begun to answer or not. `request`: equal for requests that are alike; None:
        like no other."""
        if not self._has_failed:
            self._has_failed = True
            self._breaker._failed_once(self, self if request is None else request)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._breaker._left(self)


class Quarantine:
    """Pictures under which two of an engine's processes died: for a while they are not served.

    Whatever else ran in that process is under suspicion too, which is why one death is not enough, and why a picture
    that was answered about since is suspected no longer.
    """

    def __init__(self, *, deaths: int = 2, for_s: float = 600.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._deaths = deaths
        self._for_s = for_s
        self._clock = clock
        self._seen: OrderedDict[str, tuple[frozenset[Hashable], float]] = OrderedDict()

    def suspect(self, digests: Iterable[str], death: Hashable) -> None:
        """A request with these pictures was under way when a process died. `death` says which: several requests that
        it took with it saw the same one."""
        now = self._clock()
        for digest in set(digests):
            self._seen[digest] = (self._of_late(digest) | {death}, now)
            self._seen.move_to_end(digest)
        while len(self._seen) > _SUSPECTS:
            self._seen.popitem(last=False)

    def clear(self, digests: Iterable[str]) -> None:
        """A request with these pictures was answered to its end."""
        for digest in digests:
            self._seen.pop(digest, None)

    def holds(self, digest: str) -> bool:
        return len(self._of_late(digest)) >= self._deaths

    def _of_late(self, digest: str) -> frozenset[Hashable]:
        deaths, last = self._seen.get(digest, (frozenset[Hashable](), 0.0))
        return deaths if self._clock() - last < self._for_s else frozenset()
