"""The `easydel` engine: EasyDeL's eSurge (JAX, on TPU, GPU or CPU), for the Qwen2-VL architecture.

One request, hop by hop:

    generate (event loop) -> openvino/prompt.py (tokens; a picture's placeholder becomes as many as its cells) -> inbox
    -> [engine thread, loop.py: eSurge's scheduler -> eSurge's runner (vision, prefill, decode, draw) -> answer] -> the
    request's queue on the event loop

eSurge's scheduler and runner are driven directly. What its class `eSurge` puts around them is left out on purpose: it
opens paths that clients name, resizes pictures to squares, cuts prompts that are too long, adds end tokens and parsers
of its own, and starts two processes that outlive it. So pixels reach EasyDeL as arrays, from our memory.

JAX and EasyDeL are imported when a model is loaded, never before: this module costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from sightline.config import ModelConfig
from sightline.engines import EngineInfo
from sightline.engines.answer import Vocabulary
from sightline.engines.checkpoint import CheckpointError
from sightline.engines.easydel.options import Options, read_options
from sightline.engines.local import StepEngine, Stepping
from sightline.engines.openvino.checkpoint import read_facts
from sightline.engines.openvino.prompt import PromptBuilder
from sightline.engines.openvino.vision import read_preprocessor
from sightline.types import EngineRequest, Image, Message, Text

if TYPE_CHECKING:  # it imports JAX
    from sightline.engines.easydel.loop import StepLoop

__all__ = ["EasyDelEngine", "Options"]

FEATURES_KEPT = frozenset({"top_k", "min_p", "ignore_eos", "stop_token_ids"})
"""eSurge draws inside its compiled step. It has one generator for all, so no seeds; counts the prompt's tokens in its
penalties; and gives no logits, so neither a bias nor log-probabilities nor tokens that must not come."""
_WARM_UP_PX: Final = 448
_WARM_UP_TEXT: Final = 64
"""Tokens, at most, of a warm-up's text and template."""


class EasyDelEngine(StepEngine[PromptBuilder, "StepLoop"]):
    """An `Engine` that runs in this process; `worker` gives it a process of its own."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options that do not exist, have the wrong type or make no sense."""
        super().__init__(config)
        self._options = read_options(config)

    def _how_to_install(self) -> str:
        return "`sightline engine install easydel` makes an environment."

    def _load(self) -> Stepping[PromptBuilder, StepLoop]:
        options, model_dir = self._options, self._config.path
        if not model_dir.is_dir():
            raise CheckpointError("there is no such directory")
        facts = read_facts(model_dir)
        preprocessor = read_preprocessor(model_dir, facts.vision)
        context = min(options.context_length or facts.language.context_length, facts.language.context_length)
        from sightline.engines.easydel.loading import load
        from sightline.engines.easydel.loop import Generation, StepLoop

        surge = load(model_dir, options, context=context, max_running=self._config.max_concurrent)
        info = EngineInfo(
            engine=self._config.engine,
            context_length=context,
            vision=preprocessor.budget,
            features=FEATURES_KEPT,
            weights_digest=surge.weights_digest,
        )
        prompts = PromptBuilder(model_dir, preprocessor, facts.image_token_id)
        loop = StepLoop(surge, preprocessor)
        loop.warm_up([prompts.build(request) for request in _sightings(info, options.pictures())])
        vocabulary = Vocabulary(model_dir, facts.language.vocab_size, facts.eos_token_ids)
        return Stepping(info, prompts, vocabulary, loop, Generation)


def _sightings(info: EngineInfo, sizes: Sequence[tuple[int, int]] | None) -> Iterator[EngineRequest]:
    """Requests with a blank picture of each size in pixels; None: of one that fits."""
    assert info.vision is not None
    for width, height in [(_WARM_UP_PX, _WARM_UP_PX)] if sizes is None else sizes:
        served = info.vision.serve(width, height)
        if served.tokens + _WARM_UP_TEXT > info.context_length:
            if sizes is None:
                continue
            raise CheckpointError(
                f"picture_sizes: {width}x{height} px are {served.tokens} tokens, which the context of "
                f"{info.context_length} does not hold"
            )
        blank = Image(np.zeros((served.height, served.width, 3), np.uint8), "sha256:", width, height, "image/png", 0)
        yield EngineRequest("warm-up", "", (Message("user", (blank, Text("What is this?"))),))
