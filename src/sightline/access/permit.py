"""What one request may do: which models it may use, and what it may spend.

The permit of the request that is being answered is in a context variable, not in arguments: whatever a dialect calls,
and every task that is started for it, finds it there, so that a dialect that forgot to hand it on gives nothing away.
Outside of requests, and where there are no keys, it is `ANYONE`, which may do everything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Final

from sightline.access.keys import Key
from sightline.access.limits import Cost, Refusal, Standing, Verdict
from sightline.access.metering import Metering
from sightline.errors import QuotaExceeded, RateLimited
from sightline.types import Event, Finish

UNBOUNDED_TOKENS: Final = 512
"""Reserved for an answer whose request does not bound it. A longer one is paid for at its end."""


class Spending:
    """What a request has used so far: nothing, until an engine has begun to answer."""

    __slots__ = ("_completions", "_pictures", "_prompt_tokens")

    def __init__(self, prompt_tokens: int = 0, pictures: int = 0) -> None:
        """As planned."""
        self._prompt_tokens = prompt_tokens
        self._pictures = pictures
        self._completions: dict[int, int] = {}

    def see(self, choice: int, event: Event) -> None:
        """An event of the choice of this number. What the last one says of all tokens goes before what was counted."""
        if isinstance(event, Finish):
            self._completions[choice] = event.usage.completion_tokens
            self._prompt_tokens = event.usage.prompt_tokens
        else:
            self._completions[choice] = self._completions.get(choice, 0) + event.num_tokens

    def read(self, prompt_tokens: int) -> None:
        """Work without an answer in tokens is done."""
        self._prompt_tokens = prompt_tokens
        self._completions[0] = 0

    def to_cost(self) -> Cost:
        if not self._completions:
            return Cost()
        return Cost(tokens=self._prompt_tokens + sum(self._completions.values()), pictures=self._pictures)


class Permit:
    """Held by whoever answers the request, and by what goes on after the answer; when nobody holds it, its place among
    those at once is free again."""

    __slots__ = ("_entered", "_holders", "_metering", "key", "patient", "refused", "standing")

    def __init__(self, key: Key, metering: Metering, entered: Cost, verdict: Verdict, *, patient: bool) -> None:
        self.key = key
        self.standing = verdict.standing
        """Of its rates, as last known."""
        self._metering = metering
        self.refused = None if verdict.refusal is None else to_error(verdict.refusal)
        """Why it may do nothing; None: it may."""
        self._entered = (verdict.day, entered if self.refused is None else Cost())
        self.patient = patient
        """Nobody waits for it."""
        self._holders = 1

    @property
    def key_id(self) -> str:
        return self.key.id

    def allows(self, model: str, aliases: Mapping[str, str]) -> bool:
        """Whether a model may be used. `aliases`: whose name each alias is; a key may name models by either, and use
        those by both."""
        named = self.key.models
        return not named or any(aliases.get(name, name) == model for name in named)

    @property
    def is_admin(self) -> bool:
        return self.key.admin

    def hold(self) -> Callable[[object], None]:
        """By one more, before others leave it: by what goes on when the request has its answer. What is returned leaves
        it, and is a callback for the end of a task."""
        self._holders += 1
        return lambda _: self.leave()

    def leave(self) -> None:
        self._holders -= 1
        day, entered = self._entered
        if self._holders == 0 and entered != Cost():
            self._entered = (day, Cost())
            self._settle(day, entered, Cost(requests=entered.requests))

    @asynccontextmanager
    async def spending(
        self, tokens: int, max_tokens: int | None = 0, *, choices: int = 1, pictures: int = 0
    ) -> AsyncIterator[Spending]:
        """Around work of so many prompt tokens and pictures, each of whose answers has `max_tokens` at most (None:
        nobody says). At its end what it has spent is settled.

        Raises `RateLimited`, `QuotaExceeded`.
        """
        answer = UNBOUNDED_TOKENS if max_tokens is None else max_tokens
        reserved = Cost(tokens=tokens + answer * choices, pictures=pictures)
        verdict = await self._metering.admit(self.key.id, self.key.limits, reserved, patient=self.patient)
        self.standing = verdict.standing
        if verdict.refusal is not None:
            raise to_error(verdict.refusal)
        spent = Spending(tokens, pictures)
        try:
            yield spent
        finally:
            self._settle(verdict.day, reserved, spent.to_cost())

    def _settle(self, day: int, reserved: Cost, used: Cost) -> None:
        standing = self._metering.settle(self.key.id, day, reserved, used)
        if standing is not None:
            self.standing = standing


class _Anyone:
    """Of those who need no key."""

    key_id = ""
    is_admin = True
    patient = False
    standing = Standing()

    def allows(self, model: str, aliases: Mapping[str, str]) -> bool:
        return True

    def hold(self) -> Callable[[object], None]:
        return lambda _: None

    @asynccontextmanager
    async def spending(
        self, tokens: int, max_tokens: int | None = 0, *, choices: int = 1, pictures: int = 0
    ) -> AsyncIterator[Spending]:
        yield Spending()


ANYONE: Final = _Anyone()

_CURRENT: ContextVar[Permit | _Anyone] = ContextVar("sightline_permit", default=ANYONE)


def current() -> Permit | _Anyone:
    """Of the request that is being answered."""
    return _CURRENT.get()


@contextmanager
def acting_by(permit: Permit | None) -> Iterator[None]:
    """What is done inside is done by this permit, which is left at the end; None: anyone may."""
    if permit is None:
        yield
        return
    token = _CURRENT.set(permit)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        permit.leave()


def to_error(refusal: Refusal) -> RateLimited | QuotaExceeded:
    """What a client is told. Waiting helps a `RateLimited` that is `retryable`."""
    most, left, asked = refusal.most, refusal.left, refusal.asked
    match refusal.limit:
        case "tokens_per_day" | "pictures_per_day":
            what = "tokens" if refusal.limit == "tokens_per_day" else "pictures"
            told = f"This API key has {most} {what} a day, of which {left} are left until midnight UTC"
            if refusal.retry_after_s is None:
                return QuotaExceeded(f"{told}, and the request may need {asked}.{_advice(what)}")
            message = f"{told} while its other requests run; this one may need {asked}. Try again when they have ended."
        case "concurrent":
            message = f"This API key may have {most} requests at once, and they are under way. Try again after them."
        case "requests_per_minute":
            message = f"This API key may make {most} requests a minute. Try again after the time in Retry-After."
        case "tokens_per_minute":
            message = f"This API key has {most} tokens a minute, of which {left} are left, and the request may need "
            if refusal.retry_after_s is None:
                error = RateLimited(f"{message}{asked}, which is more than it ever has.{_advice('tokens')}")
                error.retryable = False  # type: ignore[misc]  # waiting does not help
                return error
            message += f"{asked}. Try again after the time in Retry-After."
    return RateLimited(message, retry_after_s=refusal.retry_after_s or 1.0)


def _advice(what: str) -> str:
    return " Ask for a shorter answer, or send less." if what == "tokens" else " Send fewer."
