from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from safetensors.numpy import load_file, save_file

from sightline.engines.checkpoint import CheckpointError
from sightline.engines.openvino import files
from sightline.engines.openvino.checkpoint import Checkpoint
from sightline.engines.openvino.export import export
from sightline.engines.openvino.runner import LanguageRunner, Piece, load_models
from tests.engines.openvino.tiny import HEAD_DIM, HIDDEN, VISION_DIM, VOCABULARY

F32 = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


def ports(model: Any) -> dict[str, str]:
    return {p.get_any_name(): p.get_partial_shape().to_string() for p in [*model.inputs, *model.outputs]}


def test_the_models_have_optimum_s_names_and_shapes(tiny_model: Path) -> None:
    read = {name: ports(ov.Core().read_model(tiny_model / name)) for name in files.MODELS}
    assert read == {
        files.LANGUAGE: {
            "inputs_embeds": f"[?,?,{HIDDEN}]", "attention_mask": "[?,?]", "position_ids": "[3,?,?]",
            "beam_idx": "[?]", "logits": f"[?,?,{VOCABULARY}]",
        },
        files.TEXT_EMBEDDINGS: {"input": "[?,?]", "inputs_embeds": f"[?,?,{HIDDEN}]"},
        files.VISION_PATCHES: {"hidden_states": "[?,1176]", "last_hidden_state": f"[?,{VISION_DIM}]"},
        files.VISION_MERGER: {
            "hidden_states": f"[?,{VISION_DIM}]", "attention_mask": "[1,?,?]", "rotary_pos_emb": "[?,32]",
            "last_hidden_state": f"[?,{HIDDEN}]",
        },
    }  # fmt: skip


def stateful_logits(model: Path, embeddings: np.ndarray[Any, Any], sizes: list[int]) -> np.ndarray[Any, Any]:
    """All logits of one sequence from the stateful model, fed in pieces of these sizes."""
    request = ov.Core().compile_model(model / files.LANGUAGE, "CPU", F32).create_infer_request()
    rows, done = [], 0
    for size in sizes:
        positions = np.broadcast_to(np.arange(done, done + size), (3, 1, size))
        rows.append(
            request.infer(
                {
                    "inputs_embeds": embeddings[None, done : done + size],
                    "attention_mask": np.ones((1, done + size), np.int64),
                    "position_ids": positions.astype(np.int64),
                    "beam_idx": np.zeros(1, np.int32),
                }
            )[0][0].copy()
        )
        done += size
    return np.concatenate(rows)


def test_paged_attention_gives_the_stateful_model_s_logits(tiny_model: Path, tiny_checkpoint: Path) -> None:
    """Two sequences of different lengths in one batch, over several steps, in blocks out of order."""
    models = load_models(tiny_model, kv_cache_precision="f32", inference_precision="f32", num_threads=0)
    runner = LanguageRunner(models, context_length=512, max_sequences=2, cache_bytes=2**30)
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 256, n).tolist() for n in (75, 40)]
    table = Checkpoint(tiny_checkpoint).weight("model.embed_tokens.weight").astype(np.float32)
    embeddings = [table[t] for t in tokens]
    # The end of the first sequence is given as a picture's embeddings, over tokens that would say something else.
    picture = rng.standard_normal((9, HIDDEN)).astype(np.float32)
    embeddings[0][60:69] = picture
    blocks = ([5, 0, 9], [3, 7])
    for begins, ends in (((0, 0), (33, 1)), ((33, 1), (34, 40)), ((34, 40), (75, 40))):
        pieces, expected = [], []
        for i in range(2):
            if begins[i] == ends[i]:
                continue
            size = ends[i] - begins[i]
            positions = np.broadcast_to(np.arange(begins[i], ends[i]), (3, size)).astype(np.int64)
            pictures = [(60 - begins[i], picture)] if ends[i] == 75 else []
            pieces.append(Piece(tokens[i][begins[i] : ends[i]], pictures, positions, begins[i], blocks[i], True))
            expected.append(stateful_logits(tiny_model, embeddings[i], [ends[i]])[-1])
        np.testing.assert_allclose(runner.forward(pieces), expected, atol=1e-4)


def test_the_state_carries_over(tiny_model: Path, tiny_checkpoint: Path) -> None:
    embeddings = Checkpoint(tiny_checkpoint).weight("model.embed_tokens.weight")[:20].astype(np.float32)
    whole = stateful_logits(tiny_model, embeddings, [20])
    np.testing.assert_allclose(stateful_logits(tiny_model, embeddings, [7, 1, 12]), whole, atol=1e-4)
    assert np.abs(whole - stateful_logits(tiny_model, embeddings[::-1].copy(), [20])).max() > 0.1


def test_vision_equals_its_formulas(tiny_model: Path, tiny_checkpoint: Path) -> None:
    """The whole tower against numpy, written from the paper's and the reference's formulas."""
    c, rng = Checkpoint(tiny_checkpoint), np.random.default_rng(0)

    def w(name: str) -> np.ndarray[Any, Any]:
        return c.weight(f"visual.{name}").astype(np.float64)

    def linear(name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return x @ w(f"{name}.weight").T + w(f"{name}.bias")

    def norm(name: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return scaled * w(f"{name}.weight") + w(f"{name}.bias")

    def turn(x: np.ndarray[Any, Any], angles: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        left, right = x[:, :32], x[:, 32:]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([left * cos - right * sin, right * cos + left * sin], 1)

    pixels, angles = rng.standard_normal((8, 1176)), rng.standard_normal((8, HEAD_DIM // 2))
    x = pixels @ w("patch_embed.proj.weight").reshape(VISION_DIM, -1).T
    core = ov.Core()
    compiled = core.compile_model(tiny_model / files.VISION_PATCHES, "CPU", F32)
    np.testing.assert_allclose(compiled([pixels.astype(np.float32)])[0], x, atol=1e-4)
    start = x
    for i in range(2):
        q, k, v = np.split(linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", x)), 3, axis=1)
        scores = turn(q, angles) @ turn(k, angles).T / np.sqrt(HEAD_DIM)
        attention = np.exp(scores - scores.max(1, keepdims=True))
        x = x + linear(f"blocks.{i}.attn.proj", attention / attention.sum(1, keepdims=True) @ v)
        wide = linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", x))
        x = x + linear(f"blocks.{i}.mlp.fc2", wide / (1 + np.exp(-1.702 * wide)))
    x = linear("merger.mlp.0", norm("merger.ln_q", x).reshape(2, -1))
    erf = np.vectorize(__import__("math").erf)
    x = linear("merger.mlp.2", x * 0.5 * (1 + erf(x / np.sqrt(2))))
    inputs = {
        "hidden_states": start.astype(np.float32),
        "attention_mask": np.zeros((1, 8, 8), np.float32),
        "rotary_pos_emb": angles.astype(np.float32),
    }
    got = core.compile_model(tiny_model / files.VISION_MERGER, "CPU", F32)(inputs)[0]
    np.testing.assert_allclose(got, x, atol=1e-3)


def test_both_namings_of_weights_give_the_same_model(tiny_checkpoint: Path, tiny_model: Path, tmp_path: Path) -> None:
    """transformers 5 nests the language model and the vision tower under `model`, and puts `text_config` in config."""
    shutil.copytree(tiny_checkpoint, tmp_path / "new")
    renamed = {
        "lm_head.weight" if name == "lm_head.weight"
        else f"model.{name}" if name.startswith("visual.")
        else name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in load_file(tiny_checkpoint / "model.safetensors").items()
    }  # fmt: skip
    save_file(renamed, tmp_path / "new" / "model.safetensors")
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    outer = {k: config.pop(k) for k in ("model_type", "image_token_id", "vision_config", "tie_word_embeddings")}
    rope = {"rope_theta": config.pop("rope_theta"), "mrope_section": config.pop("rope_scaling")["mrope_section"]}
    (tmp_path / "new" / "config.json").write_text(
        json.dumps(outer | {"text_config": config | {"rope_parameters": rope}})
    )
    export(tmp_path / "new", tmp_path / "out")
    weights = files.LANGUAGE.replace(".xml", ".bin")
    assert (tmp_path / "out" / weights).read_bytes() == (tiny_model / weights).read_bytes()


def test_bfloat16_weights_become_what_they_stand_for(tmp_path: Path, tiny_checkpoint: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "bf16")
    values = np.array([1.0, -2.5, 3.140625, 0.0], np.float32)  # bfloat16 has 8 bits of mantissa
    data = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, len(data)]}}).encode()
    (tmp_path / "bf16" / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert Checkpoint(tmp_path / "bf16").weight("x").tolist() == values.reshape(2, 2).tolist()


def test_what_cannot_be_exported_says_why(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint, tmp_path / "other")
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="llama"):
        export(tmp_path / "other", tmp_path / "out")
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    tensors = load_file(tiny_checkpoint / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "other" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        export(tmp_path / "other", tmp_path / "out")
