"""The parent: keeps one core and its front ends alive, replaces front ends one by one, and ends them in order.

It answers no request itself. It holds the listening sockets, which every front end inherits: a front end that comes or
goes, however it goes, takes no waiting connection with it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from sightline.access.gate import Gate, keys_path
from sightline.config import Settings
from sightline.engines.worker.restarts import RestartPolicy
from sightline.errors import SightlineError
from sightline.frontends import orders
from sightline.frontends.processes import Process, in_words

log = logging.getLogger(__name__)

RELOADED: Final = frozenset(
    {"allowed_hosts", "images", "fetch", "http", "cors", "optimized", "files", "log_level", "log_format"}
)
"""Settings that front ends alone go by, and so take over when they are replaced. All others are the core's, or were
used when the sockets were opened: they count from the server's next start."""

_FRONT_UP_S: Final = 60.0
_LAST_WORDS_S: Final = 2.0
"""For front ends whose core has died, to tell their clients."""
_OVERTIME_S: Final = 3.0
"""More than a process was given to end by itself, until it is killed."""
_CORE_CLOSES_S: Final = 15.0
_AGAIN_S: Final = 1.0
"""After the machine had no process or descriptor left."""


class Supervisor:
    """Life: made -> `run`, which returns after SIGTERM or SIGINT. SIGHUP replaces the front ends."""

    def __init__(
        self,
        settings: Settings,
        listeners: Sequence[socket.socket],
        reload: Callable[[], Settings],
    ) -> None:
        """`reload` reads the configuration anew; raises a `SightlineError` for one that cannot be used."""
        self._settings = settings
        self._listeners = listeners
        self._processes = settings.workers
        self._reload = reload
        self._guarded = False
        """Whether there have been keys, as far as was seen whenever a process was started."""
        self._stopping = asyncio.Event()
        self._hurrying = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._core: Process | None = None
        self._fronts: dict[int, Process] = {}
        """Each in its place; one that retires is in none."""
        self._moved = asyncio.Event()
        """Set, and replaced by another, when one has taken another's place."""
        self._retiring: set[asyncio.Task[None]] = set()

    def run(self) -> None:
        asyncio.run(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        replacing: set[asyncio.Task[None]] = set()

        def replace() -> None:
            task = loop.create_task(self._replace_all())
            replacing.add(task)
            task.add_done_callback(replacing.discard)

        loop.add_signal_handler(signal.SIGHUP, replace)
        policy = RestartPolicy()
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                await self._run_once()
            except OSError as error:
                log.error("a process could not be started: %s", error)
            finally:
                await _cancelled(replacing)
                await self._end_all()
            if not self._stopping.is_set():
                now = time.monotonic()
                restart = policy.died(now, served=False, up_s=now - began)
                log.error("the core is started again in %.1f s", restart.delay_s)
                await _first_of(self._stopping.wait(), timeout_s=restart.delay_s)

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._hurrying.set()
        self._stopping.set()

    async def _run_once(self) -> None:
        """One core, and its front ends, until it dies or we are to stop and they have drained."""
        core = self._core = await Process.start("core", "the core", self.order())
        keeping = [asyncio.create_task(self._keep(core, index)) for index in range(self._processes)]
        try:
            await _first_of(self._stopping.wait(), _done(core), *map(_done_task, keeping))
            if core.exited.done():
                log.error("the core has ended: %s", in_words(core.exited.result()))
        finally:
            for task in keeping:
                task.cancel()
            await asyncio.wait(keeping)
        for task in keeping:
            if not task.cancelled():
                task.result()  # raises what ended it
        if self._stopping.is_set():
            await self._drain()

    def order(self) -> orders.Start:
        """What a process is started with now."""
        with suppress(SightlineError):  # the process meets it too, and says so
            gate = Gate(self._settings.access, keys_path(self._settings), guarded=self._guarded)
            self._guarded = not gate.is_open
        return orders.Start(self._settings, self._processes, self._guarded)

    # --- front ends ----------------------------------------------------------------------------------------------

    async def _keep(self, core: Process, index: int) -> None:
        """Starts a front end again whenever the one in this place ends without having been replaced."""
        policy = RestartPolicy()
        while True:
            try:
                self._fronts[index] = await self._start(core, index)
            except OSError as error:
                log.error("front end %d cannot be started now: %s", index, error)
                await asyncio.sleep(_AGAIN_S)
                continue
            began = time.monotonic()
            while not (front := self._fronts[index]).exited.done():
                await _first_of(_done(front), self._moved.wait())
            front.close()
            now = time.monotonic()
            restart = policy.died(now, served=front.up.is_set(), up_s=now - began if front.up.is_set() else 0.0)
            log.error("%s has ended: %s; it is started again", front.name, in_words(front.exited.result()))
            await asyncio.sleep(restart.delay_s)

    async def _start(self, core: Process, index: int) -> Process:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            front = await Process.start("front", f"front end {index}", self.order(), [theirs, *self._listeners])
            core.send(orders.Join(), ours.detach())
        return front

    async def _replace_all(self) -> None:
        """One after the other: a new one answers before the old one is told to go, in its own time."""
        async with self._reloading:
            if self._core is None or self._stopping.is_set():
                return
            if not self._takes_over():
                return
            core = self._core
            for index in range(self._processes):
                if not await self._replace(core, index):
                    return
            log.info("%d front ends have been replaced", self._processes)

    async def _replace(self, core: Process, index: int) -> bool:
        """Whether it has been."""
        try:
            new = await self._start(core, index)
        except OSError as error:
            log.error("front end %d cannot be replaced now: %s", index, error)
            return False
        try:
            if not await new.is_up(_FRONT_UP_S):
                log.error("%s was to be replaced, and its successor did not start (%s)", new.name, _how(new))
                return False
            old, self._fronts[index] = self._fronts.get(index), new
        finally:
            if self._fronts.get(index) is not new:
                await new.kill()
        self._moved.set()
        self._moved = asyncio.Event()
        if old is not None:
            retiring = asyncio.create_task(self._retire(old))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)
        return True

    async def _retire(self, old: Process) -> None:
        """It goes in its own time, or is killed when the server ends."""
        try:
            old.send(orders.Retire())
            await old.ends(self._settings.request_timeout_s + _OVERTIME_S)
        finally:
            await old.kill()

    def _takes_over(self) -> bool:
        """What can change, of a configuration that is whole; else everything stays as it was, and False."""
        try:
            new = self._reload()
        except SightlineError as error:
            log.error("the configuration stays as it was, and nothing is replaced: %s", error.message)
            return False
        changed = [
            name for name in Settings.__struct_fields__ if getattr(new, name) != getattr(self._settings, name)
        ]  # fmt: skip
        later = [name for name in changed if name not in RELOADED]
        if later:
            log.warning("these settings have changed, and count from the next start on: %s", ", ".join(later))
        now = {name: getattr(new, name) for name in changed if name in RELOADED}
        log.info("front ends are replaced; settings that change: %s", ", ".join(now) or "none")
        self._settings = msgspec.structs.replace(self._settings, **now)
        return True

    # --- the end -------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Front ends finish what they have begun, then the core ends."""
        log.info("the server is being stopped")
        for front in self._fronts.values():
            front.send(orders.Drain())
        exits = [*map(_done, self._fronts.values()), *map(_done_task, self._retiring)]
        if exits:
            drained = asyncio.gather(*exits)
            await _first_of(drained, self._hurrying.wait(), timeout_s=self._settings.drain_s + _OVERTIME_S)

    async def _end_all(self) -> None:
        """Whatever still runs ends now."""
        fronts = [front for front in self._fronts.values() if not front.exited.done()]
        patience_s = 0.0 if self._hurrying.is_set() or self._stopping.is_set() else _LAST_WORDS_S
        if fronts and patience_s:
            await asyncio.wait([front.exited for front in fronts], timeout=patience_s)
        for front in list(self._fronts.values()):
            await front.kill()
        self._fronts.clear()
        await _cancelled(self._retiring)
        if self._core is not None:
            self._core.close()
            await self._core.ends(0.0 if self._hurrying.is_set() else _CORE_CLOSES_S)
            self._core = None


async def _first_of(*works: object, timeout_s: float | None = None) -> None:
    tasks = [asyncio.ensure_future(work) for work in works]  # type: ignore[call-overload]  # all are awaitable
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Returns when they have cleaned up."""
    if waiting := list(tasks):
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)


async def _done(process: Process) -> None:
    await asyncio.wait([process.exited])


async def _done_task(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])


def _how(process: Process) -> str:
    return in_words(process.exited.result()) if process.exited.done() else "it takes too long"
