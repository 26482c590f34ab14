"""Admission: who runs, who waits, who is sent away."""

from __future__ import annotations

import asyncio

import pytest

from sightline.errors import Overloaded
from sightline.routing import Admission

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
