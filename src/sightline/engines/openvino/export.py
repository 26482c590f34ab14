"""A Qwen2-VL checkpoint in Hugging Face format becomes OpenVINO IR, in seconds and without torch.

    python -m sightline.engines.openvino.export [--int8] CHECKPOINT_DIR [OUT_DIR]

Writes the four models that `optimum-cli export openvino` writes, with the same names, inputs and outputs, so that the
engine takes either. Weights keep the checkpoint's precision as constants, or become int8; arithmetic is f32.

Architecture: Wang et al., "Qwen2-VL" (arXiv:2409.12191), and transformers' `models/qwen2_vl/modeling_qwen2_vl.py`.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.op import util as op_util

from sightline.engines.openvino.checkpoint import Checkpoint, LanguageConfig, VisionConfig
from sightline.engines.openvino.compress import to_int8
from sightline.engines.openvino.files import LANGUAGE, TEXT_EMBEDDINGS, VISION_MERGER, VISION_PATCHES, ir_directory
from sightline.engines.openvino.graph import constant, ints, linear, parameter, result, scalar


def export(checkpoint_dir: Path, out_dir: Path, *, int8: bool = False) -> None:
    """Writes the IR of the checkpoint to `out_dir` (made if absent), with the tokenizer and configuration beside it.

    `int8`: weights are compressed as `compress.py` says, and the IR goes to `out_dir`/int8, beside one that is not.
    Raises `CheckpointError` when the checkpoint is of another architecture or a weight is missing.
    """
    checkpoint = Checkpoint(checkpoint_dir)
    ir_dir = ir_directory(out_dir, "int8" if int8 else "fp16")
    ir_dir.mkdir(parents=True, exist_ok=True)
    models = {
        LANGUAGE: language_model(checkpoint),
        TEXT_EMBEDDINGS: text_embeddings(checkpoint),
        VISION_PATCHES: vision_patches(checkpoint),
        VISION_MERGER: vision_merger(checkpoint),
    }
    if int8:
        for model in models.values():
            to_int8(model)
    # A running engine has the files mapped: they are replaced, never written over.
    with TemporaryDirectory(dir=ir_dir) as unfinished:
        for name, model in models.items():
            # compress_to_fp16 would also round what must stay exact, like the rotary frequencies
            ov.save_model(model, Path(unfinished) / name, compress_to_fp16=False)
        for path in sorted(Path(unfinished).iterdir()):
            path.replace(ir_dir / path.name)
    if out_dir.resolve() != checkpoint_dir.resolve():
        for path in _companions(checkpoint_dir):
            shutil.copyfile(path, out_dir / path.name)


def language_model(checkpoint: Checkpoint) -> ov.Model:
    """The decoder, with keys and values as state.

    Inputs: `inputs_embeds [B, T, hidden] f32`, `attention_mask [B, past + T] i64`, `position_ids [3, B, T] i64` (frame,
    row, column), `beam_idx [B] i32`. Output: `logits [B, T, vocabulary] f32`.
    """
    config = checkpoint.language
    embeds = parameter("inputs_embeds", [-1, -1, config.hidden_size], np.float32)
    attention_mask = parameter("attention_mask", [-1, -1], np.int64)
    positions = parameter("position_ids", [3, -1, -1], np.int64)
    beam_idx = parameter("beam_idx", [-1], np.int32)

    decoder = _Decoder(checkpoint, config, embeds, attention_mask, positions, beam_idx)
    hidden: Any = embeds
    for layer in range(config.num_layers):
        hidden = decoder.layer(hidden, layer)
    hidden = _rms_norm(hidden, checkpoint.weight("model.norm.weight"), config.rms_norm_eps)
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    logits = result("logits", linear(hidden, checkpoint.weight(head)))
    return ov.Model([logits], decoder.sinks, [embeds, attention_mask, positions, beam_idx], "language_model")


def text_embeddings(checkpoint: Checkpoint) -> ov.Model:
    """`input [B, T] i64` (token ids) to `inputs_embeds [B, T, hidden] f32`."""
    tokens = parameter("input", [-1, -1], np.int64)
    table = constant(checkpoint.weight("model.embed_tokens.weight"))
    embedded = result("inputs_embeds", ops.gather(table, tokens, ints(0)))
    return ov.Model([embedded], [tokens], "text_embeddings")


def vision_patches(checkpoint: Checkpoint) -> ov.Model:
    """`hidden_states [patches, channels * frames * patch * patch] f32` to `last_hidden_state [patches, dim] f32`.

    The checkpoint's convolution has its stride equal to its kernel, so it is one matrix product.
    """
    config = checkpoint.vision
    pixels = parameter("hidden_states", [-1, config.patch_values], np.float32)
    kernel = checkpoint.weight("visual.patch_embed.proj.weight").reshape(config.embed_dim, config.patch_values)
    return ov.Model([result("last_hidden_state", linear(pixels, kernel))], [pixels], "vision_patches")


def vision_merger(checkpoint: Checkpoint) -> ov.Model:
    """The vision tower after its patch embedding, and the merger that makes one token of 2x2 patches.

    Inputs: `hidden_states [patches, dim] f32`, `attention_mask [1, patches, patches] f32` (0 where a patch may look,
    -inf elsewhere), `rotary_pos_emb [patches, head_dim / 2] f32` (angles). Output: `last_hidden_state [tokens, hidden]
    f32`.
    """
    config = checkpoint.vision
    patches = parameter("hidden_states", [-1, config.embed_dim], np.float32)
    mask = parameter("attention_mask", [1, -1, -1], np.float32)
    angles = parameter("rotary_pos_emb", [-1, config.head_dim // 2], np.float32)

    doubled = ops.concat([angles, angles], axis=-1)
    cos, sin = ops.unsqueeze(ops.cos(doubled), ints(1)), ops.unsqueeze(ops.sin(doubled), ints(1))
    hidden: Any = patches
    for block in range(config.depth):
        hidden = _vision_block(checkpoint, f"visual.blocks.{block}", hidden, cos, sin, mask)

    merge = config.spatial_merge_size**2
    hidden = _layer_norm(checkpoint, "visual.merger.ln_q", hidden)
    hidden = ops.reshape(hidden, ints([-1, config.embed_dim * merge]), special_zero=False)
    hidden = ops.gelu(_named_linear(checkpoint, "visual.merger.mlp.0", hidden), "erf")
    hidden = _named_linear(checkpoint, "visual.merger.mlp.2", hidden)
    return ov.Model([result("last_hidden_state", hidden)], [patches, mask, angles], "vision_merger")


class _Decoder:
    """The decoder's layers, and what they share: rotary tables, the mask, the state they write."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: LanguageConfig,
        embeds: Any,
        attention_mask: Any,
        positions: Any,
        beam: Any,
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._beam = beam
        self._batch = ops.gather(ops.shape_of(embeds, "i64"), ints([0]), ints(0))
        self._cos, self._sin = self._rotary_tables(positions)
        self._mask = self._causal_mask(embeds, attention_mask)
        self.sinks: list[Any] = []

    def layer(self, hidden: Any, index: int) -> Any:
        c, name = self._checkpoint, f"model.layers.{index}"
        eps = self._config.rms_norm_eps
        normed = _rms_norm(hidden, c.weight(f"{name}.input_layernorm.weight"), eps)
        hidden = ops.add(hidden, self._attention(normed, index))
        normed = _rms_norm(hidden, c.weight(f"{name}.post_attention_layernorm.weight"), eps)
        gate = ops.swish(linear(normed, c.weight(f"{name}.mlp.gate_proj.weight")))
        up = linear(normed, c.weight(f"{name}.mlp.up_proj.weight"))
        return ops.add(hidden, linear(ops.multiply(gate, up), c.weight(f"{name}.mlp.down_proj.weight")))

    def _attention(self, hidden: Any, index: int) -> Any:
        config, name = self._config, f"model.layers.{index}.self_attn"

        def heads(projection: str, count: int) -> Any:
            flat = _named_linear(self._checkpoint, f"{name}.{projection}", hidden)
            split = ops.reshape(flat, ints([0, 0, count, config.head_dim]), special_zero=True)
            return ops.transpose(split, ints([0, 2, 1, 3]))

        q = self._rotate(heads("q_proj", config.num_heads))
        k = self._remember(self._rotate(heads("k_proj", config.num_kv_heads)), f"past_key_values.{index}.key")
        v = self._remember(heads("v_proj", config.num_kv_heads), f"past_key_values.{index}.value")
        attended = ops.scaled_dot_product_attention(q, self._repeat(k), self._repeat(v), self._mask)
        merged = ops.reshape(
            ops.transpose(attended, ints([0, 2, 1, 3])),
            ints([0, 0, config.num_heads * config.head_dim]),
            special_zero=True,
        )
        return linear(merged, self._checkpoint.weight(f"{name}.o_proj.weight"))

    def _remember(self, current: Any, variable: str) -> Any:
        """Past and current keys (or values) [B, kv_heads, past + T, head_dim], kept as state.

        ReadValue -> Gather by `beam_idx` -> Concat -> Assign is the form that the paged-attention transformation knows.
        """
        config = self._config
        empty = ops.broadcast(
            scalar(0.0), ops.concat([self._batch, ints([config.num_kv_heads, 0, config.head_dim])], axis=0)
        )
        info = op_util.VariableInfo()
        info.data_shape = ov.PartialShape([-1, config.num_kv_heads, -1, config.head_dim])
        info.data_type = ov.Type.f32
        info.variable_id = variable
        state = op_util.Variable(info)
        past = ops.gather(ops.read_value(empty, state), self._beam, ints(0))
        whole = ops.concat([past, current], axis=-2)
        self.sinks.append(ops.assign(whole, state))
        return whole

    def _repeat(self, x: Any) -> Any:
        """Each key or value head once for every query head that shares it (grouped-query attention)."""
        config = self._config
        group = config.num_heads // config.num_kv_heads
        if group == 1:
            return x
        wide = ops.unsqueeze(x, ints(2))
        shape = ops.shape_of(x, "i64")
        target = ops.concat(
            [
                ops.gather(shape, ints([0, 1]), ints(0)),
                ints([group]),
                ops.gather(shape, ints([2, 3]), ints(0)),
            ],
            axis=0,
        )
        repeated = ops.broadcast(wide, target, broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(repeated, ints([0, config.num_heads, -1, config.head_dim]), special_zero=True)

    def _rotate(self, x: Any) -> Any:
        return _rotate_half(x, self._cos, self._sin, self._config.head_dim)

    def _rotary_tables(self, positions: Any) -> tuple[Any, Any]:
        """cos and sin [B, 1, T, head_dim]. M-RoPE: of the frequencies, the first section turns with the frame, the
        second with the row, the third with the column."""
        config = self._config
        frequencies = config.rope_theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float32) / config.head_dim)
        turned = ops.multiply(
            ops.unsqueeze(ops.convert(positions, "f32"), ints(-1)),
            ops.constant(frequencies.astype(np.float32).reshape(1, 1, 1, -1)),
        )
        sections = ops.variadic_split(turned, ints(-1), ints(list(config.mrope_section)))
        angles = ops.concat(
            [ops.gather(sections.output(axis), ints(axis), ints(0)) for axis in range(len(config.mrope_section))],
            axis=-1,
        )
        doubled = ops.unsqueeze(ops.concat([angles, angles], axis=-1), ints(1))
        return ops.cos(doubled), ops.sin(doubled)

    def _causal_mask(self, embeds: Any, attention_mask: Any) -> Any:
        """Boolean [B, 1, T, past + T]: a token looks at itself and what came before, where the caller's mask is 1."""
        total = ops.gather(ops.shape_of(attention_mask, "i64"), ints(1), ints(0))
        new = ops.gather(ops.shape_of(embeds, "i64"), ints(1), ints(0))
        keys = ops.range(ints(0), total, ints(1), "i64")
        queries = ops.unsqueeze(ops.range(ops.subtract(total, new), total, ints(1), "i64"), ints(1))
        present = ops.unsqueeze(ops.convert(attention_mask, "boolean"), ints([1, 2]))
        return ops.logical_and(ops.less_equal(keys, queries), present)


def _vision_block(checkpoint: Checkpoint, name: str, hidden: Any, cos: Any, sin: Any, mask: Any) -> Any:
    config = checkpoint.vision
    normed = _layer_norm(checkpoint, f"{name}.norm1", hidden)
    hidden = ops.add(hidden, _vision_attention(checkpoint, config, f"{name}.attn", normed, cos, sin, mask))
    wide = _named_linear(checkpoint, f"{name}.mlp.fc1", _layer_norm(checkpoint, f"{name}.norm2", hidden))
    quick_gelu = ops.multiply(wide, ops.sigmoid(ops.multiply(wide, scalar(1.702))))
    return ops.add(hidden, _named_linear(checkpoint, f"{name}.mlp.fc2", quick_gelu))


def _vision_attention(
    checkpoint: Checkpoint, config: VisionConfig, name: str, hidden: Any, cos: Any, sin: Any, mask: Any
) -> Any:
    joint = _named_linear(checkpoint, f"{name}.qkv", hidden)
    split = ops.split(
        ops.reshape(joint, ints([0, 3, config.num_heads, config.head_dim]), special_zero=True), ints(1), 3
    )
    q, k, v = (ops.squeeze(split.output(i), ints(1)) for i in range(3))

    def first_heads(x: Any) -> Any:
        return ops.unsqueeze(ops.transpose(x, ints([1, 0, 2])), ints(0))

    attended = ops.scaled_dot_product_attention(
        first_heads(_rotate_half(q, cos, sin, config.head_dim)),
        first_heads(_rotate_half(k, cos, sin, config.head_dim)),
        first_heads(v),
        ops.unsqueeze(mask, ints(1)),
    )
    merged = ops.reshape(
        ops.transpose(ops.squeeze(attended, ints(0)), ints([1, 0, 2])), ints([0, config.embed_dim]), special_zero=True
    )
    return _named_linear(checkpoint, f"{name}.proj", merged)


# --- building blocks -------------------------------------------------------------------------------------------------


def _rotate_half(x: Any, cos: Any, sin: Any, head_dim: int) -> Any:
    """Su et al., "RoFormer" (arXiv:2104.09864), in the half-split form: x cos + (-right, left) sin."""
    halves = ops.variadic_split(x, ints(-1), ints([head_dim // 2, head_dim // 2]))
    left, right = halves.output(0), halves.output(1)
    turned = ops.concat([ops.multiply(right, scalar(-1.0)), left], axis=-1)
    return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))


def _rms_norm(x: Any, weight: np.ndarray[Any, Any], eps: float) -> Any:
    mean = ops.reduce_mean(ops.power(x, scalar(2.0)), ints([-1]), keep_dims=True)
    scale = ops.divide(scalar(1.0), ops.sqrt(ops.add(mean, scalar(eps))))
    return ops.multiply(constant(weight), ops.multiply(x, scale))


def _layer_norm(checkpoint: Checkpoint, name: str, x: Any) -> Any:
    normed = ops.mvn(x, ints([-1]), True, checkpoint.vision.layer_norm_eps, "INSIDE_SQRT")
    scaled = ops.multiply(normed, constant(checkpoint.weight(f"{name}.weight")))
    return ops.add(scaled, constant(checkpoint.weight(f"{name}.bias")))


def _named_linear(checkpoint: Checkpoint, name: str, x: Any) -> Any:
    product = linear(x, checkpoint.weight(f"{name}.weight"))
    return ops.add(product, constant(checkpoint.weight(f"{name}.bias")))


def _companions(checkpoint_dir: Path) -> Iterator[Path]:
    """What a model directory holds beside the weights: configuration, tokenizer, chat template."""
    for pattern in ("*.json", "*.jinja"):
        for path in sorted(checkpoint_dir.glob(pattern)):
            if not path.name.endswith(".safetensors.index.json"):
                yield path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint_dir", type=Path)
    parser.add_argument("out_dir", type=Path, nargs="?", help="default: beside the checkpoint's own files")
    parser.add_argument(
        "--int8", action="store_true", help="weights as int8, half the memory of fp16; goes to int8/ in there"
    )
    arguments = parser.parse_args()
    export(arguments.checkpoint_dir, arguments.out_dir or arguments.checkpoint_dir, int8=arguments.int8)


if __name__ == "__main__":
    main()
