"""Engines: what runs a model.

The contract fits this screen. Engines know nothing of HTTP; everything above knows only this protocol.
`tests/engines/conformance.py` is the contract as tests, a function per clause, and every engine passes it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, Protocol, cast, runtime_checkable

from sightline.config import ModelConfig
from sightline.errors import InvalidRequest
from sightline.images.budget import VisionBudget
from sightline.types import EngineRequest, Event, TokenCount


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is known of a running engine: data, so that callers decide without asking it."""

    engine: str
    """Its name in `ENGINES`."""
    context_length: int
    """Prompt and completion tokens together."""
    vision: VisionBudget | None = None
    """How pixels become tokens; None: the model cannot see."""
    max_images: int | None = None
    """Pictures in one request; None: as many as the context holds."""
    features: frozenset[str] = field(default_factory=frozenset)
    """Of `FEATURES`: what `SamplingParams` and request fields it honours beyond the plain ones. The service refuses a
    request that needs another (400, never a silent drop)."""
    weights_digest: str | None = None
    """`sha256:<hex>` of the weight file that was loaded, where there is one."""


FEATURES = frozenset(
    {
        "seed", "top_k", "min_p", "penalties", "logit_bias", "logprobs",
        "min_tokens", "ignore_eos", "stop_token_ids", "tools", "json_object", "json_schema",
    }
)  # fmt: skip


class Engine(Protocol):
    """One running engine of one model.

    Life: made -> `start` -> any number of `generate`, concurrently -> `close`. Not restartable after `close`.
    """

    @property
    def info(self) -> EngineInfo:
        """Valid once `start` has returned."""
        ...

    async def start(self) -> None:
        """Loads the model; returns when the first request could run.

        Raises `EngineUnavailable` with the reason when it cannot; then `close` has already been done.
        """
        ...

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        """What the prompt costs, exactly as `generate` would count it. Never runs the model.

        Raises `ContextLengthExceeded` like `generate`.
        """
        ...

    def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        """Yields deltas, then exactly one `Finish`.

        Raises only `SightlineError`: `ContextLengthExceeded` before anything runs; `EngineUnavailable` if the engine is
        not up; `EngineFailed` if it broke on the way. Closing the generator (or cancelling its consumer) frees the
        sequence within one step. Never fetches, never logs content, never produces wire text.
        """
        ...

    async def close(self) -> None:
        """Stops the engine and frees what it holds. Streams under way raise `EngineUnavailable`. Idempotent."""
        ...


EngineState = Literal["unloaded", "loading", "ready", "failed"]


@runtime_checkable
class Supervised(Protocol):
    """What an engine also tells when it lives in a process of its own, which can die and be started again."""

    @property
    def state(self) -> EngineState: ...

    @property
    def restarts(self) -> int: ...


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """A row of the engine table: where the class is, imported only when it is wanted."""

    target: str
    """`module:Class`; called with a `ModelConfig`, gives an `Engine` that runs in this process."""
    isolated: bool = True
    """Runs in a supervised child process (`worker.py`). False for engines that only talk to another process."""
    summary: str = ""
    environment: Mapping[str, str] | None = None
    """Of an isolated engine that must not see our secrets: variables that its process gets, beside those that the
    operator names in the option `env` and what any program needs. None: it gets all of ours."""


ENGINES: dict[str, EngineEntry] = {
    "openvino": EngineEntry(
        "sightline.engines.openvino:OpenVINOEngine", summary="our own, on OpenVINO's runtime; fastest on a CPU"
    ),
    "vllm": EngineEntry(
        "sightline.engines.vllm:VllmEngine", isolated=False, summary="vLLM, in an environment of its own"
    ),
    "llamacpp": EngineEntry(
        "sightline.engines.llamacpp:LlamaCppEngine", isolated=False, summary="llama.cpp, from GGUF files"
    ),
    "remote": EngineEntry(
        "sightline.engines.remote:RemoteEngine", isolated=False, summary="any OpenAI-compatible server, by its address"
    ),
    "ollama": EngineEntry(
        "sightline.engines.ollama:OllamaEngine", isolated=False, summary="a model behind Ollama, by its own API"
    ),
    "litellm": EngineEntry(
        "sightline.engines.litellm_provider:LiteLLMEngine",
        summary="a provider (OpenAI, Anthropic, Gemini, Bedrock, Azure ...), by LiteLLM's SDK",
        environment={
            # No files of keys (dotenv, ~/.aws, ~/.config/gcloud), no machine's own credentials, nothing downloaded.
            "LITELLM_MODE": "PRODUCTION",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
            "LITELLM_LOCAL_BLOG_POSTS": "True",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_GCE_CHECK": "true",
            "HOME": "/nonexistent",
        },
    ),
    "transformers": EngineEntry(
        "sightline.engines.transformers:TransformersEngine", summary="Hugging Face transformers: any model it can open"
    ),
    "fake": EngineEntry(
        "sightline.engines.fake:FakeEngine", summary="deterministic, no model; for tests, load tests and docs"
    ),
}


def load_engine(config: ModelConfig) -> Engine:
    """The engine itself, in this process. Raises `InvalidRequest` for an unknown engine name."""
    module, _, name = _entry(config).target.partition(":")
    factory: Any = getattr(import_module(module), name)
    return cast(Engine, factory(config))


def open_engine(config: ModelConfig) -> Engine:
    """The engine as everything above uses it: in its own supervised process where its row says so. Not yet started."""
    if _entry(config).isolated:
        from sightline.engines.worker import WorkerEngine

        return WorkerEngine(config)
    return load_engine(config)


def _entry(config: ModelConfig) -> EngineEntry:
    try:
        return ENGINES[config.engine]
    except KeyError:
        known = ", ".join(sorted(ENGINES))
        raise InvalidRequest(f"There is no engine {config.engine!r}. Engines: {known}.", param="engine") from None
