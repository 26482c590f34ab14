"""A training run's state becomes a model directory as Hugging Face lays out Whisper's.

    python -m training.whisper.checkpoint RUN_DIR OUT_DIR

Weights are the run's averages, as fp16.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from sightline.audio.mel import HOP, SAMPLE_RATE, WINDOW
from training.whisper.model import GUIDED_HEADS, Size
from training.whisper.tokens import WINDOW_S


def write(run: Path, out: Path) -> None:
    """Makes `out` if it is absent. Raises `OSError` where the run has no state yet."""
    state = torch.load(run / "state.pt", weights_only=False)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(run / "tokenizer.json"))
    weights = {n: w.to(torch.float16).contiguous() for n, w in state["average"].items() if n.startswith("model.")}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(run / "tokenizer.json", out / "tokenizer.json")
    _write_json(out / "config.json", config(state["size"], tokenizer))
    _write_json(out / "generation_config.json", generation_config(state["size"], tokenizer))
    _write_json(out / "preprocessor_config.json", preprocessor_config(state["size"]))
    _write_json(out / "tokenizer_config.json", tokenizer_config())


def config(size: Size, tokenizer: Tokenizer) -> dict[str, Any]:
    end = tokenizer.token_to_id("<|endoftext|>")
    return {
        "architectures": ["WhisperForConditionalGeneration"],
        "model_type": "whisper",
        "activation_function": "gelu",
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": tokenizer.token_to_id("<|startoftranscript|>"),
        "d_model": size.width,
        "encoder_layers": size.encoder_layers,
        "encoder_attention_heads": size.heads,
        "encoder_ffn_dim": 4 * size.width,
        "decoder_layers": size.decoder_layers,
        "decoder_attention_heads": size.heads,
        "decoder_ffn_dim": 4 * size.width,
        "num_hidden_layers": size.encoder_layers,
        "num_mel_bins": size.bands,
        "max_source_positions": size.source_positions,
        "max_target_positions": size.target_positions,
        "vocab_size": size.vocabulary,
        "scale_embedding": False,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
    }


def generation_config(size: Size, tokenizer: Tokenizer) -> dict[str, Any]:
    id_of = tokenizer.token_to_id
    return {
        # Those of the last layer that were shown where the next word is.
        "alignment_heads": [[size.decoder_layers - 1, head] for head in range(GUIDED_HEADS)],
        "begin_suppress_tokens": [id_of("\u0120"), id_of("<|endoftext|>")],  # a space, as byte-level BPE spells it
        "suppress_tokens": [],
        "decoder_start_token_id": id_of("<|startoftranscript|>"),
        "eos_token_id": id_of("<|endoftext|>"),
        "pad_token_id": id_of("<|endoftext|>"),
        "forced_decoder_ids": None,
        "is_multilingual": True,
        "lang_to_id": {f"<|{code}|>": id_of(f"<|{code}|>") for code in ("en", "es")},
        "task_to_id": {task: id_of(f"<|{task}|>") for task in ("transcribe", "translate")},
        "no_timestamps_token_id": id_of("<|notimestamps|>"),
        "prev_sot_token_id": id_of("<|startofprev|>"),
        "max_initial_timestamp_index": None,  # speech begins anywhere in our windows
        "max_length": 128,
        "return_timestamps": False,
    }


def preprocessor_config(size: Size) -> dict[str, Any]:
    samples = WINDOW_S * SAMPLE_RATE
    return {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "chunk_length": WINDOW_S,
        "feature_size": size.bands,
        "hop_length": HOP,
        "n_fft": WINDOW,
        "n_samples": samples,
        "nb_max_frames": samples // HOP,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "sampling_rate": SAMPLE_RATE,
    }


def tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "WhisperTokenizer",
        "processor_class": "WhisperProcessor",
        "add_prefix_space": False,
        "bos_token": "<|endoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "errors": "replace",
        "model_max_length": 128,
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write(arguments.run, arguments.out)


if __name__ == "__main__":
    main()
