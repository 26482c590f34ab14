"""The step loop: one thread that asks eSurge's scheduler what to compute, lets its runner compute it, and hands out
what came of it. When an answer ends is decided here, as for every engine of ours; eSurge only knows how long it may be.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from easydel.inference.esurge.request import EngineRequest as SurgeRequest
from easydel.inference.esurge.request import EngineRequestStatus
from easydel.inference.sampling_params import SamplingParams as SurgeSampling

from sightline.engines.easydel.loading import Positions, Surge
from sightline.engines.generation import Generation as AnyGeneration
from sightline.engines.openvino.prompt import Prompt
from sightline.engines.openvino.vision import Preprocessor
from sightline.engines.steps import StepThread
from sightline.errors import EngineFailed, SightlineError
from sightline.types import Event, Finish, SamplingParams

log = logging.getLogger(__name__)

_COLDEST: Final = 0.01
"""The least temperature that eSurge draws at; below, it would take this one."""
_UNSEEN: Final = "The engine failed to look at a picture of this request."


class Generation(AnyGeneration[Prompt]):
    """eSurge looks at pictures in the first step of the prefill, which is therefore not told apart."""


class StepLoop(StepThread[Generation]):
    """Runs from `warm_up` on."""

    def __init__(self, surge: Surge, preprocessor: Preprocessor) -> None:
        super().__init__("easydel-steps")
        self._surge = surge
        self._preprocessor = preprocessor
        self._live: dict[str, Generation] = {}
        self._names: dict[Generation, str] = {}
        self._numbers = itertools.count(1)

    def warm_up(self, prompts: Iterable[Prompt]) -> None:
        """Runs each, which has JAX compile for its pictures' sizes, then begins. Raises what JAX raises, and
        `RuntimeError` when pictures are not seen."""
        for number, prompt in enumerate(prompts):
            self._add(f"warm-up-{number}", prompt, SamplingParams(temperature=0.0), max_tokens=1)
            while self._surge.scheduler.requests:
                self._compute()
            if self._surge.unseen:
                raise RuntimeError("EasyDeL cannot look at pictures of this model; what it logged says why")
        self._surge.positions.clear()
        self.begin()

    @property
    def is_idle(self) -> bool:
        return not self._live

    def under_way(self) -> Iterable[Generation]:
        return self._names

    def take(self, generation: Generation) -> None:
        name = f"request-{next(self._numbers)}"
        try:
            self._add(name, generation.prompt, generation.request.sampling, generation.max_tokens)
        except Exception:  # it concerns this request alone: nothing has been computed
            log.exception("EasyDeL does not take a request")
            generation.deliver([EngineFailed("The engine could not take this request.")])
            return
        self._live[name], self._names[generation] = generation, name

    def drop(self, generation: Generation) -> None:
        if (name := self._names.get(generation)) is not None:
            self._forget(name)

    def step(self) -> None:
        now = time.perf_counter()
        try:
            tokens = self._compute()
        except Exception:
            # Whatever it was, what eSurge holds is not to be trusted; a new process is the way to a clean one.
            log.exception("a step of %d requests failed", len(self._live))
            for name in list(self._live):
                self._end(name, EngineFailed("The engine failed while it ran this request."))
            raise
        for name, new in tokens.items():
            if (generation := self._live.get(name)) is not None:
                generation.scheduled = generation.scheduled or now
                self._extend(name, generation, new)

    def _extend(self, name: str, generation: Generation, tokens: Sequence[int]) -> None:
        if name in self._surge.unseen:
            self._end(name, EngineFailed(_UNSEEN))
            return
        for token in tokens:
            events = generation.push(token)
            if events and isinstance(events[-1], Finish):
                self._end(name, *events)
                return
            if events:
                generation.deliver([*events])

    def _end(self, name: str, *last: Event | SightlineError) -> None:
        generation = self._live[name]
        self._forget(name)
        generation.deliver([*last])

    def _forget(self, name: str) -> None:
        del self._names[self._live.pop(name)]
        self._surge.unseen.discard(name)
        self._surge.positions.pop(name, None)
        if name in self._surge.scheduler.requests:
            self._surge.scheduler.finish_requests({name}, EngineRequestStatus.FINISHED_ABORTED)

    # --- eSurge --------------------------------------------------------------------------------------------------

    def _add(self, name: str, prompt: Prompt, params: SamplingParams, max_tokens: int) -> None:
        patches, grids = None, None
        if prompt.images:
            merge = self._preprocessor.merge_size
            patches = np.concatenate([self._preprocessor.to_patches(image.pixels) for image in prompt.images])
            sides = [self._preprocessor.grid(image) for image in prompt.images]
            self._surge.positions[name] = Positions(prompt.positions, prompt.next_position - len(prompt.tokens))
            grids = np.array([(1, rows * merge, columns * merge) for rows, columns in sides], np.int64)
        self._surge.scheduler.add_request(
            SurgeRequest(
                request_id=name,
                prompt_token_ids=list(prompt.tokens),
                sampling_params=_sampling(params, max_tokens),
                eos_token_id=None,
                pixel_values=patches,
                image_grid_thw=grids,
            )
        )

    def _compute(self) -> dict[str, list[int]]:
        """A step: the new tokens of each request that got any."""
        scheduler, runner = self._surge.scheduler, self._surge.runner
        planned = scheduler.schedule()
        outputs: dict[int, Any] = scheduler.update_from_output(planned, runner.execute_model(planned))
        return {out.request_id: list(out.new_token_ids) for each in outputs.values() for out in each.outputs}


def _sampling(params: SamplingParams, max_tokens: int) -> Any:
    """The greedy choice is the likeliest one of one: eSurge divides by a temperature of 0 as soon as any other request
    of the batch is not greedy."""
    greedy = params.temperature < _COLDEST or params.top_p == 0.0
    return SurgeSampling(
        max_tokens=max(1, max_tokens),
        temperature=1.0 if greedy else params.temperature,
        top_p=1.0 if greedy else params.top_p,
        top_k=1 if greedy else max(params.top_k, 0),
        min_p=0.0 if greedy else params.min_p,
        ignore_eos=True,
    )
