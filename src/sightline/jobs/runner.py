"""The workers inside a server: they lease items, have them answered, and see every batch to its end.

    lease -> execute -> complete        an answer, or an error that would be the same again
                     -> give back       one that may pass: later, at most `MAX_ATTEMPTS` times; a refusal by an
                                        engine that is away or full is none of them
                     -> release         the server ends

Beside them a heartbeat renews what they hold and ends what they have lost (cancelled, expired, or given to another
because this one was away for too long), and a sweep does what time does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

from sightline import metrics
from sightline.errors import CapacityError
from sightline.jobs import Backlog, Lease, Result, Store
from sightline.jobs.files import Files
from sightline.jobs.lines import to_message, to_usage
from sightline.jobs.stages import Stages

log = logging.getLogger(__name__)

LEASE_S: Final = 30.0
_HEARTBEAT_S: Final = 1.0
_POLL_S: Final = 1.0
"""How often another server's work is looked for."""
_ORPHANS_S: Final = 3600.0
_DELAYS_S: Final = (0.5, 5.0, 30.0)
"""Before the second try, and those after it."""
_FAILING_S: Final = 2.0
"""After the store could not be used."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a route answered, without HTTP."""

    status_code: int
    request_id: str
    body: bytes
    retryable: bool = False
    """Whether the same may succeed later."""
    began: bool = True
    """False: it was turned away before anything of it ran, because the engine is away or full, or because of limits."""
    is_limited: bool = False
    """It was turned away by the limits of its own key, which is nothing to other items."""
    retry_after_s: float = 0.0


class Bell(Protocol):
    async def listen(self) -> bool:
        """Whether there is something to do; after a while, that nobody has said so."""
        ...


Execute = Callable[[Lease], Awaitable[Answer]]
"""From a leased item to its answer. Raises nothing but bugs; may be cancelled."""


class Runner:
    """Life: made -> `start` -> `close`. Used from one event loop."""

    def __init__(
        self,
        store: Store,
        files: Files,
        stages: Stages,
        execute: Execute,
        *,
        at_once: int,
        bell: Bell | None = None,
        lease_s: float = LEASE_S,
        heartbeat_s: float = _HEARTBEAT_S,
        poll_s: float = _POLL_S,
    ) -> None:
        """`at_once`: items under way, at most. `bell`: wakes it when there is work from elsewhere."""
        self.name = f"worker-{os.urandom(6).hex()}"
        self._store = store
        self._files = files
        self._stages = stages
        self._execute = execute
        self._at_once = at_once
        self._bell = bell
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._poll_s = poll_s
        self._under_way: dict[str, _Run] = {}
        self._turned_away = 0
        """Answers in a row that were refusals: while there are any, one item at a time asks whether that is over."""
        self._news = asyncio.Event()
        self._hungry = asyncio.Event()
        """Set while it could do more than it has."""
        self._failing: set[str] = set()
        """What the store could not do when it was last asked to."""
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        loops = [self._work(), self._beat(), self._advance(), self._sweep(), self._sweep_orphans()]
        if self._bell is not None and self._at_once:
            loops.append(self._listen(self._bell))
        self._loops = [asyncio.create_task(loop) for loop in loops]

    async def close(self) -> None:
        """What is under way is given back, to be done again by the next server. Idempotent."""
        for loop in self._loops:
            loop.cancel()
        if self._loops:
            await asyncio.wait(self._loops)
        self._loops = []
        runs = list(self._under_way.values())
        for run in runs:
            run.task.cancel()
        if runs:
            await asyncio.wait([run.task for run in runs])
            with suppress(CapacityError):
                await self._store.release([run.lease for run in runs])

    def wake(self) -> None:
        """There is something to do."""
        self._news.set()

    @contextmanager
    def _excused(self, what: str) -> Iterator[None]:
        """What the store cannot do now is tried again later, and told once; so is what met a bug, told each time."""
        try:
            yield
        except CapacityError as error:
            if what not in self._failing:
                self._failing.add(what)
                log.warning("could not %s: %s", what, error.message)
        except Exception:
            log.exception("could not %s, because of a bug", what)
        else:
            if what in self._failing:
                self._failing.discard(what)
                log.info("can %s again", what)

    # --- items ------------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        while True:
            self._news.clear()
            with self._excused("lease work"):
                at_once = self._at_once if not self._turned_away else min(1, self._at_once)
                free = at_once - len(self._under_way)
                for lease in await self._store.lease(self.name, free, self._lease_s) if free > 0 else ():
                    run = _Run(lease, asyncio.create_task(self._run(lease)))
                    self._under_way[lease.item.id] = run
                    run.task.add_done_callback(lambda _, run=run: self._ended(run))  # type: ignore[misc]
                if len(self._under_way) < at_once:
                    self._hungry.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._news.wait()
            self._hungry.clear()

    async def _listen(self, bell: Bell) -> None:
        """Whoever is busy leaves it to others to be woken."""
        while True:
            await self._hungry.wait()
            with self._excused("listen"):
                if await bell.listen():
                    self._hungry.clear()  # until it has looked
                    self._news.set()

    def _ended(self, run: _Run) -> None:
        if self._under_way.get(run.lease.item.id) is run:  # else it was given back, and is under way once more
            del self._under_way[run.lease.item.id]
        self._news.set()

    async def _run(self, lease: Lease) -> None:
        try:
            answer = await self._execute(lease)
        except Exception:
            log.exception("item %s met a bug", lease.item.id)
            answer = Answer(500, "", b'{"error":{"message":"The server had an error.","type":"server_error"}}', True)
        if not answer.is_limited:
            self._turned_away = 0 if answer.began else self._turned_away + 1
        while True:
            if await self._is_kept(lease, answer):
                return
            await asyncio.sleep(_FAILING_S)  # the lease is renewed meanwhile, or somebody else does it

    async def _is_kept(self, lease: Lease, answer: Answer) -> bool:
        """Or of no use any more."""
        with self._excused("keep a result"):
            if answer.retryable:
                failed = Result(request_id=answer.request_id, error_message=to_message(answer.body))
                tries = lease.attempt if answer.began else max(1, self._turned_away)
                delay_s = answer.retry_after_s if answer.is_limited else max(answer.retry_after_s, _delay_s(tries))
                await self._store.give_back(lease, failed, delay_s, tried=answer.began)
            else:
                usage = to_usage(answer.body)
                await self._store.complete(
                    lease, Result(answer.status_code, answer.request_id, answer.body, usage=usage)
                )
            return True
        return False

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            with self._excused("renew leases"):
                await self._end_lost()

    async def _end_lost(self) -> None:
        for lease in await self._store.renew([run.lease for run in self._under_way.values()], self._lease_s):
            if (run := self._under_way.get(lease.item.id)) is not None and run.lease is lease:
                run.task.cancel()

    # --- batches ----------------------------------------------------------------------------------------------------

    async def _advance(self) -> None:
        while True:
            with self._excused("see to a batch"):
                while (batch := await self._store.due(self.name, self._lease_s)) is not None:
                    await self._stages.advance(batch)
                    self._news.set()
            await asyncio.sleep(self._poll_s / 4)

    async def _sweep(self) -> None:
        while True:
            with self._excused("sweep"):
                await self._store.sweep()
                await self._files.sweep()
                _tell(await self._store.backlog())
            await asyncio.sleep(self._poll_s)

    async def _sweep_orphans(self) -> None:
        while True:
            with self._excused("sweep blobs"):
                await self._files.sweep_orphans()
            await asyncio.sleep(_ORPHANS_S)


@dataclass(frozen=True, slots=True)
class _Run:
    lease: Lease
    task: asyncio.Task[None]


def _tell(backlog: Backlog) -> None:
    metrics.JOBS_UNFINISHED.set(backlog.batches)
    metrics.JOBS_WAITING.set(backlog.waiting)
    metrics.JOBS_RUNNING.set(backlog.under_way)
    metrics.JOBS_OLDEST_SECONDS.set(backlog.oldest_s)


def _delay_s(attempt: int) -> float:
    """With jitter: what failed together does not come back together."""
    return _DELAYS_S[min(attempt, len(_DELAYS_S)) - 1] * random.uniform(0.5, 1.0)
