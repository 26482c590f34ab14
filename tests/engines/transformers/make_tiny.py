"""Checkpoints small enough to be made in a test, of four architectures: random weights, laid out as published ones are.

    python -m tests.engines.transformers.make_tiny OUT_DIR

Weights are drawn wide, so that answers vary and attention matters: with the usual initialisation a random model says
one token for ever, whatever it is shown. Needs torch and transformers.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

CONTEXT = 2048
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}PLACEHOLDER{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""As LLaVA-1.5's: it knows lists of parts only, and pictures come first."""

CLIP_NORMALISATION = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
LANGUAGE = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "tie_word_embeddings": False,
}  # fmt: skip


def write_qwen2_vl(directory: Path) -> None:
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer = byte_level(["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"], names, "<|im_end|>")
    config = Qwen2VLConfig(
        text_config={
            **LANGUAGE, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=tokenizer.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokenizer.convert_tokens_to_ids("<|vision_end|>"),
    )  # fmt: skip
    preprocessor = {
        "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 56 * 56, "max_pixels": 28 * 28 * 36,
        "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, **CLIP_NORMALISATION,
    }  # fmt: skip
    template = CHATML.replace("PLACEHOLDER", "<|vision_start|><|image_pad|><|vision_end|>")
    write(directory, Qwen2VLForConditionalGeneration(config), tokenizer, template, preprocessor, "Qwen2VLProcessor")


def write_llava(directory: Path) -> None:
    tokenizer = byte_fallback()
    config = LlavaConfig(
        vision_config=clip_vision(), text_config=llama(tokenizer), image_seq_length=16,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-2,
    )  # fmt: skip
    preprocessor = {**square_crop(), "image_processor_type": "CLIPImageProcessor"}
    model = LlavaForConditionalGeneration(config)
    write(directory, model, tokenizer, LLAVA_TEMPLATE, preprocessor, "LlavaProcessor", **LLAVA_PROCESSOR)


def write_llava_next(directory: Path) -> None:
    tokenizer = byte_fallback()
    canvases = [[56, 112], [112, 56], [112, 112], [168, 56], [56, 168]]
    config = LlavaNextConfig(
        vision_config=clip_vision(), text_config=llama(tokenizer), image_grid_pinpoints=canvases,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-2,
    )  # fmt: skip
    preprocessor = {
        **square_crop(), "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": canvases,
    }  # fmt: skip
    model = LlavaNextForConditionalGeneration(config)
    write(directory, model, tokenizer, LLAVA_TEMPLATE, preprocessor, "LlavaNextProcessor", **LLAVA_PROCESSOR)


def write_internvl(directory: Path) -> None:
    names = {
        "start_image_token": "<img>", "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>", "video_token": "<video>",
    }  # fmt: skip
    tokenizer = byte_level(["<|im_start|>", "<|im_end|>"], names, "<|im_end|>")
    config = InternVLConfig(
        vision_config=InternVLVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=[56, 56],
            patch_size=[14, 14], layer_scale_init_value=1.0,
        ),
        text_config=Qwen2Config(**LANGUAGE, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"), image_seq_length=4, downsample_ratio=0.5,
    )  # fmt: skip
    preprocessor = {
        "image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 56, "width": 56}, "min_patches": 1,
        "max_patches": 6, "crop_to_patches": True, **CLIP_NORMALISATION,
    }  # fmt: skip
    template = CHATML.replace("PLACEHOLDER", "<IMG_CONTEXT>\n")
    model = InternVLForConditionalGeneration(config)
    write(directory, model, tokenizer, template, preprocessor, "InternVLProcessor", image_seq_length=4)


LLAVA_PROCESSOR = {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
FAMILIES: dict[str, Callable[[Path], None]] = {
    "qwen2_vl": write_qwen2_vl,
    "llava": write_llava,
    "llava_next": write_llava_next,
    "internvl": write_internvl,
}


def clip_vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14,
        projection_dim=32,
    )  # fmt: skip


def llama(tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        **LANGUAGE, vocab_size=len(tokenizer), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id
    )  # fmt: skip


def square_crop() -> dict[str, Any]:
    return {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, **CLIP_NORMALISATION}


# --- tokenizers ------------------------------------------------------------------------------------------------------


def byte_level(specials: list[str], names: dict[str, str], eos: str) -> PreTrainedTokenizerFast:
    """One token a byte, as GPT-2 spells bytes, and a few merges; `names`: special tokens that processors ask for."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ċ", "Ċ")]
    vocab = {word: index for index, word in enumerate([*alphabet, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([_added(token) for token in ["<|endoftext|>", *specials, *names.values()]])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, pad_token="<|endoftext|>", extra_special_tokens=names
    )


def byte_fallback() -> PreTrainedTokenizerFast:
    """As Llama's, which LLaVA-1.5 has: U+2581 for spaces, bytes for what it does not know, a token at the beginning."""
    letters = [chr(code) for code in range(0x21, 0x7F)]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("i", "n")]
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *letters]
    vocab = {word: index for index, word in enumerate([*words, *("".join(merge) for merge in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([_added(token) for token in ("<unk>", "<s>", "</s>", "<image>")])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", vocab["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip


def _added(token: str) -> AddedToken:
    return AddedToken(token, normalized=False, special=True)


# --- files -----------------------------------------------------------------------------------------------------------


def write(
    directory: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    template: str,
    preprocessor: dict[str, Any],
    processor_class: str,
    **processor: Any,
) -> None:
    widen(model)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    (directory / "chat_template.jinja").write_text(template)
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (directory / "processor_config.json").write_text(json.dumps({"processor_class": processor_class, **processor}))


def widen(model: Any, seed: int = 20) -> None:
    """Matrices keep the size of what goes through them; the last one and the embeddings make logits lie far apart."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() >= 2:
                fan_in = math.prod(parameter.shape[1:])
                wide = 1.0 if "embed_tokens" in name else (6.0 if "lm_head" in name else 2.0) / math.sqrt(fan_in)
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * wide)


def main() -> None:
    for name, write_family in FAMILIES.items():
        write_family(Path(sys.argv[1]) / name)


if __name__ == "__main__":
    main()
