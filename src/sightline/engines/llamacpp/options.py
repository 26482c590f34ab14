"""What an operator says of a model on llama.cpp: `ModelConfig.options`, checked."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from sightline.config import ModelConfig
from sightline.engines.remote.options import RemoteOptions, read_budget, wrong

KvType = Literal["f32", "f16", "bf16", "q8_0"]

_SLOTS = 4


class LlamaCppOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelConfig.options` of the engine `llamacpp`."""

    model_file: str | None = None
    """Of the model's directory; None: the only one there is."""
    mmproj_file: str | None = None
    """The vision tower, of the same directory; None: the one whose name has `mmproj` in it, if any."""
    executable: str | None = None
    """A `llama-server` of one's own; None: that of the wheel `xllamacpp`."""
    context_length: int | None = None
    """Prompt and completion tokens together; rounded up to 256. None: the model's, but at most 8,192, because memory is
    set aside for every slot."""
    slots: int = _SLOTS
    """Sequences that run at once; no more than `ModelConfig.max_concurrent`."""
    threads: int = 0
    """CPU threads of a step; 0: one for each core, as llama.cpp counts them."""
    n_gpu_layers: int | None = None
    """Layers that run on a GPU; None: as many as fit."""
    kv_cache_type: KvType = "f16"
    """Of keys and values."""
    flash_attention: bool | None = None
    """None: where llama.cpp finds it faster. `q8_0` keys and values need it."""
    batch_tokens: int = 2048
    """The most tokens of a prompt that are submitted at once."""
    ubatch_tokens: int = 512
    """The most tokens of a step."""
    prompt_cache: bool = True
    """Whether a prompt that begins like the one before in its slot is computed from there on. Off by itself as soon as
    a second tenant asks: how fast an answer comes would tell what others have asked."""
    max_pixels: int = 1_048_576
    """Of a picture for a vision tower whose rule we do not know; larger ones are reduced to this."""
    budget: dict[str, Any] | None = None
    """How pixels become tokens, where the files do not tell or tell otherwise: a budget's fields with its `type`."""
    stop_grace_s: float = 5.0
    silence_s: float = 300.0
    """The longest that the server may say nothing: a prompt on a slow CPU takes its time."""
    total_s: float = 3600.0
    """For one request, the wait for its turn included."""


def read_options(config: ModelConfig) -> LlamaCppOptions:
    """Raises `InvalidRequest` for what is unknown, of the wrong type or cannot be meant."""
    try:
        options = msgspec.convert(dict(config.options), LlamaCppOptions)
    except msgspec.ValidationError as error:
        raise wrong(f"{error}. Known: {', '.join(LlamaCppOptions.__struct_fields__)}.") from None
    above_zero = ("slots", "batch_tokens", "ubatch_tokens", "max_pixels", "stop_grace_s", "silence_s", "total_s")
    for name in above_zero if options.context_length is None else (*above_zero, "context_length"):
        if not getattr(options, name) > 0:
            raise wrong(f"{name} must be above 0, not {getattr(options, name)}.")
    if options.threads < 0 or (options.n_gpu_layers or 0) < 0:
        raise wrong("threads and n_gpu_layers must not be below 0; leave one out for llama.cpp's own choice.")
    if options.budget is not None:
        read_budget(RemoteOptions(base_url="", budget=options.budget))
    if options.kv_cache_type == "q8_0" and options.flash_attention is False:
        raise wrong("kv_cache_type q8_0 needs flash attention; leave flash_attention out or set it to true.")
    return options
