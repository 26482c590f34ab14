"""A request on its way through an engine that computes in our process: what every such engine keeps of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from sightline.engines.answer import Answer, Vocabulary
from sightline.engines.delivery import Events
from sightline.engines.sampler import Sampler
from sightline.types import EngineRequest


class Generation:
    """Made on the event loop, from then on the engine thread's alone."""

    def __init__(
        self,
        request: EngineRequest,
        prompt: Sequence[int],
        max_tokens: int,
        deliver: Callable[[Events], None],
        vocabulary: Vocabulary,
    ) -> None:
        """`prompt`: its tokens. `deliver` is called from the engine thread."""
        params = request.sampling
        end_tokens = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else vocabulary.eos_tokens)
        self.request = request
        self.deliver = deliver
        self.sampler = Sampler(params, prompt, end_tokens, vocabulary.size)
        self.answer = Answer(vocabulary, params, end_tokens, max_tokens)
        self.submitted = time.perf_counter()
        self.scheduled: float | None = None
        self.first_token: float | None = None
