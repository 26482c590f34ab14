"""Rates and budgets: what may begin, and when else. Every clock here is a variable."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.access.limits import DAY_S, Cost, Meter, Refusal, Used, Verdict
from sightline.config import KeyLimits

ASK = Cost(requests=1, concurrent=1)
DONE = Cost(requests=1)


@dataclass
class Bench:
    """A meter whose clocks stand still until they are moved."""

    limits: KeyLimits
    now: float = 1000.0
    wall: float = 20_000.0 * DAY_S + 10
    meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        self.meter = Meter(clock=lambda: self.now, wall=lambda: self.wall)

    def pass_s(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    def admit(self, cost: Cost, *, patient: bool = False) -> Verdict:
        return self.meter.admit("k", self.limits, cost, patient=patient)

    def settle(self, day: int, reserved: Cost, used: Cost) -> None:
        self.meter.settle("k", day, reserved, used)

    def refusal(self, cost: Cost, *, patient: bool = False) -> Refusal:
        refusal = self.admit(cost, patient=patient).refusal
        assert refusal is not None
        return refusal


def allowed(bench: Bench, cost: Cost) -> bool:
    return bench.admit(cost).refusal is None


def test_without_limits_everything_is_allowed_and_counted() -> None:
    bench = Bench(KeyLimits())
    verdict = bench.admit(Cost(1, 10**9, 10**6, 1))
    assert (verdict.refusal, verdict.standing.requests, verdict.standing.tokens) == (None, None, None)
    bench.settle(verdict.day, Cost(1, 10**9, 10**6, 1), Cost(1, 7, 2))
    assert bench.meter.used("k") == Used(1, 7, 2)


def test_requests_of_a_minute_and_the_exact_time_of_the_next() -> None:
    bench = Bench(KeyLimits(requests_per_minute=30))
    assert all(allowed(bench, ASK) for _ in range(30))
    refused = bench.refusal(ASK)
    assert (refused.limit, refused.left, refused.retry_after_s) == ("requests_per_minute", 0, pytest.approx(2.0))
    bench.pass_s(1.99)
    assert not allowed(bench, ASK)
    bench.pass_s(0.02)
    assert allowed(bench, ASK), "after what Retry-After said"
    assert not allowed(bench, ASK), "and one only"


def test_what_clients_are_told_of_a_rate() -> None:
    bench = Bench(KeyLimits(requests_per_minute=60, tokens_per_minute=600))
    standing = bench.admit(Cost(requests=1, tokens=100)).standing
    assert standing.requests is not None
    assert standing.tokens is not None
    assert (standing.requests.limit, standing.requests.remaining, standing.requests.reset_s) == (60, 59, 1.0)
    assert (standing.tokens.limit, standing.tokens.remaining, standing.tokens.reset_s) == (600, 500, 10.0)


def test_a_refused_request_costs_nothing() -> None:
    bench = Bench(KeyLimits(requests_per_minute=10, tokens_per_minute=100))
    assert not allowed(bench, Cost(requests=1, tokens=101))
    standing = bench.admit(Cost()).standing
    assert standing.requests is not None
    assert standing.requests.remaining == 10, "all of a cost or nothing of it"


def test_tokens_that_were_reserved_and_not_used_come_back() -> None:
    bench = Bench(KeyLimits(tokens_per_minute=1000))
    day = bench.admit(Cost(tokens=900)).day
    assert not allowed(bench, Cost(tokens=200))
    bench.settle(day, Cost(tokens=900), Cost(tokens=100))
    assert allowed(bench, Cost(tokens=900))


def test_an_answer_that_was_longer_than_foreseen_is_paid_for() -> None:
    bench = Bench(KeyLimits(tokens_per_minute=600))
    day = bench.admit(Cost(tokens=100)).day
    bench.settle(day, Cost(tokens=100), Cost(tokens=1200))
    standing = bench.admit(Cost()).standing.tokens
    assert standing is not None
    assert (standing.remaining, standing.reset_s) == (0, 120.0), "never below nothing, and the debt is in the time"
    assert bench.refusal(Cost(tokens=10)).retry_after_s == pytest.approx(61.0)


def test_more_than_a_minute_ever_has_is_not_waited_for() -> None:
    bench = Bench(KeyLimits(tokens_per_minute=100))
    refused = bench.refusal(Cost(tokens=101))
    assert (refused.limit, refused.retry_after_s) == ("tokens_per_minute", None)


def test_so_many_at_once() -> None:
    bench = Bench(KeyLimits(concurrent=2))
    days = [bench.admit(ASK).day for _ in range(2)]
    assert bench.refusal(ASK).limit == "concurrent"
    assert allowed(bench, Cost(requests=1)), "what nobody waits for is not counted"
    bench.settle(days[0], ASK, DONE)
    assert allowed(bench, ASK)


def test_the_budget_of_a_day_is_never_exceeded_by_what_runs() -> None:
    bench = Bench(KeyLimits(tokens_per_day=1000))
    day = bench.admit(Cost(tokens=700)).day
    waiting = bench.refusal(Cost(tokens=400))
    assert (waiting.limit, waiting.left, waiting.retry_after_s) == ("tokens_per_day", 300, 1.0), "the 700 may come back"
    bench.settle(day, Cost(tokens=700), Cost(tokens=700))
    over = bench.refusal(Cost(tokens=400))
    assert (over.left, over.retry_after_s) == (300, None), "and now they will not"
    assert allowed(bench, Cost(tokens=300))


def test_pictures_have_a_budget_too_and_midnight_ends_both() -> None:
    bench = Bench(KeyLimits(pictures_per_day=3))
    day = bench.admit(Cost(pictures=3)).day
    bench.settle(day, Cost(pictures=3), Cost(pictures=3))
    assert bench.refusal(Cost(pictures=1)).limit == "pictures_per_day"
    bench.pass_s(DAY_S - 11)
    assert not allowed(bench, Cost(pictures=1)), "23:59:59"
    bench.pass_s(2)
    assert allowed(bench, Cost(pictures=1))


def test_what_ends_after_midnight_is_of_the_day_on_which_it_began() -> None:
    bench = Bench(KeyLimits(tokens_per_day=1000))
    day = bench.admit(Cost(tokens=900)).day
    bench.pass_s(DAY_S)
    bench.admit(Cost())
    bench.settle(day, Cost(tokens=900), Cost(tokens=900))
    assert bench.meter.used("k").tokens == 0
    assert bench.meter.take_unsaved() == {("k", day): Used(0, 900, 0)}
    assert allowed(bench, Cost(tokens=1000))


def test_what_others_have_used_is_learnt_and_what_is_unsaved_comes_on_top() -> None:
    bench = Bench(KeyLimits(tokens_per_day=1000))
    day = bench.admit(Cost(tokens=10)).day
    bench.settle(day, Cost(tokens=10), Cost(tokens=10))
    saving = bench.meter.take_unsaved()
    later = bench.admit(Cost(tokens=5)).day
    bench.settle(later, Cost(tokens=5), Cost(tokens=5))
    assert saving == {("k", day): Used(0, 10, 0)}
    bench.meter.learn("k", day, Used(0, 800, 0))  # another server wrote 790 of them
    assert bench.meter.used("k").tokens == 805
    assert bench.meter.take_unsaved() == {("k", day): Used(0, 5, 0)}
    bench.meter.put_back({("k", day): Used(0, 5, 0)})
    assert bench.meter.take_unsaved() == {("k", day): Used(0, 5, 0)}, "what could not be written is written later"


def test_a_limit_that_was_changed_counts_at_once() -> None:
    bench = Bench(KeyLimits(requests_per_minute=1))
    assert allowed(bench, ASK)
    assert not allowed(bench, ASK)
    bench.limits = KeyLimits(requests_per_minute=100)
    assert allowed(bench, ASK)


def test_lines_that_wait_come_back_one_after_the_other() -> None:
    bench = Bench(KeyLimits(requests_per_minute=60))
    while allowed(bench, Cost(requests=1)):
        pass
    waits = [bench.refusal(Cost(requests=1), patient=True).retry_after_s for _ in range(700)]
    assert waits[:5] == pytest.approx([1, 2, 3, 4, 5]), "each when its turn is"
    assert max(w for w in waits if w is not None) == 600.0
    assert bench.refusal(Cost(requests=1)).retry_after_s == pytest.approx(1.0), "who is waited for is told of the next"


# --- for all that may come -------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.floats(0, 30),  # seconds that pass
        st.integers(0, 60),  # tokens that are asked for
        st.floats(0, 1),  # the part of them that is used
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 40), steps)
def test_no_window_of_a_minute_has_more_than_the_rate_and_the_burst(most: int, steps: list[tuple]) -> None:  # type: ignore[type-arg]
    bench = Bench(KeyLimits(requests_per_minute=most))
    granted: list[float] = []
    for seconds, asked, _ in steps:
        bench.pass_s(seconds)
        for _ in range(asked):
            if allowed(bench, Cost(requests=1)):
                granted.append(bench.now)
    for start in granted:
        assert sum(start <= at < start + 60 for at in granted) <= 2 * most, "the bucket, and what came in meanwhile"


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 100), st.integers(1, 300), st.integers(1, 5), steps)
def test_nothing_is_ever_below_nought_or_above_its_limit(
    per_minute: int,
    per_day: int,
    at_once: int,
    steps: list[tuple],  # type: ignore[type-arg]
) -> None:
    bench = Bench(KeyLimits(tokens_per_minute=per_minute, tokens_per_day=per_day, concurrent=at_once))
    running: list[tuple[int, Cost, Cost]] = []
    spent: dict[int, int] = {}
    for seconds, tokens, share in steps:
        bench.pass_s(seconds)
        cost = Cost(requests=1, tokens=tokens, concurrent=1)
        verdict = bench.admit(cost)
        level = verdict.standing.tokens
        assert level is not None
        assert 0 <= level.remaining <= per_minute
        assert level.reset_s >= 0
        if verdict.refusal is None:
            running.append((verdict.day, cost, Cost(requests=1, tokens=int(tokens * share))))
        else:
            assert verdict.refusal.left >= 0
            assert verdict.refusal.retry_after_s is None or verdict.refusal.retry_after_s > 0
        assert len(running) <= at_once
        if running and share < 0.7:
            day, reserved, used = running.pop(0)
            bench.settle(day, reserved, used)
            spent[day] = spent.get(day, 0) + used.tokens
        assert all(tokens <= per_day for tokens in spent.values()), "no day is ever overdrawn"


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50))
def test_waiting_as_told_is_enough_and_no_less_is(most: int, asked: int) -> None:
    bench = Bench(KeyLimits(tokens_per_minute=most))
    while allowed(bench, Cost(tokens=1)):
        pass
    refused = bench.refusal(Cost(tokens=asked))
    if refused.retry_after_s is None:
        assert asked > most
        return
    bench.pass_s(refused.retry_after_s * 0.99)
    assert not allowed(bench, Cost(tokens=asked))
    bench.pass_s(refused.retry_after_s * 0.01 + 1e-4)
    assert allowed(bench, Cost(tokens=asked))
