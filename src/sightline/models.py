"""The life of a served model: its engine, its line of requests, whether it is loaded, and whether it may be asked."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from sightline import metrics
from sightline.admission import Admission
from sightline.config import ModelConfig
from sightline.engines import Engine, EngineInfo, EngineState, Measures, ShowsProgress, Supervised
from sightline.errors import EngineUnavailable, SightlineError
from sightline.metrics import ProcessUse, process_use
from sightline.routing import Breaker, Pass, RetryBudget, reload_after_s

log = logging.getLogger(__name__)

_MEASURED = {
    "kv_blocks": metrics.KV_BLOCKS,
    "kv_blocks_used": metrics.KV_BLOCKS_USED,
    "kv_blocks_cached": metrics.KV_BLOCKS_CACHED,
    "embedding_cache_bytes": metrics.EMBEDDING_CACHE_BYTES,
}
_OPENNESS = {"closed": 0.0, "half_open": 0.5, "open": 1.0}


@dataclass(frozen=True, slots=True)
class ModelStatus:
    name: str
    state: EngineState
    engine: str
    created: int
    """Unix seconds when it was configured."""
    info: EngineInfo | None
    """None until the engine has been ready once."""
    available: bool = False
    """Whether a request would be served: at once, or when it has loaded the model."""
    phase: Literal["serving", "closing", "closed"] = "serving"
    """Of its life as a whole: a model that is unloaded for want of requests still serves."""
    progress: float | None = None
    """Of loading, 0..1; None: it is not loading, or its engine does not tell."""
    model: str = ""
    """The model's own name, where `name` is an alias of it too."""
    slots: int = 0
    running: int = 0
    """Requests that hold slots."""
    waiting: int = 0
    """Requests that wait for one."""


class ServedModel:
    """Life: made -> `start` -> `used` by requests -> `close`. Used from one event loop.

    Loaded by `start`, or by the first request where its configuration says `load: demand`; unloaded when nobody has
    used it for `idle_unload_s`, and loaded again by the next request. What fails to load is tried again, later and
    later: by itself, or with `load: demand` by the next request after that time. Meanwhile requests are refused at
    once, so that another model can take them.
    """

    def __init__(self, config: ModelConfig, open_: Callable[[], Engine]) -> None:
        """`open_` makes the engine, anew each time that the model is loaded."""
        self.config = config
        self.name = config.name
        self.engine = open_()
        self.replica = f"{config.name}@0"
        self.admission = Admission(config.max_concurrent, config.max_queue, max_wait_s=config.max_wait_s)
        self.breaker = Breaker()
        self.retries = RetryBudget()
        self._open = open_
        self._created = int(time.time())
        self._starting: asyncio.Task[None] | None = None
        self._failures = 0
        """To load, in a row."""
        self._again: asyncio.TimerHandle | None = None
        """While it waits to be loaded again."""
        self._unloading: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._users = 0
        self._unloads_next = False
        """As soon as nobody uses it: somebody asked for that."""
        self._closed = False
        self._phase: Literal["serving", "closing", "closed"] = "serving"
        self._tell_metrics()

    @property
    def engine(self) -> Engine:
        return self._engine

    @engine.setter
    def engine(self, engine: Engine) -> None:
        self._engine = engine
        # Asked once: a protocol that can be checked at run time takes as long as the rest of `status`.
        self._supervised = engine if isinstance(engine, Supervised) else None

    # --- loading -------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begins to load it, unless that waits for a request."""
        if self.config.load == "start":
            self._load()

    def _load(self) -> asyncio.Task[None]:
        self._starting = asyncio.create_task(self._start())
        self._starting.add_done_callback(lambda task: task.cancelled() or task.exception())  # `state` asks it again
        return self._starting

    async def _start(self) -> None:
        if self._unloading is not None:  # never two of it in memory
            await asyncio.wait([self._unloading])
        began = time.perf_counter()
        try:
            if self._failures:
                self.engine = self._open()
            await self.engine.start()
        except Exception as error:
            self._plan_another(error)
            raise
        self._failures = 0
        log.info("model %s is ready after %.2f s", self.name, time.perf_counter() - began)
        self._rest()

    def _plan_another(self, error: Exception) -> None:
        """After a failure to load."""
        self._failures += 1
        after_s = reload_after_s(self._failures)
        bug = None if isinstance(error, SightlineError) else error
        log.error("model %s failed to load: %s; the next try is in %.1f s", self.name, error, after_s, exc_info=bug)
        self._again = asyncio.get_running_loop().call_later(after_s, self._load_again)

    def _load_again(self) -> None:
        self._again = None
        if self.config.load == "start":
            self._load()

    async def started(self) -> None:
        """Waits for what `start` began. Raises `EngineUnavailable` when it failed."""
        if self._starting is not None:
            await self._loaded()

    async def _loaded(self) -> EngineInfo:
        if self._closed:
            raise EngineUnavailable("The server is being stopped.")
        starting = self._starting
        if starting is None or (self._has_failed and self._again is None):
            starting = self._load()
        elif self._has_failed or (self._failures and self.config.load == "start"):
            raise self._failed_to_load()  # it is tried again by itself, which nobody need wait for
        if not starting.done():
            await asyncio.wait([starting])
        if starting.cancelled() or starting.exception() is not None:
            raise self._failed_to_load()
        return self.engine.info

    def _failed_to_load(self) -> EngineUnavailable:
        return EngineUnavailable(
            f"The model {self.name!r} failed to load. The server's log says why; it is tried again from time to time."
        )

    @asynccontextmanager
    async def used(self) -> AsyncIterator[EngineInfo]:
        """Keeps it loaded while inside; loads it first where it is not.

        Raises `EngineUnavailable` when it failed to load.
        """
        self._users += 1
        self._unloads_next = False
        self._stay()
        try:
            yield await self._loaded()
        finally:
            self._users -= 1
            self._rest()

    def unload(self) -> bool:
        """Unloads it as soon as nobody uses it, where the next request loads it again. Whether that is so."""
        if not self._loads_on_demand:
            return False
        self._unloads_next = True
        self._stay()
        self._rest()
        return True

    def _stay(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _rest(self) -> None:
        """Begins to count the time in which nobody uses it."""
        after_s = 0.0 if self._unloads_next else self.config.idle_unload_s
        if after_s is not None and not self._users and not self._closed and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(after_s, self._unload)

    def _unload(self) -> None:
        self._idle = None
        if self._users or self.state != "ready":
            return
        log.info("model %s is unloaded: nobody uses it", self.name)
        old, self.engine, self._starting = self.engine, self._open(), None
        self._unloading = asyncio.create_task(old.close())

    async def close(self) -> None:
        self._closed = True
        self._phase = "closing"
        for timer in (self._idle, self._again):
            if timer is not None:
                timer.cancel()
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._unloading is not None:
            await asyncio.wait([self._unloading])
        await self.engine.close()
        self._phase = "closed"

    # --- what is known of it -------------------------------------------------------------------------------------

    @property
    def is_closed(self) -> bool:
        """Or about to be: nothing can be asked of it any more."""
        return self._closed

    @property
    def _has_failed(self) -> bool:
        """To load, when it was last tried."""
        starting = self._starting
        return starting is not None and starting.done() and (starting.cancelled() or starting.exception() is not None)

    @property
    def state(self) -> EngineState:
        if self._starting is None:
            return "unloaded"
        if not self._starting.done():
            return "loading"
        if self._has_failed:
            return "failed"
        return "ready" if self._supervised is None else self._supervised.state

    @property
    def available(self) -> bool:
        """Whether a request would be served: at once, or when it has loaded the model."""
        state = self.state
        if state == "ready" or self._closed:
            return state == "ready"
        loads = state == "unloaded" or (self._has_failed and self._again is None)
        return loads and self._loads_on_demand

    @property
    def _loads_on_demand(self) -> bool:
        return self.config.load == "demand" or self.config.idle_unload_s is not None

    @property
    def info(self) -> EngineInfo | None:
        """Of its engine; None while it is not loaded."""
        loaded = self._starting is not None and self._starting.done() and self.state != "failed"
        return self.engine.info if loaded else None

    def status(self) -> ModelStatus:
        return ModelStatus(
            self.name,
            self.state,
            self.config.engine,
            self._created,
            self.info,
            self.available,
            self._phase,
            self._progress(),
            self.name,
            self.admission.slots,
            self.admission.running,
            self.admission.waiting,
        )

    def _progress(self) -> float | None:
        if self.state == "loading" and isinstance(self.engine, ShowsProgress):
            return self.engine.progress
        return None

    def _tell_metrics(self) -> None:
        """From now on, whoever reads the metrics asks this model."""
        own = self.name
        for outcome in ("ok", "bug"):  # from nought on: a rate does not see a series' first step
            metrics.REQUESTS.labels(own, outcome)
        metrics.IMAGE_TOKEN_MISMATCHES.labels(own)
        metrics.SLOTS.labels(own).set_function(lambda: self.admission.slots)
        metrics.RUNNING.labels(own).set_function(lambda: self.admission.running)
        metrics.WAITING.labels(own).set_function(lambda: self.admission.waiting)
        metrics.PREDICTED_WAIT_SECONDS.labels(own).set_function(self.admission.predicted_wait_s)
        metrics.BREAKER.labels(own).set_function(lambda: _OPENNESS[self.breaker.state])
        for state in get_args(EngineState):
            metrics.MODEL_STATE.labels(own, state).set_function(partial(self._is, state))
        if isinstance(self.engine, Measures):
            for measure, gauge in _MEASURED.items():
                gauge.labels(own).set_function(partial(self._measure, measure))
        if self._supervised is not None:
            metrics.ENGINE_RESTARTS.labels(own).set_function(self._restarts)
            metrics.ENGINE_PROCESS_RSS_BYTES.labels(own).set_function(lambda: self._process().rss_bytes)
            metrics.ENGINE_PROCESS_CPU_SECONDS.labels(own).set_function(lambda: self._process().cpu_s)

    def _is(self, state: EngineState) -> float:
        return float(self.state == state)

    def _restarts(self) -> float:
        return 0 if self._supervised is None else self._supervised.restarts

    def _measure(self, name: str) -> float:
        return self.engine.measures.get(name, 0.0) if isinstance(self.engine, Measures) else 0.0

    def _process(self) -> ProcessUse:
        """Of the engine's process that runs now."""
        return process_use(getattr(self.engine, "pid", None))

    # --- whether it may be asked ---------------------------------------------------------------------------------

    def ask(self) -> Pass:
        """Leave to ask the engine. Raises `EngineUnavailable`, at once, while its breaker is open."""
        allowed = self.breaker.enter()
        if allowed is None:
            raise self.left_alone()
        return allowed

    def left_alone(self) -> EngineUnavailable:
        return EngineUnavailable(
            f"The model {self.name!r} has failed several times in a row and is left alone for a few seconds. "
            "Try again later."
        )
