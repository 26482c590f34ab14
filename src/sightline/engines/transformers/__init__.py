"""The `transformers` engine: any checkpoint that `AutoModelForImageTextToText` opens and that has a chat template.

One request, hop by hop:

    generate (event loop) -> pictures.py, prompt.py (in a thread) -> inbox -> [engine thread, loop.py: prefill alone ->
    batch.py: a step of all that run -> sampler, answer] -> the request's queue on the event loop

torch and transformers are imported when a model is loaded, never before: this module costs nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

import msgspec

from sightline.config import ModelConfig
from sightline.engines import FEATURES, EngineInfo
from sightline.engines.checkpoint import CheckpointError
from sightline.engines.delivery import refuse_hopeless
from sightline.engines.local import StepEngine, Stepping, read_options, wrong_option
from sightline.engines.sources import model_directory
from sightline.engines.tool_formats import FormatChoice
from sightline.types import EngineRequest, TokenCount

if TYPE_CHECKING:  # they import torch
    from sightline.engines.generation import Prompt
    from sightline.engines.transformers.loop import StepLoop
    from sightline.engines.transformers.prompt import PromptBuilder


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelConfig.options` of this engine."""

    context_length: int | None = None
    """Prompt and completion tokens together; at most (and by default) what the model was made for."""
    max_batch: int | None = None
    """Sequences in one step; at most (and by default) `max_concurrent`. Each may take the memory of a whole context."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: the checkpoint's own on a GPU, float32 on a CPU, where the shorter ones are slow and gain nothing."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: spread over the GPUs there are, else the CPU."""
    quantization: Literal["none", "bitsandbytes-4bit", "bitsandbytes-8bit"] = "none"
    """Of the weights, while they are loaded. Needs a CUDA GPU and the package bitsandbytes."""
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    trust_remote_code: bool = False
    """Runs Python code that comes with the checkpoint. Only for checkpoints whose code you have read."""
    tool_format: FormatChoice = "auto"
    """How the model writes calls of tools; auto: as its chat template has it."""
    threads: int = 0
    """CPU threads; 0: as torch chooses."""


class TransformersEngine(StepEngine["PromptBuilder", "StepLoop"]):
    """An `Engine` that runs in this process; `worker` gives it a process of its own."""

    progress = 0.0

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options that do not exist, have the wrong type or make no sense."""
        super().__init__(config)
        self._options = read_options(config, Options)
        for name in ("context_length", "max_batch"):
            if (value := getattr(self._options, name)) is not None and value < 1:
                raise wrong_option(f"{name} is {value}; it must be 1 or more")
        if self._options.threads < 0:
            raise wrong_option("threads must be 0 (as torch chooses) or more")

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        count, _ = await self._counted(request)
        return count

    async def _fit(self, request: EngineRequest) -> tuple[Prompt, int]:
        _, max_tokens = await self._counted(request)  # before pictures are prepared for nothing
        return await self._build(request), max_tokens

    async def _counted(self, request: EngineRequest) -> tuple[TokenCount, int]:
        """What the prompt costs, and how many tokens may follow it. Raises `ContextLengthExceeded`."""
        prompts = self._running.prompts
        refuse_hopeless(self.info.context_length, request)
        count = await asyncio.to_thread(prompts.count, request)
        return count, self._room(request, count)

    def _load(self) -> Stepping[PromptBuilder, StepLoop]:
        from sightline.engines.answer import Vocabulary
        from sightline.engines.constraint import Constraints
        from sightline.engines.transformers.loading import load
        from sightline.engines.transformers.loop import Generation, StepLoop
        from sightline.engines.transformers.prompt import PromptBuilder

        options, model_dir = self._options, model_directory(self._config)
        if not model_dir.is_dir():
            raise CheckpointError("there is no such directory")
        loaded = load(model_dir, options, self._count)
        prompts = PromptBuilder(model_dir, loaded.pictures, loaded.tokenizer, options.tool_format)
        context = min(options.context_length or loaded.context_length, loaded.context_length)
        info = EngineInfo(
            engine=self._config.engine,
            context_length=context,
            vision=loaded.pictures.budget,
            features=FEATURES,
            weights_digest=loaded.weights_digest,
            work=frozenset({"messages", "completions"}),
        )
        concurrent = self._config.max_concurrent
        loop = StepLoop(loaded.runner, max_running=min(options.max_batch or concurrent, concurrent))
        vocabulary = Vocabulary(model_dir, loaded.runner.vocab_size, loaded.eos_token_ids)
        constraints = Constraints(vocabulary, prompts.encode_later, prompts.tool_format)
        return Stepping(info, prompts, vocabulary, loop, Generation, constraints)
