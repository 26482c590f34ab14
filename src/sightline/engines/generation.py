"""A request on its way through an engine that computes in our process: what every such engine keeps of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import numpy as np

from sightline.engines.answer import Answer, End, Vocabulary
from sightline.engines.constraint import Constraint
from sightline.engines.delivery import Events
from sightline.engines.sampler import Logits, Logprobs, Sampler, logprobs, only
from sightline.engines.tool_calls import ToolCalls
from sightline.errors import EngineFailed
from sightline.types import EngineRequest, Event, Finish, Timing, TokenCount, Usage


class Prompt(Protocol):
    """What an engine makes of a request's messages, as far as all engines are concerned."""

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def count(self) -> TokenCount: ...


P = TypeVar("P", bound=Prompt)


class Generation(Generic[P]):
    """Made on the event loop, from then on the engine thread's alone."""

    def __init__(
        self,
        request: EngineRequest,
        prompt: P,
        max_tokens: int,
        deliver: Callable[[Events], None],
        vocabulary: Vocabulary,
        constraint: Constraint | None = None,
        calls: ToolCalls | None = None,
    ) -> None:
        """`deliver` is called from the engine thread. `constraint`: what the answer must look like; `calls`: finds
        calls of tools in it."""
        params = request.sampling
        end_tokens = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else vocabulary.eos_tokens)
        self.request = request
        self.prompt = prompt
        self.max_tokens = max_tokens
        self.deliver = deliver
        self.sampler = Sampler(params, prompt.tokens, end_tokens, vocabulary.size)
        self.answer = Answer(vocabulary, params, end_tokens, max_tokens, calls)
        self.constraint = constraint
        self.last_token = 0
        # What its `Usage` and `Timing` are made of. A loop that knows more of it than this says so.
        self.pictures_cached = [False] * len(prompt.count.image_tokens)
        self.cached_tokens = 0
        self.submitted = time.perf_counter()
        self.scheduled: float | None = None
        self.first_token: float | None = None
        self.encode_s = 0.0

    def extend(self, logits: Logits) -> list[Event]:
        """Draws the next token: what can be shown now, and the `Finish` if it was the last. `logits`: of one position,
        [vocabulary].

        Raises `EngineFailed` when they are no numbers, `SchemaInvalid` for a grammar that has grown beyond its limits.
        """
        if not np.isfinite(logits.max()):  # a NaN anywhere makes the maximum NaN
            raise EngineFailed("The model gave no number for this request.")
        self.first_token = self.first_token or time.perf_counter()
        if self.constraint is not None:
            # Before everything else, log-probabilities included, as in vLLM: they are of the tokens that could come.
            logits = only(self.constraint.mask(), logits)
        token = self.sampler.next_token(logits)
        is_last = self.constraint is not None and self.constraint.accept(token)
        wanted = self.request.sampling.logprobs
        return self.push(token, None if wanted is None else logprobs(logits, token, wanted), is_last=is_last)

    def push(self, token: int, told: Logprobs | None = None, *, is_last: bool = False) -> list[Event]:
        """The next token, drawn by whomever: the events that come of it, as `extend`."""
        self.first_token = self.first_token or time.perf_counter()
        self.last_token = token
        deltas, end = self.answer.push(token, told, is_last=is_last)
        return [*deltas, *([] if end is None else [self._finish(end)])]

    def _finish(self, end: End) -> Finish:
        now = time.perf_counter()
        scheduled, first_token = self.scheduled or now, self.first_token or now
        usage = Usage(
            prompt_tokens=self.prompt.count.prompt_tokens,
            completion_tokens=self.answer.num_tokens,
            image_tokens=self.prompt.count.image_tokens,
            images_cached=tuple(self.pictures_cached),
            cached_tokens=self.cached_tokens,
        )
        timing = Timing(
            queue_s=scheduled - self.submitted,
            encode_s=self.encode_s,
            prefill_s=max(0.0, first_token - scheduled - self.encode_s),
            decode_s=now - first_token,
        )
        return Finish(end.reason, usage, timing, end.stop_sequence)
