"""The parent's engine: keeps one child alive, and gives requests to it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from sightline.config import ModelConfig
from sightline.engines import EngineInfo, EngineState, find_entry
from sightline.engines.worker.child import Child
from sightline.engines.worker.restarts import RestartPolicy
from sightline.errors import EngineUnavailable
from sightline.types import (
    EmbeddingRequest,
    Embeddings,
    EngineRequest,
    Event,
    TokenCount,
    TranscriptionEvent,
    TranscriptionRequest,
)

log = logging.getLogger(__name__)


class WorkerEngine:
    """An `Engine` that runs another in a child process, and starts it again when it dies.

    While it is being started again, requests wait for it, for at most `config.start_timeout_s`; when it only dies, they
    are refused at once (`RestartPolicy`). A request under way when it dies ends with `EngineUnavailable` if none of its
    events had been taken (then it can simply be run again), else with `EngineFailed`.
    """

    def __init__(
        self, config: ModelConfig, *, ping_timeout_s: float = 30.0, restarts: RestartPolicy | None = None
    ) -> None:
        """`ping_timeout_s`: a child whose event loop does not answer for so long is killed.

        Raises as `find_entry`.
        """
        self._config = config
        self._entry = find_entry(config.engine)
        self._ping_timeout_s = ping_timeout_s
        self._policy = restarts or RestartPolicy()
        self._restarts = 0
        self._info: EngineInfo | None = None
        self._child: Child | None = None
        """The one that is ready, or being started."""
        self._up: asyncio.Future[Child | None] | None = None
        """Pending while loading; the child when it is ready; None when there is none to wait for."""
        self._supervisor: asyncio.Task[EngineUnavailable] | None = None

    @property
    def info(self) -> EngineInfo:
        """Raises `EngineUnavailable` before the first start."""
        if self._info is None:
            raise EngineUnavailable("The engine has not been started.")
        return self._info

    @property
    def state(self) -> EngineState:
        """`failed`: given up for now, or closed."""
        if self._up is None:
            return "unloaded"
        if not self._up.done():
            return "loading"
        return "ready" if self._up.result() is not None else "failed"

    @property
    def progress(self) -> float | None:
        """Of the child that is being started, as far as its engine tells."""
        return self._child.progress if self._child is not None else None

    @property
    def measures(self) -> Mapping[str, float]:
        """Of the engine in the child, as it last told: it is asked every few seconds."""
        return self._child.measures if self._child is not None and not self._child.lost else {}

    @property
    def restarts(self) -> int:
        """Times that a child was started in another's place."""
        return self._restarts

    @property
    def pid(self) -> int | None:
        """Of the child that is ready or being started."""
        return self._child.pid if self._child is not None and not self._child.lost else None

    async def start(self) -> None:
        """Raises `EngineUnavailable`, with the engine's own reason if it gave one; else the log has its last words."""
        up = self._up = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervisor of {self._config.name}")
        await asyncio.wait({up, self._supervisor}, return_when=asyncio.FIRST_COMPLETED)
        if not up.done() or up.result() is None:
            await asyncio.wait({self._supervisor})
            problem = None if self._supervisor.cancelled() else self._supervisor.result()
            raise problem or EngineUnavailable(_STOPPED)

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        return await (await self._ready_child()).count_tokens(request)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        child = await self._ready_child()
        async with aclosing(child.generate(request)) as events:
            async for event in events:
                yield event

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """As the engine in the child does. Raises `UnsupportedFeature` where it does not."""
        return await (await self._ready_child()).embed(request)

    async def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[TranscriptionEvent, None]:
        """As the engine in the child does. Raises `UnsupportedFeature` where it does not."""
        child = await self._ready_child()
        async with aclosing(child.transcribe(request)) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        """Streams end at once; the child has `CLOSE_GRACE_S` to close its engine."""
        if self._supervisor is None:
            return
        self._set_up(None)
        if self._child is not None:
            self._child.abandon(_STOPPED)
        self._supervisor.cancel()
        await asyncio.wait({self._supervisor})

    async def _ready_child(self) -> Child:
        """Waits for a child that is being started. Raises `EngineUnavailable` when there is none to wait for."""
        deadline = time.monotonic() + self._config.start_timeout_s
        while True:
            up = self._up
            if up is None:
                raise EngineUnavailable("The engine has not been started.")
            if not up.done():
                await asyncio.wait({up}, timeout=max(0.0, deadline - time.monotonic()))
            if not up.done():
                raise EngineUnavailable("The engine is still being started.")
            child = up.result()
            if child is None:
                raise EngineUnavailable("The engine is not running." if self._supervised else _STOPPED)
            if not child.lost:
                return child

    # --- supervision ---------------------------------------------------------------------------------------------

    @property
    def _supervised(self) -> bool:
        return self._supervisor is not None and not self._supervisor.done()

    async def _supervise(self) -> EngineUnavailable:
        """Runs one child after the other until it is cancelled; returns only if the first one cannot load."""
        try:
            return await self._run_children()
        except Exception:
            log.exception("a bug in the supervision of model %s", self._config.name)
            self._set_up(None)
            return EngineUnavailable("The engine is not running.")

    async def _run_children(self) -> EngineUnavailable:
        while True:
            child = self._child = Child(
                self._config, self._entry, ping_timeout_s=self._ping_timeout_s, on_lost=self._on_lost
            )
            problem = None
            ready_at = None
            try:
                info = await child.start()
                ready_at = time.monotonic()
                self._info = info
                if not child.lost:  # it can have died between its word and our hearing it
                    self._set_up(child)
                await child.watch()
            except EngineUnavailable as error:
                problem = error
            finally:
                ended = await child.stop()
            now = time.monotonic()
            self._report(child, ended, problem)
            if self._info is None and problem is not None and (child.hopeless or self._restarts):
                self._set_up(None)
                return problem
            restart = self._policy.died(now, served=child.served, up_s=now - ready_at if ready_at else 0.0)
            if restart.gives_up:
                log.error("model %s: it only dies; the next try is in %g s", self._config.name, restart.delay_s)
                self._set_up(None)
            await asyncio.sleep(restart.delay_s)
            self._restarts += 1

    def _report(self, child: Child, ended: str, problem: EngineUnavailable | None) -> None:
        if child.hopeless:  # it was we who ended its process: how says nothing
            what = f"the engine did not start: {problem}"
        else:
            reason = f" ({problem})" if problem is not None else ""
            what = f"the engine's process {child.pid} has ended: {ended}{reason}"
        lines = "; its last lines:\n  " + "\n  ".join(child.last_lines) if child.last_lines else ""
        log.error("model %s: %s%s", self._config.name, what, lines)

    def _on_lost(self, child: Child) -> None:
        """From now on requests wait for the next child, unless there is none to wait for."""
        if child is self._child and self._up is not None and self._up.done() and self._up.result() is child:
            self._up = asyncio.get_running_loop().create_future()

    def _set_up(self, child: Child | None) -> None:
        assert self._up is not None
        if self._up.done():
            self._up = asyncio.get_running_loop().create_future()
        self._up.set_result(child)


_STOPPED = "The engine is being stopped."
