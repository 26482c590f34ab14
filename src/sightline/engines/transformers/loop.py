"""The step loop: one thread that owns the model and runs step after step.

A step prefills at most one prompt, then gives every running sequence one token: who waits holds the others up for one
prompt at a time. Between two steps it takes what has come in: new generations, and those that nobody wants any more,
so a cancelled generation frees its sequence within one step.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import time
from collections.abc import Iterable

from sightline.engines.delivery import Events
from sightline.engines.generation import Generation as AnyGeneration
from sightline.engines.steps import StepThread
from sightline.engines.transformers.batch import Logits, Row, Runner
from sightline.engines.transformers.prompt import Prompt
from sightline.errors import EngineFailed, SightlineError
from sightline.types import Finish

log = logging.getLogger(__name__)


class Generation(AnyGeneration[Prompt]):
    row: Row | None = None
    """Its place in the batch, while it runs."""


class StepLoop(StepThread[Generation]):
    """Runs as soon as it is made."""

    def __init__(self, runner: Runner, *, max_running: int) -> None:
        super().__init__("transformers-steps")
        self._runner = runner
        self._max_running = max_running
        self._waiting: list[tuple[int, int, Generation]] = []
        """A heap: highest priority first, then the order of arrival."""
        self._running: list[Generation] = []
        """In the order of the runner's rows."""
        self._arrivals = itertools.count()
        self.begin()

    @property
    def is_idle(self) -> bool:
        return not (self._waiting or self._running)

    def under_way(self) -> Iterable[Generation]:
        return [*self._running, *(waiting for _, _, waiting in self._waiting)]

    def take(self, generation: Generation) -> None:
        heapq.heappush(self._waiting, (-generation.request.priority, next(self._arrivals), generation))

    def drop(self, generation: Generation) -> None:
        if generation.row is not None:
            self._runner.leave(generation.row)
            self._running.remove(generation)
            generation.row = None
        else:
            self._waiting = [entry for entry in self._waiting if entry[2] is not generation]
            heapq.heapify(self._waiting)

    def _prefill_next(self) -> None:
        if not self._waiting or len(self._running) >= self._max_running:
            return
        _, _, generation = heapq.heappop(self._waiting)
        generation.scheduled = time.perf_counter()
        try:
            row, cache, logits = self._runner.prefill(generation.prompt)
            if self._extend(generation, logits):
                self._runner.join(row, cache)
                generation.row = row
                self._running.append(generation)
        except Exception:
            log.exception("a prompt of %d tokens failed", len(generation.prompt.tokens))
            generation.deliver([EngineFailed("The engine failed while it ran this request.")])

    def step(self) -> None:
        self._prefill_next()
        if self._running:
            self._decode()

    def _decode(self) -> None:
        try:
            logits = self._runner.step([generation.last_token for generation in self._running])
            for generation, row in zip(list(self._running), logits, strict=True):
                if not self._extend(generation, row):
                    self.drop(generation)
        except Exception:
            # Whatever it was, keys and values are not to be trusted: what runs ends here.
            log.exception("a step of %d sequences failed", len(self._running))
            failed, self._running = self._running, []
            self._runner.forget()
            for generation in failed:
                generation.row = None
                generation.deliver([EngineFailed("The engine failed while it ran this request.")])

    def _extend(self, generation: Generation, logits: Logits) -> bool:
        """Samples and delivers; False: the generation has ended."""
        events: Events
        try:
            events = [*generation.extend(logits)]
        except SightlineError as error:
            events = [error]
        if events:
            generation.deliver(events)
        return not (events and isinstance(events[-1], Finish | SightlineError))
