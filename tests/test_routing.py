"""Who runs, who waits, who is sent away; what is tried again, and when no more."""

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
    BACKGROUND,
    Admission,
    Breaker,
    Deadline,
    Quarantine,
    RetryBudget,
    Ticket,
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


async def run(admission: Admission, name: str, order: list[str], release: asyncio.Event, **kwargs: int) -> None:
    async with admission.enter(**kwargs) as ticket:
        await ticket.slot()
        order.append(name)
        await release.wait()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_slots_are_given_by_priority_then_arrival() -> None:
    admission = Admission(1, 10)
    order: list[str] = []
    gate = asyncio.Event()
    tasks = [asyncio.create_task(run(admission, "first", order, gate))]
    await settle()
    for name, priority in [("low", -1), ("a", 0), ("high", 5), ("b", 0)]:
        tasks.append(asyncio.create_task(run(admission, name, order, gate, priority=priority)))
    await settle()
    assert (admission.running, admission.waiting, order) == (1, 4, ["first"])
    gate.set()
    await asyncio.gather(*tasks)
    assert order == ["first", "high", "a", "b", "low"]
    assert (admission.running, admission.waiting) == (0, 0)


async def test_a_wide_request_is_not_overtaken() -> None:
    admission = Admission(2, 10)
    order: list[str] = []
    gates = {name: asyncio.Event() for name in ("one", "wide", "late")}
    tasks = []
    for name, choices in [("one", 1), ("wide", 2), ("late", 1)]:
        tasks.append(asyncio.create_task(run(admission, name, order, gates[name], choices=choices)))
        await settle()
    assert order == ["one"]  # a slot is free, but it is kept for the head of the line
    gates["one"].set()
    await settle()
    assert order == ["one", "wide"]
    gates["wide"].set()
    gates["late"].set()
    await asyncio.gather(*tasks)


async def test_more_choices_than_slots_still_run() -> None:
    admission = Admission(2, 1)
    async with admission.enter(choices=8) as ticket:
        await asyncio.wait_for(ticket.slot(), 1)
        assert admission.running == 1


async def test_a_full_line_is_refused_with_a_time() -> None:
    clock = Clock()
    admission = Admission(1, 2, clock=clock)
    order: list[str] = []
    gate = asyncio.Event()
    for _ in range(10):  # ten requests a second have been finished
        clock.now += 0.1
        async with admission.enter() as ticket:
            await ticket.slot()
    tasks = [asyncio.create_task(run(admission, str(i), order, gate)) for i in range(3)]
    await settle()
    with pytest.raises(Overloaded) as refused:
        admission.enter()
    assert 1 <= refused.value.retry_after_s <= 2
    clock.now += (
        3600  # the engine has stood still for an hour: the honest answer grows, but stays within what SDKs obey
    )
    assert admission.retry_after_s() == 120
    gate.set()
    await asyncio.gather(*tasks)


async def test_who_leaves_the_line_frees_the_place_and_wakes_the_next() -> None:
    admission = Admission(1, 10)
    order: list[str] = []
    gate = asyncio.Event()
    running = asyncio.create_task(run(admission, "running", order, gate))
    await settle()
    gone = asyncio.create_task(run(admission, "gone", order, gate, priority=9))
    patient = asyncio.create_task(run(admission, "patient", order, gate))
    await settle()
    gone.cancel()
    await settle()
    assert admission.waiting == 1
    running.cancel()
    await settle()
    assert order == ["running", "patient"]
    gate.set()
    await patient
    assert (admission.running, admission.waiting) == (0, 0)


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


# --- what nobody waits for -------------------------------------------------------------------------------------------


async def hold(admission: Admission, priority: int) -> tuple[Ticket, asyncio.Task[None]]:
    ticket = admission.enter(priority=priority)
    waiting = asyncio.create_task(ticket.slot())
    await asyncio.sleep(0)
    return ticket, waiting


async def test_what_runs_in_the_background_leaves_slots_free() -> None:
    now = [0.0]
    admission = Admission(8, 100, clock=lambda: now[0])
    background = [await hold(admission, BACKGROUND) for _ in range(10)]
    assert admission.running == 7, "one is free for whoever comes"
    client, waiting = await hold(admission, 0)
    assert waiting.done()
    await client.__aexit__()
    for ticket, _ in background[:2]:
        await ticket.__aexit__()
    assert admission.running == 5, "half are, while clients come"
    for ticket, _ in background[2:4]:
        await ticket.__aexit__()
    assert admission.running == 4
    now[0] = 60.0
    for _ in range(10):
        background.append(await hold(admission, BACKGROUND))
    assert admission.running == 7


async def test_the_background_is_not_starved_by_clients_that_leave_it_room() -> None:
    admission = Admission(8, 100)
    clients = [await hold(admission, 0) for _ in range(4)]
    for _ in range(5):
        await hold(admission, BACKGROUND)
    assert admission.running == 7, "four clients, three of the others, one free"
    for _ in range(3):
        await hold(admission, 0)
    assert admission.running == 8
    for ticket, _ in clients:
        await ticket.__aexit__()
    assert admission.running == 7, "the three clients, and half of the slots for the others"


async def test_the_background_gets_on_where_there_is_one_slot() -> None:
    admission = Admission(1, 100)
    client, _ = await hold(admission, 0)
    background, waiting = await hold(admission, BACKGROUND)
    assert not waiting.done()
    await client.__aexit__()
    assert background.granted.is_set()
