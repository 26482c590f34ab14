"""A client that leaves: told by our server with a callback, by others through `receive`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sightline.api.disconnect import ClientDisconnected, Presence, unless_disconnected

pytestmark = pytest.mark.anyio


async def nobody_says(*_: Any) -> Any:
    raise AssertionError("the server says it by a callback: `receive` is not asked")


async def test_work_is_cancelled_when_the_client_leaves_and_has_cleaned_up_before_it_is_said() -> None:
    scope: dict[str, Any] = {}
    looks: list[None] = []
    Presence(lambda: looks.append(None)).put(scope)
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        asyncio.get_running_loop().call_soon(Presence.end, scope)
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0)
            cleaned = True

    before = asyncio.all_tasks()
    with pytest.raises(ClientDisconnected):
        await unless_disconnected(scope, nobody_says, work())
    task = asyncio.current_task()
    assert (cleaned, len(looks)) == (True, 1)
    assert task is not None
    assert task.cancelling() == 0, "the request's task goes on, to write its line in the log"
    assert asyncio.all_tasks() == before


async def test_one_that_had_left_before_starts_nothing() -> None:
    scope: dict[str, Any] = {}
    Presence(lambda: None).put(scope)
    Presence.end(scope)
    begun = False

    async def work() -> None:
        nonlocal begun
        begun = True

    with pytest.raises(ClientDisconnected):
        await unless_disconnected(scope, nobody_says, work())
    assert not begun


async def test_one_that_leaves_when_it_has_its_answer_interrupts_nothing() -> None:
    scope: dict[str, Any] = {}
    Presence(lambda: None).put(scope)

    async def work() -> str:
        return "answer"

    assert await unless_disconnected(scope, nobody_says, work()) == "answer"
    Presence.end(scope)
    await asyncio.sleep(0)  # a cancelled task would find out here


async def test_a_server_that_stops_is_told_from_a_client_that_leaves() -> None:
    scope: dict[str, Any] = {}
    Presence(lambda: None).put(scope)
    asking = asyncio.create_task(unless_disconnected(scope, nobody_says, asyncio.sleep(3600)))
    await asyncio.sleep(0)
    Presence.end(scope)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


async def test_a_deadline_inside_stays_what_it_is() -> None:
    """It ends the same task, which is not to be taken for a client that left."""
    scope: dict[str, Any] = {}
    Presence(lambda: None).put(scope)

    async def work() -> None:
        async with asyncio.timeout(0):
            await asyncio.sleep(3600)

    with pytest.raises(TimeoutError):
        await unless_disconnected(scope, nobody_says, work())


async def test_other_servers_are_asked() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    before = asyncio.all_tasks()
    with pytest.raises(ClientDisconnected):
        await unless_disconnected({}, receive, asyncio.sleep(3600))
    assert asyncio.all_tasks() == before, "no task is left behind"
