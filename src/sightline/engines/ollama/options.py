"""What an operator says of a model behind Ollama: `ModelConfig.options`, checked."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from sightline.config import ModelConfig
from sightline.engines.remote.options import RemoteOptions, wrong
from sightline.engines.remote.options import read_options as read_remote_options

_KIND = "openai"
_KEEP_ALIVE = re.compile(r"-?(\d+(\.\d*)?(ns|us|µs|ms|s|m|h))+|-?\d+")
RUNNER_OPTIONS = frozenset(
    {
        "num_gpu", "main_gpu", "num_thread", "num_batch", "use_mmap", "num_keep", "repeat_last_n", "typical_p",
        "draft_num_predict",
    }
)  # fmt: skip
"""Of Ollama's `Options` (api/types.go): those that no field of a request stands for."""


class OllamaOptions(RemoteOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelConfig.options` of the engine `ollama`: those of `remote`, and Ollama's own."""

    base_url: str = "http://127.0.0.1:11434"
    """Without `/api`."""
    kind: str = _KIND
    """Not to be set: it is for the engine `remote`."""
    pull: bool = False
    """Downloads the model when Ollama does not have it."""
    keep_alive: str | int | None = None
    """How long Ollama keeps the model in memory after a request: `10m`, `-1` (always). None: as Ollama is set up."""
    unload_at_close: bool = False
    """Frees the model's memory when the engine is closed, whoever else may use it."""
    think: bool | Literal["low", "medium", "high", "max"] | None = None
    """Whether, and how much, a model that can think does so before it answers. None: as Ollama does."""
    allow_cloud: bool = False
    """Lets Ollama send requests, with their pictures, to a model that runs in its maker's cloud."""
    runner_options: dict[str, bool | int | float] = msgspec.field(default_factory=dict)
    """Of `RUNNER_OPTIONS`: passed with every request."""


def read_options(config: ModelConfig) -> OllamaOptions:
    """Raises `InvalidRequest` for what is unknown, of the wrong type or cannot be meant."""
    options = read_remote_options(config, OllamaOptions)
    if options.kind != _KIND:
        raise wrong("the engine ollama speaks Ollama's own API; for other servers use the engine remote.")
    if options.base_url.rstrip("/").endswith(("/api", "/v1")):
        raise wrong("base_url is Ollama's address without a path: http://localhost:11434. What follows is added here.")
    if isinstance(options.keep_alive, str) and not _KEEP_ALIVE.fullmatch(options.keep_alive):
        raise wrong(f"keep_alive is a duration such as 10m or 1h30m, or -1 for always, not {options.keep_alive!r}.")
    if unknown := sorted(options.runner_options.keys() - RUNNER_OPTIONS):
        raise wrong(
            f"runner_options takes {', '.join(sorted(RUNNER_OPTIONS))}, not {unknown[0]!r}. The context is set by "
            "context_length; how an answer is sampled is each request's to say."
        )
    return options
