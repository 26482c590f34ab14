"""What an operator may say of the engine `easydel`. Nothing of EasyDeL is imported here."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec

from sightline.config import ModelConfig
from sightline.engines import local

_SIZE: Final = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`ModelConfig.options` of this engine."""

    context_length: _Positive | None = None
    """Prompt and completion tokens together; at most (and by default) what the model was made for."""
    device: Literal["auto", "cpu", "gpu", "tpu"] = "auto"
    """auto: as JAX chooses."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of weights, keys and values. auto: float32 on a CPU, else bfloat16."""
    sharding: tuple[int, int, int, int, int] = (1, 1, 1, -1, 1)
    """Devices along the axes data, fully sharded data, expert, tensor, sequence; one may be -1: all that are left."""
    attention: Literal["auto", "ragged_page_attention_v2", "ragged_page_attention_v3", "unified_attention"] = "auto"
    """EasyDeL's kernel. auto: v2 on a CPU, v3 on a TPU, unified on a GPU."""
    quantization: Literal["none", "int8", "nf4", "mxfp4", "mxfp8", "nvfp8"] = "none"
    """Of the weights, while they are loaded; embeddings, norms and the head stay as they are."""
    page_size: _Positive | None = None
    """Tokens in a page of keys and values; default: 16 on a CPU, 128 on a TPU, 256 on a GPU."""
    memory_utilization: Annotated[float, msgspec.Meta(gt=0, lt=1)] = 0.85
    """Share of the free memory of a GPU or TPU that keys and values get."""
    kv_cache_mib: _Positive = 1024
    """What they get on a CPU, of whose memory JAX tells nothing."""
    step_tokens: _Positive | None = None
    """The most tokens in a step; default: 128 on a CPU, else 2048. Longer prompts take several. Steps of 16 tokens, of
    32 and so on up to this are compiled before the engine is ready."""
    batch_sizes: tuple[_Positive, ...] = ()
    """Numbers of sequences for which they are compiled, the last at least `max_concurrent`; default: powers of two."""
    picture_sizes: tuple[str, ...] | None = None
    """`["448x448"]`: sizes of pictures that are seen once before the engine is ready; default: one that the model
    takes; []: none."""

    def pictures(self) -> tuple[tuple[int, int], ...] | None:
        """Widths and heights. Raises `InvalidRequest`."""
        if self.picture_sizes is None:
            return None
        matches = [(text, _SIZE.fullmatch(text)) for text in self.picture_sizes]
        for text, match in matches:
            if match is None:
                raise local.wrong_option(f'picture_sizes are as in ["448x448", "1024x768"], not {text!r}')
        return tuple((int(match[1]), int(match[2])) for _, match in matches if match is not None)


def read_options(config: ModelConfig) -> Options:
    """Raises `InvalidRequest` for options that do not exist, have the wrong type or make no sense."""
    options = local.read_options(config, Options)
    if any(axis == 0 or axis < -1 for axis in options.sharding) or options.sharding.count(-1) > 1:
        raise local.wrong_option("sharding is five numbers of devices, one of which may be -1: all that are left")
    if options.batch_sizes and (
        list(options.batch_sizes) != sorted(set(options.batch_sizes)) or options.batch_sizes[-1] < config.max_concurrent
    ):
        raise local.wrong_option(
            f"batch_sizes must grow, and the last be at least max_concurrent ({config.max_concurrent})"
        )
    options.pictures()
    return options
