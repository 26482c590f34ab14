"""Who runs and who waits, in which order; who is sent away, and when to come again."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable

import pytest

from sightline.admission import Admission, Ticket
from sightline.errors import Overloaded
from sightline.routing import BACKGROUND

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


# --- what requests cost ----------------------------------------------------------------------------------------------


class World:
    """Clients and slots in a time of its own: what happens is told, nothing is waited for."""

    def __init__(self, admission: Callable[[Callable[[], float]], Admission]) -> None:
        self.clock = Clock()
        self.admission = admission(self.clock)
        self.began: dict[str, float] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._in_line: list[tuple[str, Ticket, float]] = []

    def at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def ask(self, name: str, prompt_tokens: int, hold_s: float, **kwargs: int) -> None:
        """Raises `Overloaded`."""
        ticket = self.admission.enter(**kwargs)
        try:
            ticket.ask(prompt_tokens, 0)
        except Overloaded:
            ticket.leave()
            raise
        self._in_line.append((name, ticket, hold_s))
        self._look()

    def run(self, until: float = float("inf")) -> None:
        while self._events and self._events[0][0] <= until:
            self.clock.now, _, what = heapq.heappop(self._events)
            what()

    def _look(self) -> None:
        for one in list(self._in_line):
            name, ticket, hold_s = one
            if ticket.granted.is_set():
                self._in_line.remove(one)
                self.began[name] = self.clock.now
                self.at(self.clock.now + hold_s, lambda ticket=ticket: self._end(ticket))  # type: ignore[misc]

    def _end(self, ticket: Ticket) -> None:
        ticket.leave()
        self._look()

    def learn(self, count: int = 16, tokens: int = 100, hold_s: float = 1.0) -> None:
        """That requests of so many tokens take so long."""
        for _ in range(count):
            self.ask("before", tokens, hold_s)
            self.run()


def world(slots: int = 4, max_waiting: int = 1000, **kwargs: float) -> World:
    made = World(lambda clock: Admission(slots, max_waiting, clock=clock, **kwargs))
    made.learn()
    return made


def test_requests_of_a_size_are_served_as_they_came() -> None:
    it = world(slots=1)
    for i in range(20):
        it.ask(f"{i:02d}", 100 + i % 3, 1.0)
    it.run()
    assert sorted(it.began, key=lambda name: it.began[name])[1:] == [f"{i:02d}" for i in range(20)]


def test_a_small_request_does_not_wait_behind_albums() -> None:
    it = world(slots=8)
    came = it.clock.now
    for i in range(40):
        it.ask(f"album {i}", 10_000, 100.0)
    assert it.admission.running == 6, "a quarter of the slots is left to others"
    for i in range(2):
        it.ask(f"small {i}", 100, 1.0)
    assert it.began["small 0"] == it.began["small 1"] == came
    it.ask("small 2", 100, 1.0)
    it.run(came + 2)
    assert it.began["small 2"] == came + 1, "the next slot is its own, though 34 albums came before it"


def test_albums_have_every_slot_when_nobody_else_comes() -> None:
    it = world(slots=8)
    it.clock.now += 60
    for i in range(8):
        it.ask(f"album {i}", 10_000, 100.0)
    assert it.admission.running == 8


def test_an_album_is_not_starved_by_small_requests() -> None:
    it = world(slots=4)
    came = it.clock.now
    for i in range(4 * 60):  # as many as the slots can serve, for a minute
        it.at(came + i / 4, lambda i=i: it.ask(f"small {i}", 100, 1.0))  # type: ignore[misc]
    it.at(came + 0.1, lambda: it.ask("album", 1_000, 10.0))
    it.run(came + 60)
    assert it.began["album"] <= came + 0.1 + 10 + 2, "the time that it takes, and what was ahead of it then"


def test_when_all_are_albums_none_is() -> None:
    it = World(lambda clock: Admission(8, 100, clock=clock))
    it.learn(64, 10_000, 10.0)
    for i in range(8):
        it.ask(f"album {i}", 10_000, 10.0)
    assert it.admission.running == 8


def test_the_wait_is_what_the_slots_have_to_do_first() -> None:
    it = world(slots=4)
    assert it.admission.predicted_wait_s() == 0.0
    for i in range(4):
        it.ask(f"running {i}", 100, 1.0)
    assert it.admission.predicted_wait_s() == pytest.approx(1.0)
    for i in range(8):
        it.ask(f"waiting {i}", 100, 1.0)
    assert it.admission.predicted_wait_s() == pytest.approx(3.0)
    it.ask("twice as long", 200, 2.0)
    assert it.admission.predicted_wait_s() == pytest.approx(3.5)
    it.clock.now += 0.5
    assert it.admission.predicted_wait_s() == pytest.approx(3.0)


def test_an_idle_time_does_not_make_a_server_slow() -> None:
    it = world(slots=1)
    it.clock.now += 3600
    for i in range(3):
        it.ask(str(i), 100, 1.0)
    assert it.admission.predicted_wait_s() == pytest.approx(3.0)


def test_who_would_wait_too_long_is_refused_and_told_when_there_is_room() -> None:
    it = world(slots=4, max_wait_s=2.0)
    for i in range(8):
        it.ask(str(i), 100, 1.0)
    with pytest.raises(Overloaded, match="too long") as refused:
        for i in range(8):
            it.ask(f"more {i}", 100, 1.0)
    assert it.admission.waiting == 5
    assert 1.0 <= refused.value.retry_after_s <= 2.0
    it.admission.enter(priority=BACKGROUND)  # nobody waits for it


def test_albums_in_line_keep_nobody_else_out() -> None:
    it = world(slots=4, max_waiting=20, max_wait_s=30.0)
    with pytest.raises(Overloaded, match="as large as this one"):
        for i in range(20):
            it.ask(f"album {i}", 1_000, 10.0)
    it.ask("small", 100, 1.0)
    assert it.began["small"] == it.clock.now


@pytest.mark.parametrize("clients", [30, 200])
def test_a_client_that_obeys_gets_in(clients: int) -> None:
    """All at once, far more than there is room for: whoever comes back when he was told to is let in, most of them the
    first time."""
    it = world(slots=4, max_wait_s=1.0)
    refusals = dict.fromkeys(range(clients), 0)
    began = it.clock.now
    told: list[float] = []

    def come(client: int) -> None:
        try:
            it.ask(f"client {client}", 100, 0.5)
        except Overloaded as error:
            refusals[client] += 1
            told.append(error.retry_after_s)
            it.at(it.clock.now + error.retry_after_s, lambda: come(client))

    for client in range(clients):
        come(client)
    it.run()
    assert 1.0 <= min(told) <= max(told) <= 120.0
    assert all(f"client {client}" in it.began for client in range(clients))
    assert max(refusals.values()) <= 2
    assert sum(count > 1 for count in refusals.values()) <= clients / 20
    assert max(it.began.values()) - began <= 4 * clients * 0.5 / 4, "and the slots are not left idle meanwhile"


def test_those_who_do_not_come_back_are_not_waited_for() -> None:
    it = world(slots=4, max_wait_s=1.0)

    def burst() -> list[float]:
        told = []
        for i in range(100):
            try:
                it.ask(f"{it.clock.now} {i}", 100, 1.0)
            except Overloaded as error:
                told.append(error.retry_after_s)
        return told

    first = burst()
    assert first == sorted(first)
    assert first[-1] > 20, "a quarter of a second for each of a hundred"
    it.run()
    assert burst()[0] < 2, "nobody came, and all was done"


def test_a_long_answer_that_is_allowed_is_not_expected() -> None:
    it = World(lambda clock: Admission(4, 100, clock=clock))
    for _ in range(20):
        ticket = it.admission.enter()
        ticket.ask(20, 8_000)
        it.clock.now += 1.0
        ticket.answered(50)
        ticket.leave()
    chat = it.admission.enter()
    chat.ask(20, 8_000)
    assert chat.tokens == 20 + 100, "twice the answers of late"
    assert not chat.is_large
    short = it.admission.enter()
    short.ask(20, 5)
    assert short.tokens == 25


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
