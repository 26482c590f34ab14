"""Rates and budgets of keys: what may begin now, and when else. Decisions only, and every clock can be another.

A rate is a *token bucket*: it holds what a minute allows and is filled evenly, so that in no minute more is let in than
that and what was in it. A budget is counted from midnight to midnight, UTC. What a request may cost is reserved before
it runs; what it did cost is told at its end (`settle`), and the rest given back. Where it cost more (an answer whose
length nobody had bounded), the bucket owes that: nothing more begins until it is paid.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from sightline.config import KeyLimits

LimitName = Literal["requests_per_minute", "tokens_per_minute", "concurrent", "tokens_per_day", "pictures_per_day"]

DAY_S: Final = 86_400
_MINUTE_S: Final = 60.0
_SOON_S: Final = 1.0
"""When another may be tried, where nobody knows how long those take that run."""
_PATIENT_MOST_S: Final = 600.0
_ROUNDING: Final = 1e-6


class Cost(msgspec.Struct, frozen=True, array_like=True):
    """Of a request, or of a part of it."""

    requests: int = 0
    tokens: int = 0
    pictures: int = 0
    concurrent: int = 0


class Level(msgspec.Struct, frozen=True, array_like=True):
    """How a rate stands."""

    limit: int
    remaining: int
    """What may be asked for now; never below 0."""
    reset_s: float
    """Until it is all there again."""


class Standing(msgspec.Struct, frozen=True, array_like=True):
    """What clients are told with every answer; None: there is no such limit."""

    requests: Level | None = None
    tokens: Level | None = None


class Refusal(msgspec.Struct, frozen=True, array_like=True):
    limit: LimitName
    most: int
    """What the limit is."""
    left: int
    asked: int
    retry_after_s: float | None
    """None: waiting does not help, because it asks for more than there ever is, or for more than is left of the day."""


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """What came of `admit`."""

    standing: Standing
    day: int
    """Days since 1970, UTC, from whose budget it was taken."""
    refusal: Refusal | None = None
    """None: all of the cost is reserved; else nothing of it is."""


class Used(msgspec.Struct, array_like=True):
    """What a key has used of a day."""

    requests: int = 0
    tokens: int = 0
    pictures: int = 0

    def add(self, cost: Cost) -> None:
        self.requests += cost.requests
        self.tokens += cost.tokens
        self.pictures += cost.pictures


class Bucket:
    """Of one rate, by the minute."""

    __slots__ = ("_at", "_level", "_promised", "capacity")

    def __init__(self, capacity: int, now: float) -> None:
        self.capacity = capacity
        self._level = float(capacity)
        self._at = now
        self._promised = now
        """Until when those who wait in the background have been told to come back."""

    def take(self, amount: float, now: float) -> None:
        self._fill(now)
        self._level -= amount

    def give(self, amount: float, now: float) -> None:
        """Back, of what was taken; below 0: it was more."""
        self._fill(now)
        self._level = min(self.capacity, self._level + amount)

    def wait_s(self, amount: float, now: float) -> float:
        """Until that much is there: 0 where it is. `amount` must not be above the capacity."""
        self._fill(now)
        missing = amount - self._level
        return missing * _MINUTE_S / self.capacity if missing > _ROUNDING else 0.0

    def promise_s(self, amount: float, now: float) -> float:
        """As `wait_s`, for one who waits his turn: behind all who were told so before."""
        wait_s = self.wait_s(amount, now)
        self._promised = max(
            now + wait_s, min(self._promised + amount * _MINUTE_S / self.capacity, now + _PATIENT_MOST_S)
        )
        return self._promised - now

    def stand(self, now: float) -> Level:
        self._fill(now)
        remaining = max(0, int(self._level + _ROUNDING))
        return Level(self.capacity, remaining, max(0.0, (self.capacity - self._level) * _MINUTE_S / self.capacity))

    def _fill(self, now: float) -> None:
        if now > self._at:
            self._level = min(self.capacity, self._level + (now - self._at) * self.capacity / _MINUTE_S)
            self._at = now


@dataclass(slots=True)
class _Account:
    """What one key has taken."""

    requests: Bucket | None = None
    tokens: Bucket | None = None
    concurrent: int = 0
    day: int = 0
    reserved: Used = field(default_factory=Used)
    """Of `day`: of what runs."""
    used: Used = field(default_factory=Used)
    """Of `day`: of what has ended."""


class Meter:
    """Of all keys. Not thread-safe; everything takes microseconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        """`clock` never goes back, `wall` is seconds since 1970."""
        self._clock = clock
        self._wall = wall
        self._accounts: dict[str, _Account] = {}
        self._unsaved: dict[tuple[str, int], Used] = {}

    def admit(self, key_id: str, limits: KeyLimits, cost: Cost, *, patient: bool = False) -> Verdict:
        """Reserves the whole cost, or nothing of it.

        `patient`: nobody waits for it. It counts none of those at once, and when it is refused it is told to come back
        behind all that were refused before it, so that a thousand such requests do not all come back at once.
        """
        now, account = self._clock(), self._account(key_id, limits)
        refusal = self._refuse(account, limits, cost, now, patient=patient)
        if refusal is None:
            if account.requests is not None:
                account.requests.take(cost.requests, now)
            if account.tokens is not None:
                account.tokens.take(cost.tokens, now)
            account.concurrent += cost.concurrent
            account.reserved.add(cost)
        return Verdict(_stand(account, now), account.day, refusal)

    def settle(self, key_id: str, day: int, reserved: Cost, used: Cost) -> Standing:
        """Of what was reserved (that `day`), so much was used; the rest is given back."""
        if (account := self._accounts.get(key_id)) is None:
            return Standing()
        now = self._clock()
        if account.requests is not None and reserved.requests != used.requests:
            account.requests.give(reserved.requests - used.requests, now)
        if account.tokens is not None:
            account.tokens.give(reserved.tokens - used.tokens, now)
        account.concurrent = max(0, account.concurrent - reserved.concurrent)
        if day == account.day:
            _subtract(account.reserved, reserved)
            account.used.add(used)
        if used.requests or used.tokens or used.pictures:
            self._unsaved.setdefault((key_id, day), Used()).add(used)
        return _stand(account, now)

    def take_unsaved(self) -> dict[tuple[str, int], Used]:
        """What was used since the last call, by key and day, to be kept."""
        unsaved, self._unsaved = self._unsaved, {}
        return unsaved

    def put_back(self, unsaved: dict[tuple[str, int], Used]) -> None:
        """It could not be kept."""
        for place, used in unsaved.items():
            mine = self._unsaved.setdefault(place, Used())
            mine.add(Cost(used.requests, used.tokens, used.pictures))

    def learn(self, key_id: str, day: int, kept: Used) -> None:
        """What is kept of a key's day, all servers together; what has been used here since comes on top."""
        account = self._accounts.setdefault(key_id, _Account(day=self._today()))
        if day == account.day:
            since = self._unsaved.get((key_id, day), Used())
            account.used = Used(
                kept.requests + since.requests, kept.tokens + since.tokens, kept.pictures + since.pictures
            )

    def used(self, key_id: str) -> Used:
        """Today."""
        account = self._accounts.get(key_id)
        return account.used if account is not None and account.day == self._today() else Used()

    def running(self, key_id: str) -> int:
        account = self._accounts.get(key_id)
        return account.concurrent if account is not None else 0

    def _today(self) -> int:
        return int(self._wall() // DAY_S)

    def _account(self, key_id: str, limits: KeyLimits) -> _Account:
        """As its limits are now, on the day that it is."""
        account = self._accounts.get(key_id)
        today = self._today()
        if account is None:
            account = self._accounts[key_id] = _Account(day=today)
        if account.day != today:
            account.day, account.used, account.reserved = today, Used(), Used()
        now = self._clock()
        account.requests = _bucket(account.requests, limits.requests_per_minute, now)
        account.tokens = _bucket(account.tokens, limits.tokens_per_minute, now)
        return account

    def _refuse(self, account: _Account, limits: KeyLimits, cost: Cost, now: float, *, patient: bool) -> Refusal | None:
        """What lasts longest first: who has used up the day is not told to come back in a second."""
        used, reserved = account.used, account.reserved
        for name, most, taken, asked in (
            ("tokens_per_day", limits.tokens_per_day, used.tokens + reserved.tokens, cost.tokens),
            ("pictures_per_day", limits.pictures_per_day, used.pictures + reserved.pictures, cost.pictures),
        ):
            if most is not None and asked and taken + asked > most:
                # What others have reserved may come back when they have ended; what was used will not.
                running = reserved.tokens if name == "tokens_per_day" else reserved.pictures
                may_pass = taken - running + asked <= most
                left = max(0, most - taken)
                return Refusal(name, most, left, asked, _SOON_S if may_pass else None)  # type: ignore[arg-type]
        for name, bucket, asked in (
            ("tokens_per_minute", account.tokens, cost.tokens),
            ("requests_per_minute", account.requests, cost.requests),
        ):
            if bucket is not None and asked and (wait_s := bucket.wait_s(asked, now)):
                left = bucket.stand(now).remaining
                if asked > bucket.capacity:
                    return Refusal(name, bucket.capacity, left, asked, None)  # type: ignore[arg-type]
                wait_s = bucket.promise_s(asked, now) if patient else wait_s
                return Refusal(name, bucket.capacity, left, asked, wait_s)  # type: ignore[arg-type]
        most = limits.concurrent
        if most is not None and cost.concurrent and account.concurrent + cost.concurrent > most:
            return Refusal("concurrent", most, max(0, most - account.concurrent), cost.concurrent, _SOON_S)
        return None


def _bucket(bucket: Bucket | None, capacity: int | None, now: float) -> Bucket | None:
    if capacity is None:
        return None
    return bucket if bucket is not None and bucket.capacity == capacity else Bucket(capacity, now)


def _stand(account: _Account, now: float) -> Standing:
    return Standing(
        account.requests.stand(now) if account.requests is not None else None,
        account.tokens.stand(now) if account.tokens is not None else None,
    )


def _subtract(used: Used, cost: Cost) -> None:
    """Not below 0: what was reserved before midnight may end after it."""
    used.requests = max(0, used.requests - cost.requests)
    used.tokens = max(0, used.tokens - cost.tokens)
    used.pictures = max(0, used.pictures - cost.pictures)
