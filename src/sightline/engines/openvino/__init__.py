"""Our own engine on OpenVINO's runtime: continuous batching over paged attention, for the Qwen2-VL architecture.

One request, hop by hop:

    generate (event loop) -> prompt.py -> inbox -> [engine thread: scheduler.py -> vision.py -> runner.py -> sampler.py
    -> answer.py] -> the request's queue on the event loop

The event loop and the engine thread share nothing but the inbox and the queues; `infer()` releases the GIL.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

from sightline.config import MIB, ModelConfig
from sightline.engines import FEATURES, EngineInfo
from sightline.engines.answer import Vocabulary
from sightline.engines.checkpoint import CheckpointError
from sightline.engines.constraint import Constraints
from sightline.engines.delivery import Events, refuse_hopeless, room_for_answer, verify_logit_bias
from sightline.engines.openvino import files
from sightline.engines.openvino.checkpoint import read_facts
from sightline.engines.openvino.loop import Generation, StepLoop
from sightline.engines.openvino.prompt import Prompt, PromptBuilder
from sightline.engines.openvino.runner import LanguageRunner, load_models
from sightline.engines.openvino.vision import VisionEncoder, read_preprocessor
from sightline.engines.steps import generated
from sightline.engines.tool_calls import calls_of
from sightline.engines.tool_formats import FormatChoice
from sightline.errors import EngineUnavailable, InvalidRequest
from sightline.types import EngineRequest, Event, Text, TokenCount

_LONG_PROMPT_CHARACTERS: Final = 20_000
"""From here on a prompt is tokenised in a thread, so that the event loop stays responsive."""


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelConfig.options` of this engine."""

    context_length: int | None = None
    """Prompt and completion tokens together; at most (and by default) what the model was made for."""
    step_tokens: int = 128
    """The most tokens in a step in which someone decodes: a long prompt holds the others up for no longer than this
    takes. Enough for matrix products to be efficient on a CPU."""
    kv_cache_mib: int = 1024
    """Upper bound of the KV blocks' memory; one full context always fits."""
    embedding_cache_mib: int = 64
    """Upper bound of kept picture embeddings."""
    weights: files.Weights = "fp16"
    """int8: the IR that `export --int8` puts beside the other; half the memory."""
    kv_cache_precision: Literal["f32", "f16", "u8"] = "f32"
    inference_precision: Literal["f32", "f16", "bf16"] = "f32"
    """f32, like the reference, unless speed is worth answers that differ now and then."""
    tool_format: FormatChoice = "auto"
    """How the model writes calls of tools; auto: as its chat template has it."""
    num_threads: int = 0
    """CPU threads; 0: all, but one for the language model if it is small."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What is there between `start` and `close`."""

    info: EngineInfo
    prompts: PromptBuilder
    vocabulary: Vocabulary
    constraints: Constraints
    loop: StepLoop

    def close(self) -> None:
        self.loop.close()
        self.constraints.close()


class OpenVINOEngine:
    """An `Engine` that runs in this process; `worker` gives it a process of its own."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options that do not exist or have the wrong type."""
        try:
            self._options = msgspec.convert(dict(config.options), Options, strict=False)
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"Engine options: {error}.", param="options") from None
        self._config = config
        self._loaded: _Loaded | None = None
        self._closed = False
        self.progress = 0.0
        """Of loading: what part of the weights is in place."""

    @property
    def info(self) -> EngineInfo:
        return self._running.info

    async def start(self) -> None:
        try:
            loaded = await asyncio.to_thread(self._load)
        except (CheckpointError, OSError, RuntimeError) as error:
            self._closed = True
            raise EngineUnavailable(f"The model {self._config.name!r} cannot be loaded: {error}") from error
        if self._closed:
            loaded.close()
            raise EngineUnavailable("The engine was closed while it was loading.")
        self._loaded = loaded

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        prompt = await self._build(request)
        room_for_answer(self.info.context_length, prompt.count, request.sampling.max_tokens, request.param)
        return prompt.count

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        running = self._running
        verify_logit_bias(request.sampling, running.vocabulary.size)
        prompt = await self._build(request)
        max_tokens = room_for_answer(self.info.context_length, prompt.count, request.sampling.max_tokens, request.param)
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

    @property
    def measures(self) -> Mapping[str, float]:
        return self._loaded.loop.measures if self._loaded is not None else {}

    def _count(self, progress: float) -> None:
        """From any thread; what comes late counts no less."""
        self.progress = max(self.progress, progress)

    @property
    def _running(self) -> _Loaded:
        if self._loaded is None:
            raise EngineUnavailable("The engine is not running.")
        return self._loaded

    def _load(self) -> _Loaded:
        options, model_dir = self._options, self._config.path
        if not model_dir.is_dir():
            raise CheckpointError("there is no such directory")
        facts = read_facts(model_dir)
        preprocessor = read_preprocessor(model_dir, facts.vision)
        models = load_models(
            model_dir,
            weights=options.weights,
            kv_cache_precision=options.kv_cache_precision,
            inference_precision=options.inference_precision,
            num_threads=options.num_threads,
            told=self._count,
        )
        context = min(options.context_length or facts.language.context_length, facts.language.context_length)
        runner = LanguageRunner(
            models,
            context_length=context,
            max_sequences=self._config.max_concurrent,
            cache_bytes=options.kv_cache_mib * MIB,
        )
        encoder = VisionEncoder(
            models.vision_patches,
            models.vision_merger,
            facts.vision,
            preprocessor,
            options.embedding_cache_mib * MIB,
        )
        info = EngineInfo(
            engine=self._config.engine,
            context_length=context,
            vision=preprocessor.budget,
            features=FEATURES,
            weights_digest=models.weights_digest,
            work=frozenset({"messages", "completions"}),
        )
        loop = StepLoop(runner, encoder, max_running=self._config.max_concurrent, step_tokens=options.step_tokens)
        prompts = PromptBuilder(model_dir, preprocessor, facts.image_token_id, options.tool_format)
        vocabulary = Vocabulary(model_dir, facts.language.vocab_size, facts.eos_token_ids)
        constraints = Constraints(vocabulary, prompts.encode_later, prompts.tool_format)
        return _Loaded(info, prompts, vocabulary, constraints, loop)

    async def _build(self, request: EngineRequest) -> Prompt:
        refuse_hopeless(self.info.context_length, request)
        prompts = self._running.prompts
        texts = (part.text for m in request.messages for part in m.content if isinstance(part, Text))
        length = sum(map(len, texts)) + len(request.prompt or ())
        if not request.tools and length < _LONG_PROMPT_CHARACTERS:
            return prompts.build(request)
        return await asyncio.to_thread(prompts.build, request)
