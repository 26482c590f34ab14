"""The `transformers` engine: any checkpoint that `AutoModelForImageTextToText` opens and that has a chat template.

One request, hop by hop:

    generate (event loop) -> pictures.py, prompt.py (in a thread) -> inbox -> [engine thread, loop.py: prefill alone ->
    batch.py: a step of all that run -> sampler, answer] -> the request's queue on the event loop

torch and transformers are imported when a model is loaded, never before: this module costs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from sightline.config import ModelConfig
from sightline.engines import FEATURES, EngineInfo
from sightline.engines.checkpoint import CheckpointError
from sightline.engines.delivery import Events, refuse_hopeless, room_for_answer, verify_logit_bias
from sightline.engines.sources import model_directory
from sightline.engines.steps import generated
from sightline.engines.tool_calls import calls_of
from sightline.engines.tool_formats import FormatChoice
from sightline.errors import EngineUnavailable, InvalidRequest
from sightline.images.checkpoint import BudgetError
from sightline.types import EngineRequest, Event, TokenCount

if TYPE_CHECKING:  # they import torch
    from sightline.engines.answer import Vocabulary
    from sightline.engines.constraint import Constraints
    from sightline.engines.transformers.loop import StepLoop
    from sightline.engines.transformers.prompt import PromptBuilder

_INSTALL = "pip install 'sightline[transformers]'"


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


@dataclass(frozen=True, slots=True)
class _Running:
    """What is there between `start` and `close`."""

    info: EngineInfo
    prompts: PromptBuilder
    vocabulary: Vocabulary
    constraints: Constraints
    loop: StepLoop

    def close(self) -> None:
        self.loop.close()
        self.constraints.close()


class TransformersEngine:
    """An `Engine` that runs in this process; `worker` gives it a process of its own."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options that do not exist, have the wrong type or make no sense."""
        try:
            self._options = msgspec.convert(dict(config.options), Options, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"Engine options: {error}.", param="options") from None
        for name in ("context_length", "max_batch"):
            if (value := getattr(self._options, name)) is not None and value < 1:
                raise InvalidRequest(f"Engine options: {name} is {value}; it must be 1 or more.", param="options")
        if self._options.threads < 0:
            raise InvalidRequest("Engine options: threads must be 0 (as torch chooses) or more.", param="options")
        self._config = config
        self._loaded: _Running | None = None
        self._closed = False
        self.progress = 0.0
        """Of loading: what part of the weights is in place."""

    @property
    def info(self) -> EngineInfo:
        return self._running.info

    async def start(self) -> None:
        try:
            loaded = await asyncio.to_thread(self._load)
        except ImportError as error:
            self._closed = True
            raise EngineUnavailable(
                f"The transformers engine needs a package: {error}. Install it: {_INSTALL}"
            ) from error
        except (CheckpointError, BudgetError, OSError, RuntimeError, ValueError) as error:
            self._closed = True
            raise EngineUnavailable(f"The model {self._config.name!r} cannot be loaded: {error}") from error
        if self._closed:
            loaded.close()
            raise EngineUnavailable("The engine was closed while it was loading.")
        self._loaded = loaded

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        running = self._running
        refuse_hopeless(running.info.context_length, request)
        count = await asyncio.to_thread(running.prompts.count, request)
        room_for_answer(running.info.context_length, count, request.sampling.max_tokens, request.param)
        return count

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        from sightline.engines.transformers.loop import Generation

        running = self._running
        verify_logit_bias(request.sampling, running.vocabulary.size)
        refuse_hopeless(running.info.context_length, request)
        count = await asyncio.to_thread(running.prompts.count, request)  # before pictures are prepared for nothing
        max_tokens = room_for_answer(running.info.context_length, count, request.sampling.max_tokens, request.param)
        prompt = await asyncio.to_thread(running.prompts.build, request)
        constraint = await running.constraints.of(request)

        def make(deliver: Callable[[Events], None]) -> Generation:
            calls = calls_of(request, running.prompts.tool_format)
            return Generation(request, prompt, max_tokens, deliver, running.vocabulary, constraint, calls)

        async with aclosing(generated(running.loop, make)) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        self._closed = True
        if (loaded := self._loaded) is not None:
            self._loaded = None
            await asyncio.to_thread(loaded.close)

    def _count(self, progress: float) -> None:
        """From any thread; what comes late counts no less."""
        self.progress = max(self.progress, progress)

    @property
    def _running(self) -> _Running:
        if self._loaded is None:
            raise EngineUnavailable("The engine is not running.")
        return self._loaded

    def _load(self) -> _Running:
        from sightline.engines.answer import Vocabulary
        from sightline.engines.constraint import Constraints
        from sightline.engines.transformers.loading import load
        from sightline.engines.transformers.loop import StepLoop
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
        return _Running(info, prompts, vocabulary, constraints, loop)
