"""Whose turn it is: never more than a few, nobody starved, no place lost."""

from __future__ import annotations

import asyncio

import pytest

from sightline.images.turns import Turns

pytestmark = pytest.mark.anyio


class Crowd:
    """Tasks that hold a place until they are told to go, and the order in which they got it."""

    def __init__(self, at_once: int) -> None:
        self._turns = Turns(at_once)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._go: dict[str, asyncio.Event] = {}
        self.inside: list[str] = []

    async def join(self, *names: str) -> None:
        for name in names:
            self._go[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._hold(name))
        await settle()

    async def _hold(self, name: str) -> None:
        async with self._turns.take(tenant=name[0]):
            self.inside.append(name)
            try:
                await self._go[name].wait()
            finally:
                self.inside.remove(name)

    async def leave(self, name: str) -> None:
        self._go[name].set()
        await settle()

    async def cancel(self, name: str) -> None:
        self._tasks[name].cancel()
        await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_tenant_alone_has_every_place_and_no_more() -> None:
    crowd = Crowd(3)
    await crowd.join("a1", "a2", "a3", "a4", "a5")
    assert crowd.inside == ["a1", "a2", "a3"]
    await crowd.leave("a2")
    assert crowd.inside == ["a1", "a3", "a4"]


async def test_the_next_place_goes_to_whose_tenant_has_the_fewest() -> None:
    crowd = Crowd(2)
    await crowd.join(*(f"a{i}" for i in range(9)), "b1", "b2")
    await crowd.leave("a0")
    assert crowd.inside == ["a1", "b1"]
    await crowd.leave("a1")
    assert crowd.inside == ["b1", "a2"]  # b holds one already: a's turn
    await crowd.leave("b1")
    assert crowd.inside == ["a2", "b2"]


async def test_who_gives_up_waiting_takes_no_place() -> None:
    crowd = Crowd(1)
    await crowd.join("a1", "b1", "c1")
    await crowd.cancel("b1")
    await crowd.leave("a1")
    assert crowd.inside == ["c1"]


async def test_a_place_given_to_who_was_just_cancelled_is_passed_on() -> None:
    turns = Turns(1)
    entered = asyncio.Event()

    async def wait() -> None:
        async with turns.take("b"):
            entered.set()

    async with turns.take("a"):
        cancelled = asyncio.create_task(wait())
        following = asyncio.create_task(wait())
        await settle()
    cancelled.cancel()  # its turn has been given to it, and it has not run since
    await asyncio.wait_for(following, 1)
    assert cancelled.cancelled()
    assert entered.is_set()


async def test_an_error_inside_gives_the_place_back() -> None:
    turns = Turns(1)
    with pytest.raises(KeyError):
        async with turns.take("a"):
            raise KeyError
    await asyncio.wait_for(turns.take("b").__aenter__(), 1)
