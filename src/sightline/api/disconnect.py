"""A client that leaves ends its work, at every stage."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientDisconnected(Exception):
    """Nobody waits for the answer any more. Never shown to anyone; the access log has it as status 499."""


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Runs `work`; when the client leaves first, cancels it, waits until it has cleaned up, and raises
    `ClientDisconnected`.

    The body must have been read: from then on all that `receive` can say is that the client has gone.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnect(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnected
    finally:
        # Also when we are cancelled ourselves: nothing of a request outlives it.
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait((working, leaving))


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
