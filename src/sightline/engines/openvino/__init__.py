"""Our own engine on OpenVINO's runtime: continuous batching over paged attention, for the Qwen2-VL architecture.

One request, hop by hop:

    generate (event loop) -> prompt.py -> inbox -> [engine thread: scheduler.py -> vision.py -> runner.py -> sampler.py
    -> answer.py] -> the request's queue on the event loop

The event loop and the engine thread share nothing but the inbox and the queues; `infer()` releases the GIL.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from sightline.config import MIB, ModelConfig
from sightline.engines import FEATURES, EngineInfo
from sightline.engines.answer import Vocabulary
from sightline.engines.checkpoint import CheckpointError
from sightline.engines.constraint import Constraints
from sightline.engines.generation import Prompt
from sightline.engines.local import StepEngine, Stepping, read_options
from sightline.engines.openvino import files
from sightline.engines.openvino.checkpoint import read_facts
from sightline.engines.openvino.loop import Generation, StepLoop
from sightline.engines.openvino.prompt import PromptBuilder
from sightline.engines.openvino.runner import LanguageRunner, load_models
from sightline.engines.openvino.vision import VisionEncoder, read_preprocessor
from sightline.engines.tool_formats import FormatChoice
from sightline.types import EngineRequest, Text

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


class OpenVINOEngine(StepEngine[PromptBuilder, StepLoop]):
    """An `Engine` that runs in this process; `worker` gives it a process of its own."""

    progress = 0.0

    def __init__(self, config: ModelConfig) -> None:
        """Raises `InvalidRequest` for options that do not exist or have the wrong type."""
        super().__init__(config)
        self._options = read_options(config, Options)

    @property
    def measures(self) -> Mapping[str, float]:
        return self._loaded.loop.measures if self._loaded is not None else {}

    def _load(self) -> Stepping[PromptBuilder, StepLoop]:
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
        return Stepping(info, prompts, vocabulary, loop, Generation, constraints)

    async def _build(self, request: EngineRequest) -> Prompt:
        texts = (part.text for m in request.messages for part in m.content if isinstance(part, Text))
        length = sum(map(len, texts)) + len(request.prompt or ())
        if not request.tools and length < _LONG_PROMPT_CHARACTERS:
            return self._running.prompts.build(request)
        return await super()._build(request)
