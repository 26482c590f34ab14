"""Write the averaged weights of a run as a Hugging Face checkpoint.

    python -m training.peek.checkpoint RUN_DIR MODEL_DIR

Weights ship in fp16 under the names of the original Qwen2-VL checkpoints, which every consumer
knows. Some keys of the configuration stand twice, because old and new readers look in different
places.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from training.peek import model as net
from training.peek import tokens
from training.peek.card import write_card
from training.peek.train import CHECKPOINT, rounded
from training.peek.world import MAX_PIXELS, MIN_PIXELS

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] in ('image', 'image_url') %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTEXT: Final = 2048


def _token(name: str) -> int:
    return tokens.VOCABULARY - len(tokens.SPECIALS) + tokens.SPECIALS.index(name)


def config() -> dict[str, Any]:
    mrope = {"mrope_section": list(net.MROPE_SECTION), "rope_theta": net.ROPE_THETA}
    text = {
        "vocab_size": tokens.VOCABULARY,
        "hidden_size": net.HIDDEN,
        "intermediate_size": net.INTERMEDIATE,
        "num_hidden_layers": net.LAYERS,
        "num_attention_heads": net.HEADS,
        "num_key_value_heads": net.KV_HEADS,
        "head_dim": net.HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-6,
        "use_cache": True,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": net.LAYERS,
        "attention_dropout": 0.0,
        "rope_theta": net.ROPE_THETA,
        "rope_scaling": {"type": "mrope", "rope_type": "default", **mrope},
        "rope_parameters": {"rope_type": "default", **mrope},
        "bos_token_id": _token("<|endoftext|>"),
        "eos_token_id": _token("<|im_end|>"),
        "pad_token_id": _token("<|endoftext|>"),
        "tie_word_embeddings": True,
    }
    vision = {
        "model_type": "qwen2_vl",
        "depth": net.VISION_DEPTH,
        "embed_dim": net.VISION_DIM,
        "hidden_size": net.HIDDEN,
        "num_heads": net.VISION_HEADS,
        "mlp_ratio": 4,
        "hidden_act": "quick_gelu",
        "in_channels": 3,
        "in_chans": 3,
        "patch_size": net.PATCH,
        "spatial_patch_size": net.PATCH,
        "temporal_patch_size": 2,
        "spatial_merge_size": net.MERGE,
    }
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "torch_dtype": "float16",
        "dtype": "float16",
        **text,
        "vision_start_token_id": _token("<|vision_start|>"),
        "vision_end_token_id": _token("<|vision_end|>"),
        "vision_token_id": _token("<|vision_pad|>"),
        "image_token_id": _token("<|image_pad|>"),
        "video_token_id": _token("<|video_pad|>"),
        "text_config": {"model_type": "qwen2_vl_text", **text},
        "vision_config": vision,
    }


def preprocessor_config() -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2VLProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "min_pixels": MIN_PIXELS,
        "max_pixels": MAX_PIXELS,
        "size": {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS},
        "patch_size": net.PATCH,
        "temporal_patch_size": 2,
        "merge_size": net.MERGE,
        "image_mean": list(net.MEAN),
        "image_std": list(net.STD),
    }


def tokenizer_config() -> dict[str, Any]:
    added = {
        str(_token(name)): {
            "content": name, "lstrip": False, "normalized": False,
            "rstrip": False, "single_word": False, "special": True,
        }
        for name in tokens.SPECIALS
    }  # fmt: skip
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen2VLProcessor",
        "added_tokens_decoder": added,
        "additional_special_tokens": list(tokens.SPECIALS[1:]),
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "split_special_tokens": False,
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }


def weights(average: dict[str, Tensor]) -> dict[str, Tensor]:
    """fp16 tensors under the reference's names, equal to what `train.rounded` evaluates."""
    shipped: dict[str, Tensor] = {}
    for name, value in rounded(average).items():
        exact = value.detach().cpu()
        if name == "visual.patch_embed.proj.weight":
            frame = exact.view(net.VISION_DIM, 3, 1, net.PATCH, net.PATCH) / 2
            exact = frame.repeat(1, 1, 2, 1, 1)
        if not name.startswith("auxiliary"):
            shipped[name] = exact.half().contiguous()
    return shipped


def write(average: dict[str, Tensor], target: Path) -> None:
    """Everything but the model card."""
    target.mkdir(parents=True, exist_ok=True)
    files: dict[str, dict[str, Any]] = {
        "config.json": config(),
        "preprocessor_config.json": preprocessor_config(),
        "tokenizer_config.json": tokenizer_config(),
        "generation_config.json": {
            "bos_token_id": _token("<|endoftext|>"),
            "eos_token_id": [_token("<|im_end|>"), _token("<|endoftext|>")],
            "pad_token_id": _token("<|endoftext|>"),
            "do_sample": False,
        },
    }
    for name, content in files.items():
        (target / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    (target / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    shutil.copyfile(tokens.PATH, target / "tokenizer.json")
    save_file(weights(average), target / "model.safetensors", {"format": "pt"})
    (target / "model.safetensors").chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    state = torch.load(options.run / CHECKPOINT, map_location="cpu", weights_only=True)
    write(state["average"], options.target)
    write_card(options.run, options.target)


if __name__ == "__main__":
    main()
