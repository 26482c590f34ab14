"""Engines: what runs a model.

The contract fits this screen; `table.py` says which engines there are. Engines know nothing of HTTP; everything above
knows only this protocol.
`sightline.testing` is the contract as tests, a function per clause, and every engine passes it.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, Protocol, cast, runtime_checkable

from sightline.config import ModelConfig
from sightline.engines.checkpoint import is_whisper
from sightline.engines.table import ENGINES, EngineEntry, engine_names, find_entry
from sightline.errors import InvalidRequest
from sightline.images.budget import VisionBudget
from sightline.types import (
    EmbeddingRequest,
    Embeddings,
    EngineRequest,
    Event,
    TokenCount,
    TranscriptionEvent,
    TranscriptionRequest,
)

__all__ = [
    "ENGINES",
    "FEATURES",
    "MEASURES",
    "Embeds",
    "Engine",
    "EngineEntry",
    "EngineInfo",
    "EngineState",
    "Measures",
    "Pulls",
    "ShowsProgress",
    "Supervised",
    "Transcribes",
    "Work",
    "engine_names",
    "find_entry",
    "load_engine",
    "open_engine",
    "refuse_python",
    "target_of",
]

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
"""Not to be imported: `import openvino` would send an event to a service on the internet, with an id that it leaves in
the user's home. Without the package openvino takes a stub of its own."""

Work = Literal["messages", "completions", "embeddings", "transcription"]
"""Answering messages, going on with plain text (`EngineRequest.prompt`), texts to vectors (`Embeds`), speech to text"""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What is known of a running engine: data, so that callers decide without asking it."""

    engine: str
    """The name it is chosen by."""
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
    work: frozenset[Work] = frozenset({"messages"})
    """What it does at all; a request for anything else is refused as well."""


FEATURES = frozenset(
    {
        "seed", "top_k", "min_p", "penalties", "logit_bias", "logprobs",
        "min_tokens", "ignore_eos", "stop_token_ids", "tools", "parallel_tool_calls", "json_object", "json_schema",
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


@runtime_checkable
class Embeds(Protocol):
    """What an engine whose work `embeddings` is has, too."""

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """A vector for each input.

        Raises as `Engine.generate`: `InvalidRequest` for token ids or dimensions that the model does not have,
        `ContextLengthExceeded` for an input that is too long.
        """
        ...


@runtime_checkable
class Transcribes(Protocol):
    """What an engine whose work `transcription` is has, too."""

    def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[TranscriptionEvent, None]:
        """Yields segments in order, as they are final, then exactly one `Transcribed`.

        Raises as `Engine.generate`: `InvalidRequest` for a language that the model does not know, `UnsupportedFeature`
        for a task. Closing the generator ends the work within one step.
        """
        ...


EngineState = Literal["unloaded", "loading", "ready", "failed"]


@runtime_checkable
class Supervised(Protocol):
    """What an engine also tells when it lives in a process of its own, which can die and be started again."""

    @property
    def state(self) -> EngineState: ...

    @property
    def restarts(self) -> int: ...


@runtime_checkable
class Pulls(Protocol):
    """What an engine has, too, that can have its model downloaded before it is started."""

    async def pull(self, told: Callable[[float], None]) -> None:
        """To where `start` finds it. `told` hears what part of the bytes is there, 0..1.

        Raises `EngineUnavailable` with the reason when that fails.
        """
        ...


@runtime_checkable
class ShowsProgress(Protocol):
    """What an engine tells, too, whose `start` takes long."""

    @property
    def progress(self) -> float | None:
        """Of `start`: what part of the bytes or tensors is in place, 0..1; None: not known."""
        ...


MEASURES = frozenset({"kv_blocks", "kv_blocks_used", "kv_blocks_cached", "embedding_cache_bytes"})


@runtime_checkable
class Measures(Protocol):
    """What an engine tells, too, that manages memory for keys and values, or for embeddings, itself."""

    @property
    def measures(self) -> Mapping[str, float]:
        """How much of it there is now, by names of `MEASURES`; any thread may ask. Empty while it does not run."""
        ...


def load_engine(config: ModelConfig, target: str | None = None) -> Engine:
    """The engine itself, in this process; `target`: what `target_of` says, where it has been asked already.

    Raises as `find_entry`, and as the engine for options that cannot be meant.
    """
    module, _, name = (target or target_of(config, find_entry(config.engine))).partition(":")
    factory: Any = getattr(import_module(module), name)
    return cast(Engine, factory(config))


def target_of(config: ModelConfig, entry: EngineEntry) -> str:
    """Where the class of a model's engine is: by its row, and by what its files say it is."""
    if entry.speech_target is not None and is_whisper(config.path):
        return entry.speech_target
    return entry.target


def refuse_python(config: ModelConfig, entry: EngineEntry) -> None:
    """Raises `InvalidRequest` for a `python` that nothing would be started with."""
    if config.python is not None and not entry.takes_python:
        raise InvalidRequest(
            f"The engine {config.engine} starts no Python, so that `python` says nothing of it. Leave it out.",
            param="python",
        )


def open_engine(config: ModelConfig) -> Engine:
    """The engine as everything above uses it: in its own supervised process where its row says so. Not yet started.

    Raises as `load_engine`.
    """
    entry = find_entry(config.engine)
    refuse_python(config, entry)
    if entry.isolated:
        from sightline.engines.worker import WorkerEngine

        return WorkerEngine(config)
    return load_engine(config, target_of(config, entry))
