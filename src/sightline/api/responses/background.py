"""Responses that run while nobody waits: each in a task of its own, its stream written down for whoever asks for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from sightline import logs
from sightline.access import permit as permits
from sightline.api.errors import is_bug
from sightline.api.responses.answer import Answer, to_frame
from sightline.api.responses.objects import WireEvent
from sightline.api.responses.store import ResponseStore, StoredResponse, with_response
from sightline.api.sse import DONE
from sightline.items import Item

log = logging.getLogger(__name__)

Items = Callable[[], AsyncGenerator[Item, None]]
"""What the service makes of the request, once it is asked."""


@dataclass(slots=True)
class Run:
    """One response under way."""

    answer: Answer
    record: StoredResponse
    frames: list[bytes] = field(default_factory=list)
    """A frame for each sequence number."""
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    """By its owner; else it is the server that ends."""
    done: bool = False
    _grown: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, events: Sequence[WireEvent]) -> None:
        self.frames += map(to_frame, events)
        self._wake()

    def end(self) -> None:
        self.done = True
        self._wake()

    async def follow(self, starting_after: int) -> AsyncGenerator[bytes, None]:
        """The frames behind a sequence number, those of the future as they come."""
        position = starting_after + 1
        while True:
            grown = self._grown
            if position < len(self.frames):
                yield b"".join(self.frames[position:])
                position = len(self.frames)
            elif self.done:
                return
            else:
                await grown.wait()

    def _wake(self) -> None:
        grown, self._grown = self._grown, asyncio.Event()
        grown.set()


class Background:
    """The runs of one server."""

    def __init__(self, store: ResponseStore) -> None:
        self._store = store
        self._runs: dict[str, Run] = {}

    async def start(self, run: Run, items: Items) -> None:
        """Returns when it is stored, as one that waits."""
        await self._store.put(run.record)
        run.add(run.answer.create())
        self._runs[run.answer.id] = run
        run.task = asyncio.create_task(self._run(run, items))
        run.task.add_done_callback(permits.current().hold())

    def find(self, response_id: str, tenant: str) -> Run | None:
        """A run that has not ended; None for one of another tenant."""
        run = self._runs.get(response_id)
        return run if run is not None and run.record.tenant == tenant else None

    async def cancel(self, run: Run) -> None:
        """Returns when it has ended and is stored, cancelled unless it was over before."""
        assert run.task is not None
        run.cancelled = True
        run.task.cancel()
        await asyncio.wait([run.task])

    async def _run(self, run: Run, items: Items) -> None:
        try:
            async with aclosing(items()) as stream:
                async for item in stream:
                    run.add(run.answer.feed(item))
        except asyncio.CancelledError:
            run.add(run.answer.cancel())
            if not run.cancelled:
                raise
        except Exception as error:
            if is_bug(error):
                log.error("response %s met a bug: %s", run.answer.id, logs.to_trace(error))
            run.add(run.answer.fail(error))
        finally:
            await self._finish(run)

    async def _finish(self, run: Run) -> None:
        log.info("response %s has ended in the background: %s", run.answer.id, run.answer.response.status)
        try:
            await self._store.put(with_response(run.record, run.answer.response, run.frames))
        finally:
            del self._runs[run.answer.id]
            run.end()


class Replay:
    """Frames that are written already, as an `EventStream` wants them."""

    def to_frames(self, frames: bytes) -> bytes:
        return frames

    def end(self) -> bytes:
        return DONE

    def to_error_frame(self, error: Exception) -> bytes:
        return DONE
