"""Streams that are told: whoever has an item calls, and goes on when it has been taken.

That is how an answer goes through the server: in one task, each event on its way to the client before the engine is
asked for the next, without a queue in between. Whoever would rather pull has `pulled`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, TypeVar

T = TypeVar("T")

Tell = Callable[[T], Awaitable[None] | None]
"""Takes an item. What it returns is awaited before the next may come; None: it may come at once."""
Source = Callable[[Tell[T]], Coroutine[Any, Any, None]]
"""Tells all items of a stream, and returns or raises when there are no more. Cancelling it ends the work."""

_WAITING: Final = 64
"""Items that may wait for a slow reader before the source is held up."""


async def taken(taking: Awaitable[None] | None) -> None:
    """Returns when the next item may come. `taking`: what a `Tell` returned."""
    if taking is not None:
        await taking


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


async def pulled(source: Source[T]) -> AsyncGenerator[T, None]:
    """What a source tells. Closing it ends the source.

    The source runs in a task of its own, because a consumer may pull from one task and close from another, which a
    deadline scope inside a generator does not survive.
    """
    items: asyncio.Queue[T | _End] = asyncio.Queue(_WAITING)

    async def work() -> None:
        error: BaseException | None = None
        try:
            await source(items.put)
        except asyncio.CancelledError:
            raise  # nobody takes items any more
        except BaseException as caught:
            error = caught
        await items.put(_End(error))

    working = asyncio.create_task(work())
    try:
        while not isinstance(item := await items.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        working.cancel()
        await asyncio.wait([working])


def told(items: AsyncGenerator[T, None]) -> Source[T]:
    """A source of what a generator yields."""

    async def source(tell: Tell[T]) -> None:
        async with aclosing(items):
            async for item in items:
                await taken(tell(item))

    return source
