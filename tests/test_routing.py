"""For how long a request is of use; what is tried again, where and when, and when no more."""

from __future__ import annotations

import asyncio

import pytest

from sightline.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailed,
    EngineUnavailable,
    ImageUnreadable,
    InvalidRequest,
    Overloaded,
    SightlineError,
    UnsupportedFeature,
    UpstreamFailed,
)
from sightline.routing import (
    Breaker,
    Deadline,
    Quarantine,
    RetryBudget,
    backoff_s,
    falls_back,
    passes_over,
    reload_after_s,
)

pytestmark = pytest.mark.anyio


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "next_in_line", "next_after_that"),
    [
        (EngineFailed("broke"), True, True),
        (EngineUnavailable("down"), True, True),
        (UpstreamFailed("broke"), True, True),
        (Overloaded("full"), True, True),
        (UnsupportedFeature("blind"), False, True),  # of the model that was asked for: the client's to know
        (ContextLengthExceeded("long"), False, True),
        (InvalidRequest("wrong"), False, False),
        (ImageUnreadable("broken"), False, False),
        (DeadlineExceeded("late"), False, False),
    ],
)
def test_what_leads_to_another_model(error: SightlineError, next_in_line: bool, next_after_that: bool) -> None:
    assert falls_back(error) == next_in_line
    assert passes_over(error) == next_after_that
    assert not falls_back(asyncio.CancelledError())


async def test_a_deadline_ends_what_is_inside_it_and_nothing_else() -> None:
    with pytest.raises(DeadlineExceeded, match=r"0\.01 s"):
        async with Deadline(0.01):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError):  # of somebody else
        async with Deadline(10.0):
            raise TimeoutError
    async with Deadline(10.0) as deadline:
        assert 9.0 < deadline.left_s() <= 10.0


def test_a_deadline_is_over_when_its_time_is_even_if_nobody_was_told() -> None:
    clock = Clock()
    deadline = Deadline(5.0, clock=clock)
    clock.now += 4.5
    deadline.check()
    assert deadline.left_s() == 0.5
    clock.now += 0.5
    with pytest.raises(DeadlineExceeded, match="deadline of 5 s"):
        deadline.check()
    assert deadline.left_s() == 0.0


def test_the_wait_before_a_retry_doubles_up_to_a_limit_and_is_drawn() -> None:
    assert [backoff_s(n, random=lambda: 1.0) for n in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert backoff_s(3, random=lambda: 0.25) == pytest.approx(0.2)
    assert len({backoff_s(3) for _ in range(20)}) > 1


def test_the_wait_before_a_model_is_loaded_again_doubles_up_to_a_minute() -> None:
    assert [reload_after_s(n, random=lambda: 1.0) for n in (1, 2, 3, 4, 5, 6, 100)] == [2, 4, 8, 16, 32, 60, 60]
    assert reload_after_s(1, random=lambda: 0.0) == 1.0
    assert len({reload_after_s(3) for _ in range(20)}) > 1


def test_second_tries_are_a_fifth_of_requests_in_an_outage() -> None:
    budget = RetryBudget()
    tries = 0
    for _ in range(10_000):
        budget.earn()
        tries += 1
        while budget.spend():
            tries += 1
    assert 11_999 <= tries <= 12_000 + 10
    for _ in range(10_000):  # a good time saves up few
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) == 10


def fail(breaker: Breaker, request: str | None = None) -> None:
    allowed = breaker.enter()
    assert allowed is not None
    with allowed:
        allowed.failed(request)


def test_five_failures_within_ten_seconds_open_the_breaker() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    for _ in range(20):  # one in three seconds is none too many
        fail(breaker)
        clock.now += 3
    assert breaker.state == "closed"
    clock.now += 100
    for _ in range(5):
        assert breaker.state == "closed"
        fail(breaker)
        clock.now += 2.5 * (breaker.state == "closed")
    assert breaker.state == "open"
    assert breaker.enter() is None
    clock.now += 4.9
    assert breaker.enter() is None


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(clock=clock)
    for _ in range(5):
        fail(breaker)
    clock.now += 5
    assert breaker.state == "half_open"
    return breaker


def test_one_probe_closes_it_or_opens_it_again() -> None:
    clock = Clock()
    breaker = opened(clock)
    probe = breaker.enter()
    assert probe is not None
    assert breaker.enter() is None  # one at a time
    with probe:
        probe.failed()
    assert breaker.state == "open"
    clock.now += 5
    probe = breaker.enter()
    assert probe is not None
    with probe:
        probe.succeeded()
        assert breaker.state == "closed"
    for _ in range(4):  # and what failed before is forgotten
        fail(breaker)
    assert breaker.state == "closed"


def test_a_probe_that_leaves_makes_way_for_the_next() -> None:
    breaker = opened(Clock())
    probe = breaker.enter()
    assert probe is not None
    with probe:
        pass
    assert breaker.state == "half_open"
    assert breaker.enter() is not None


def test_a_request_counts_once_however_often_it_is_tried() -> None:
    breaker = Breaker(clock=Clock())
    for _ in range(4):
        allowed = breaker.enter()
        assert allowed is not None
        with allowed:
            for _ in range(16):  # eight choices, two tries
                allowed.failed()
    assert breaker.state == "closed"
    fail(breaker)
    assert breaker.state == "open"


def answer(breaker: Breaker) -> None:
    allowed = breaker.enter()
    assert allowed is not None
    with allowed:
        allowed.succeeded()


def test_one_bad_request_sent_again_and_again_closes_nobody_out_while_others_are_answered() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    for number in range(1_000):
        fail(breaker, "bad")
        answer(breaker)
        assert breaker.state == "closed", number
        clock.now += 0.1
    for number in range(4):  # four others as well: that is no longer one request's fault
        assert breaker.state == "closed"
        fail(breaker, f"other {number}")
    assert breaker.state == "open"


def test_while_nobody_is_answered_requests_that_are_alike_count_each() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    answer(breaker)
    clock.now += 1
    for _ in range(5):
        assert breaker.state == "closed"
        fail(breaker, "ping")
    assert breaker.state == "open"


def test_requests_from_before_it_opened_decide_nothing() -> None:
    clock = Clock()
    breaker = Breaker(clock=clock)
    early, other = breaker.enter(), breaker.enter()
    assert early is not None
    assert other is not None
    assert early.valid
    for _ in range(5):
        fail(breaker)
    assert not early.valid  # who still waits for a slot must not ask any more
    early.succeeded()
    assert breaker.state == "open"
    clock.now += 4
    other.failed()  # does not put the probe off either
    clock.now += 1
    assert breaker.state == "half_open"


def test_a_picture_that_was_there_at_two_deaths_is_kept_away_for_a_while() -> None:
    clock = Clock()
    quarantine = Quarantine(clock=clock)
    quarantine.suspect(["bad", "bad", "good"], "first death")
    quarantine.suspect(["bad"], "first death")  # another request that it took with it
    assert not quarantine.holds("bad")
    clock.now += 60
    quarantine.suspect(["bad"], "second death")
    assert (quarantine.holds("bad"), quarantine.holds("good")) == (True, False)
    clock.now += 600
    assert not quarantine.holds("bad")
    quarantine.suspect(["bad"], "third death")  # served its time: it takes two again
    assert not quarantine.holds("bad")


def test_a_picture_that_was_answered_about_is_no_longer_suspected() -> None:
    quarantine = Quarantine()
    for death in range(5):
        quarantine.suspect(["popular"], death)
        quarantine.clear(["popular", "other"])
    assert not quarantine.holds("popular")


def test_suspects_take_bounded_memory() -> None:
    quarantine = Quarantine()
    for death in range(2):
        quarantine.suspect(["old"], death)
    for i in range(5_000):
        quarantine.suspect([str(i)], 0)
    assert not quarantine.holds("old")
