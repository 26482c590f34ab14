"""Engines: what runs a model.

The contract fits this screen; `table.py` says which engines there are. Engines know nothing of HTTP; everything above
knows only this protocol.
`sightline.testing` is the contract as tests, a function per clause, and every engine passes it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, Protocol, cast, runtime_checkable

from sightline.config import ModelConfig
from sightline.engines.table import ENGINES, EngineEntry, engine_names, find_entry
from sightline.images.budget import VisionBudget
from sightline.types import EngineRequest, Event, TokenCount

__all__ = [
    "ENGINES",
    "FEATURES",
    "Engine",
    "EngineEntry",
    "EngineInfo",
    "EngineState",
    "Supervised",
    "engine_names",
    "find_entry",
    "load_engine",
    "open_engine",
]


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


EngineState = Literal["unloaded", "loading", "ready", "failed"]


@runtime_checkable
class Supervised(Protocol):
    """What an engine also tells when it lives in a process of its own, which can die and be started again."""

    @property
    def state(self) -> EngineState: ...

    @property
    def restarts(self) -> int: ...


def load_engine(config: ModelConfig, target: str | None = None) -> Engine:
    """The engine itself, in this process; `target`: that of its row, where it has been found already.

    Raises as `find_entry`, and as the engine for options that cannot be meant.
    """
    module, _, name = (target or find_entry(config.engine).target).partition(":")
    factory: Any = getattr(import_module(module), name)
    return cast(Engine, factory(config))


def open_engine(config: ModelConfig) -> Engine:
    """The engine as everything above uses it: in its own supervised process where its row says so. Not yet started."""
    entry = find_entry(config.engine)
    if entry.isolated:
        from sightline.engines.worker import WorkerEngine

        return WorkerEngine(config)
    return load_engine(config, entry.target)
