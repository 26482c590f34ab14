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
from collections.abc import Callable, Iterable

import numpy as np

from sightline.engines.answer import End, Vocabulary
from sightline.engines.constraint import Constraint
from sightline.engines.delivery import Events
from sightline.engines.generation import Generation as AnyGeneration
from sightline.engines.steps import StepThread
from sightline.engines.tool_calls import ToolCalls
from sightline.engines.transformers.batch import Logits, Row, Runner
from sightline.engines.transformers.prompt import Prompt
from sightline.errors import EngineFailed, SightlineError
from sightline.types import EngineRequest, Event, Finish, Timing, Usage

log = logging.getLogger(__name__)


class Generation(AnyGeneration):
    def __init__(
        self,
        request: EngineRequest,
        prompt: Prompt,
        max_tokens: int,
        deliver: Callable[[Events], None],
        vocabulary: Vocabulary,
        constraint: Constraint | None = None,
        calls: ToolCalls | None = None,
    ) -> None:
        super().__init__(request, prompt.tokens, max_tokens, deliver, vocabulary, constraint, calls)
        self.prompt = prompt
        self.row: Row | None = None
        """Its place in the batch, while it runs."""
        self.last_token = 0

    def extend(self, logits: Logits) -> list[Event]:
        """Samples the next token; what came of it. Logits are of one position, [vocabulary]. Raises what `next_token`
        raises."""
        self.last_token, deltas, end = self.next_token(logits)
        return [*deltas, *([] if end is None else [self._finish(end)])]

    def _finish(self, end: End) -> Finish:
        now = time.perf_counter()
        scheduled, first_token = self.scheduled or now, self.first_token or now
        count = self.prompt.count
        usage = Usage(
            count.prompt_tokens, self.answer.num_tokens, count.image_tokens, (False,) * len(count.image_tokens)
        )
        timing = Timing(
            queue_s=scheduled - self.submitted,
            prefill_s=first_token - scheduled,  # pictures included: the model does both in one pass
            decode_s=now - first_token,
        )
        return Finish(end.reason, usage, timing, end.stop_sequence)


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
        events: list[Event | SightlineError]
        if np.isfinite(logits.max()):  # a NaN anywhere makes the maximum NaN
            try:
                events = [*generation.extend(logits)]
            except SightlineError as error:
                events = [error]
        else:
            events = [EngineFailed("The model gave no number for this request.")]
        if events:
            generation.deliver(events)
        return not (events and isinstance(events[-1], Finish | SightlineError))
