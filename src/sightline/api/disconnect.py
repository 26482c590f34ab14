"""A client that leaves ends its work, at every stage."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientDisconnected(Exception):
    """Nobody waits for the answer any more. Never shown to anyone; the access log has it as status 499."""


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T], *signs: Coroutine[Any, Any, object]) -> T:
    """Runs `work`; when the client leaves first, cancels it, waits until it has cleaned up, and raises
    `ClientDisconnected`. `signs` are more ways to tell that it has left: each ends when it has.

    The body must have been read: from then on all that `receive` can say is that the client has gone.
    """
    working = asyncio.create_task(work)
    leaving = [asyncio.create_task(sign) for sign in (_disconnect(receive), *signs)]
    tasks = (working, *leaving)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnected
    finally:
        # Also when we are cancelled ourselves: nothing of a request outlives it.
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
