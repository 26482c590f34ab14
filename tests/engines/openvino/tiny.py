"""A checkpoint small enough to be made in a test: Qwen2-VL's architecture, random weights, one token a byte.

Weights are drawn wide, so that answers vary and attention matters: with the usual initialisation a random model says
one token for ever, whatever it is shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
VOCABULARY = 256 + len(SPECIALS)
HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 128, 2, 2, 1, 64, 192
VISION_DEPTH, VISION_DIM, VISION_HEADS, PATCH, MERGE = 2, 64, 1, 14, 2
CONTEXT = 512

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def special(name: str) -> int:
    return 256 + SPECIALS.index(name)


def write_checkpoint(directory: Path, seed: int = 0) -> Path:
    """Everything that a Hugging Face directory of the model holds."""
    directory.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {
        "config.json": config(),
        "generation_config.json": {"eos_token_id": [special("<|im_end|>"), special("<|endoftext|>")]},
        "preprocessor_config.json": {
            "min_pixels": 28 * 28, "max_pixels": 28 * 28 * 36, "patch_size": PATCH, "merge_size": MERGE,
            "temporal_patch_size": 2, "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
        },
    }  # fmt: skip
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer().save(str(directory / "tokenizer.json"))
    save_file(weights(seed), directory / "model.safetensors")
    return directory


def config() -> dict[str, Any]:
    return {
        "model_type": "qwen2_vl",
        "image_token_id": special("<|image_pad|>"),
        "tie_word_embeddings": False,
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        "vision_config": {
            "depth": VISION_DEPTH, "embed_dim": VISION_DIM, "num_heads": VISION_HEADS, "patch_size": PATCH,
            "temporal_patch_size": 2, "spatial_merge_size": MERGE, "in_channels": 3,
        },
    }  # fmt: skip


def tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={character: i for i, character in enumerate(alphabet)}, merges=[]))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    return made


def weights(seed: int) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)

    def wide(*shape: int) -> np.ndarray[Any, Any]:
        return (rng.standard_normal(shape) * 1.5 / np.sqrt(shape[-1])).astype(np.float16)

    def linear(name: str, outputs: int, inputs: int, *, bias: bool = True) -> None:
        made[f"{name}.weight"] = wide(outputs, inputs)
        if bias:
            made[f"{name}.bias"] = (rng.standard_normal(outputs) * 0.1).astype(np.float16)

    def norm(name: str, size: int, *, bias: bool) -> None:
        made[f"{name}.weight"] = (1 + rng.standard_normal(size) * 0.1).astype(np.float16)
        if bias:
            made[f"{name}.bias"] = (rng.standard_normal(size) * 0.1).astype(np.float16)

    made: dict[str, np.ndarray[Any, Any]] = {
        "model.embed_tokens.weight": rng.standard_normal((VOCABULARY, HIDDEN)).astype(np.float16),
        "lm_head.weight": wide(VOCABULARY, HIDDEN) * np.float16(2),
        "visual.patch_embed.proj.weight": wide(VISION_DIM, 3 * 2 * PATCH * PATCH).reshape(
            VISION_DIM, 3, 2, PATCH, PATCH
        ),
    }
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        norm(f"{layer}.input_layernorm", HIDDEN, bias=False)
        norm(f"{layer}.post_attention_layernorm", HIDDEN, bias=False)
        linear(f"{layer}.self_attn.q_proj", HEADS * HEAD_DIM, HIDDEN)
        linear(f"{layer}.self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN)
        linear(f"{layer}.self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN)
        linear(f"{layer}.self_attn.o_proj", HIDDEN, HEADS * HEAD_DIM, bias=False)
        linear(f"{layer}.mlp.gate_proj", INTERMEDIATE, HIDDEN, bias=False)
        linear(f"{layer}.mlp.up_proj", INTERMEDIATE, HIDDEN, bias=False)
        linear(f"{layer}.mlp.down_proj", HIDDEN, INTERMEDIATE, bias=False)
    norm("model.norm", HIDDEN, bias=False)
    for i in range(VISION_DEPTH):
        block = f"visual.blocks.{i}"
        norm(f"{block}.norm1", VISION_DIM, bias=True)
        norm(f"{block}.norm2", VISION_DIM, bias=True)
        linear(f"{block}.attn.qkv", 3 * VISION_DIM, VISION_DIM)
        linear(f"{block}.attn.proj", VISION_DIM, VISION_DIM)
        linear(f"{block}.mlp.fc1", 4 * VISION_DIM, VISION_DIM)
        linear(f"{block}.mlp.fc2", VISION_DIM, 4 * VISION_DIM)
    norm("visual.merger.ln_q", VISION_DIM, bias=True)
    linear("visual.merger.mlp.0", VISION_DIM * MERGE**2, VISION_DIM * MERGE**2)
    linear("visual.merger.mlp.2", HIDDEN, VISION_DIM * MERGE**2)
    return made
