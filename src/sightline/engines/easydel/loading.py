"""From a directory to eSurge's runner and scheduler: weights from safetensors, repaired where EasyDeL 0.3 is wrong.

Nothing is downloaded, and no code of the checkpoint's own is run.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import jax
import numpy as np
import numpy.typing as npt
from easydel import AutoEasyDeLModelForImageTextToText, EasyDeLBaseConfigDict
from easydel.caching.ragged_page import cache as ragged_cache
from easydel.inference.esurge.runners import eSurgeRunner
from easydel.inference.esurge.scheduler import Scheduler
from easydel.layers.quantization import QuantizationConfig
from easydel.modules.qwen2_vl.modeling_qwen2_vl import Qwen2VLAttention, Qwen2VLVisionAttention
from easydel.modules.qwen2_vl.qwen2_vl_configuration import Qwen2VLTextConfig
from easydel.utils.traversals import iter_module_search
from jax import numpy as jnp

from sightline.config import MIB
from sightline.engines.checkpoint import CheckpointError
from sightline.engines.easydel.options import Options

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What suits a kind of device."""

    attention: str
    dtype: str
    page_size: int
    step_tokens: int


_DEFAULTS: Final = {
    # v3's code for CPUs cannot do heads of 64 (`cannot reshape array of shape (128, 2, 128)`), and v2 can.
    "cpu": _Defaults("ragged_page_attention_v2", "float32", 16, 128),
    "tpu": _Defaults("ragged_page_attention_v3", "bfloat16", 128, 2048),
    "gpu": _Defaults("unified_attention", "bfloat16", 256, 2048),
}


class Positions(NamedTuple):
    """Where the tokens of a prompt stand."""

    prompt: npt.NDArray[np.int64]
    """[3, tokens]: frame, row and column."""
    offset: int
    """From how many tokens come before a generated one to its position, in all three."""


@dataclass(frozen=True, slots=True)
class Surge:
    """eSurge's two halves. Used from one thread at a time."""

    runner: Any
    scheduler: Any
    positions: dict[str, Positions]
    """By request id: of prompts with pictures."""
    unseen: set[str]
    """Ids of requests whose pictures the model could not see."""
    weights_digest: str | None


def load(model_dir: Path, options: Options, *, context: int, max_running: int) -> Surge:
    """Raises `CheckpointError` for what cannot be served, else what EasyDeL and JAX raise."""
    if options.device != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(options.device, options.device))
    defaults = _DEFAULTS[jax.default_backend()]
    model = _load_model(model_dir, options, defaults, context)
    step_tokens = min(options.step_tokens or defaults.step_tokens, context)
    if jax.default_backend() == "cpu":
        # Of a CPU's memory JAX tells nothing, and EasyDeL then takes 4 GiB.
        ragged_cache.per_device_hbm_budget_bytes = lambda *_, **__: options.kv_cache_mib * MIB
    runner = eSurgeRunner(
        model=model.esurge_compatible_model,
        hbm_utilization=options.memory_utilization,
        page_size=options.page_size or defaults.page_size,
        max_model_len=context,
        max_num_batched_tokens=step_tokens,
        max_num_seqs=max_running,
        max_num_seq_buckets=list(options.batch_sizes) or None,
        min_input_pad=1,
        async_scheduling=False,
        enable_overlap_execution=False,
    )
    tokens = int(runner.metadata.num_pages) * int(runner.metadata.page_size)
    if tokens < context:
        raise CheckpointError(
            f"memory for keys and values of {tokens} tokens does not hold one context of {context}; raise kv_cache_mib "
            "or memory_utilization, or lower context_length"
        )
    # Else every start would draw the same tokens.
    runner.executor_manager.rng_key = jax.device_put(
        jax.random.PRNGKey(secrets.randbits(31)), runner.executor_manager.rng_key.sharding
    )
    positions: dict[str, Positions] = {}
    unseen = _attend_to_pictures(runner, positions)
    runner.compile(max_num_batched_tokens=step_tokens)
    # Without its cache of prefixes: it would be shared by tenants, and names pictures by every hundredth value.
    scheduler = Scheduler.from_runner(
        runner, max_num_batched_tokens=step_tokens, enable_prefix_caching=False, async_scheduling=False
    )
    return Surge(runner, scheduler, positions, unseen, _digest(model_dir))


def _load_model(model_dir: Path, options: Options, defaults: _Defaults, context: int) -> Any:
    dtype = getattr(jnp, defaults.dtype if options.dtype == "auto" else options.dtype)
    quantized: dict[str, Any] = {}
    if options.quantization != "none":
        quantized = {
            "quantization_config": QuantizationConfig(dtype=options.quantization),
            "apply_quantization": True,
        }
    # EasyDeL 0.3.0 leaves out the biases of queries, keys and values, which every Qwen2-VL has (`_unified.py` asks the
    # configuration for `attention_bias`, which is not in it).
    Qwen2VLTextConfig.attention_bias = True
    model = AutoEasyDeLModelForImageTextToText.from_pretrained(
        str(model_dir),
        dtype=dtype,
        param_dtype=dtype,
        precision=jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None,
        sharding_axis_dims=options.sharding,
        config_kwargs=EasyDeLBaseConfigDict(
            attn_mechanism=defaults.attention if options.attention == "auto" else options.attention,
            attn_dtype=dtype,
            kvdtype=dtype,
            freq_max_position_embeddings=context,
            mask_max_position_embeddings=context,
        ),
        from_torch=True,
        local_files_only=True,
        verbose=False,
        **quantized,
    )
    _repair(model)
    return model


def _repair(model: Any) -> None:
    """EasyDeL 0.3.0's Qwen2-VL, where it is not what its checkpoints were trained as."""
    # `Qwen2VLVisionBlock` does not pass `num_heads` on, so that every vision tower has 16. Published ones do.
    heads = int(model.config.vision_config.num_heads)
    for _, vision in iter_module_search(model, Qwen2VLVisionAttention):
        vision.num_heads = heads
        vision.head_dim = vision.embed_dim // heads
    # M-RoPE's sections lie as frame, row, column, frame, row, column; without this, as frame, frame, row, row ...
    for _, attention in iter_module_search(model, Qwen2VLAttention):
        attention.rotary.repetition_style = True
        attention.o_proj.bias, attention.o_proj.use_bias = None, False  # which `attention_bias` gave it, empty


def _attend_to_pictures(runner: Any, positions: Mapping[str, Positions]) -> set[str]:
    """Repairs how EasyDeL 0.3.0's runner looks at pictures (`model_runner.py`, `_precompute_vlm_prefill`).

    It asks the model for positions in three dimensions (M-RoPE), which its Qwen2-VL never tells, and goes on with plain
    ones: they are taken from `positions`. And it logs a picture that the vision tower fails on, and goes on to answer
    without having seen it: the ids of such requests are in the set that is returned.
    """
    unseen: set[str] = set()
    look = runner._precompute_vlm_prefill

    def look_and_tell(request: Any) -> None:
        is_new = not request.vision_processed
        look(request)
        if not request.vision_processed:
            unseen.add(request.req_id)
        elif is_new and (placed := positions.get(request.req_id)) is not None:
            request.prefill_position_ids = placed.prompt.astype(np.int32)
            request.prefill_rope_deltas = np.array([[placed.offset]], np.int32)

    runner._precompute_vlm_prefill = look_and_tell
    return unseen


def _digest(model_dir: Path) -> str | None:
    """Of the weights, where they are one file."""
    files = list(model_dir.glob("*.safetensors"))
    if len(files) != 1:
        return None
    with files[0].open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
