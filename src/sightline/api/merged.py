"""Several requests of one client as one stream of the service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import accumulate

from sightline.items import ChoiceEvent, Item, Prepared

_WAITING = 64
"""Items that may wait for a slow reader."""


async def merged(streams: Sequence[AsyncGenerator[Item, None]], counts: Sequence[int]) -> AsyncGenerator[Item, None]:
    """The streams' items as they come. `counts`: choices of each; the choices are numbered through, stream by stream.

    There is one `Prepared`, of the stream that begins first. The first error of any ends all of them.
    """
    items: asyncio.Queue[Item | BaseException | None] = asyncio.Queue(_WAITING)

    async def pump(stream: AsyncGenerator[Item, None], offset: int) -> None:
        last: BaseException | None = None
        try:
            async with aclosing(stream):
                async for item in stream:
                    await items.put(
                        item if isinstance(item, Prepared) else ChoiceEvent(item.index + offset, item.event)
                    )
        except Exception as error:
            last = error
        await items.put(last)

    offsets = [0, *accumulate(counts)]
    tasks = [asyncio.create_task(pump(stream, offset)) for stream, offset in zip(streams, offsets, strict=False)]
    running, begun = len(tasks), False
    try:
        while running:
            item = await items.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            elif not (begun and isinstance(item, Prepared)):
                begun = True
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for stream in streams:  # those whose task was cancelled before it began
            await stream.aclose()
