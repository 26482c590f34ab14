"""A request on its way through an engine that computes in our process: what every such engine keeps of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sightline.engines.answer import Answer, End, Vocabulary
from sightline.engines.constraint import Constraint
from sightline.engines.delivery import Events
from sightline.engines.sampler import Logits, Sampler, logprobs, only
from sightline.engines.tool_calls import ToolCalls
from sightline.types import Delta, EngineRequest


class Generation:
    """Made on the event loop, from then on the engine thread's alone."""

    def __init__(
        self,
        request: EngineRequest,
        prompt: Sequence[int],
        max_tokens: int,
        deliver: Callable[[Events], None],
        vocabulary: Vocabulary,
        constraint: Constraint | None = None,
        calls: ToolCalls | None = None,
    ) -> None:
        """`prompt`: its tokens. `deliver` is called from the engine thread. `constraint`: what the answer must look
        like; `calls`: finds calls of tools in it."""
        params = request.sampling
        end_tokens = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else vocabulary.eos_tokens)
        self.request = request
        self.deliver = deliver
        self.sampler = Sampler(params, prompt, end_tokens, vocabulary.size)
        self.answer = Answer(vocabulary, params, end_tokens, max_tokens, calls)
        self.constraint = constraint
        self.submitted = time.perf_counter()
        self.scheduled: float | None = None
        self.first_token: float | None = None

    def next_token(self, logits: Logits) -> tuple[int, list[Delta], End | None]:
        """Samples the next token: what it is, what can be shown now, and how the answer ended if it did. `logits`: of
        one position, [vocabulary].

        Raises `SchemaInvalid` for a grammar that has grown beyond its limits.
        """
        self.first_token = self.first_token or time.perf_counter()
        if self.constraint is not None:
            # Before everything else, log-probabilities included, as in vLLM: they are of the tokens that could come.
            logits = only(self.constraint.mask(), logits)
        token = self.sampler.next_token(logits)
        is_last = self.constraint is not None and self.constraint.accept(token)
        wanted = self.request.sampling.logprobs
        told = None if wanted is None else logprobs(logits, token, wanted)
        return token, *self.answer.push(token, told, is_last=is_last)
