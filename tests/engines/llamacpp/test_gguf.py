"""A checkpoint as llama.cpp takes it: read back, the files hold what the checkpoint holds."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants
from safetensors.numpy import load_file, save_file

from sightline.config import PEEK, ModelConfig
from sightline.engines.checkpoint import CheckpointError
from sightline.engines.llamacpp.convert import WeightType, convert
from sightline.engines.openvino.checkpoint import Checkpoint
from tests.engines.openvino.tiny import write_checkpoint

MODEL = ModelConfig(name=PEEK).path
QWEN2_SPLIT = json.loads((MODEL / "tokenizer.json").read_text())["pre_tokenizer"]

UNUSED_BYTE = "\u00ff"
"""Stands for a byte that UTF-8 does not have."""


class Read:
    """A GGUF file's keys and tensors."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.keys = {name: field.contents() for name, field in reader.fields.items()}
        self.types = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def __getitem__(self, name: str) -> np.ndarray:
        """Dequantised, in the checkpoint's shape."""
        tensor = self._tensors[name]
        shape = [int(n) for n in reversed(tensor.shape)]
        return quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)


@pytest.fixture(scope="module", params=["f32", "f16", "q8_0"])
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[WeightType, Path]:
    out = tmp_path_factory.mktemp(request.param)
    convert(MODEL, out, request.param)
    return request.param, out


def files(converted: tuple[WeightType, Path]) -> tuple[Read, Read]:
    weights, out = converted
    return Read(out / f"model-{weights}.gguf"), Read(out / f"mmproj-{weights}.gguf")


def test_every_weight_arrives(converted: tuple[WeightType, Path]) -> None:
    language, vision = files(converted)
    checkpoint = Checkpoint(MODEL)
    fused = checkpoint.weight("visual.blocks.3.attn.qkv.weight")
    pairs = [
        (language["token_embd.weight"], "model.embed_tokens.weight"),
        (language["blk.0.attn_q.weight"], "model.layers.0.self_attn.q_proj.weight"),
        (language["blk.3.attn_v.bias"], "model.layers.3.self_attn.v_proj.bias"),
        (language["blk.2.attn_output.weight"], "model.layers.2.self_attn.o_proj.weight"),
        (language["blk.1.ffn_down.weight"], "model.layers.1.mlp.down_proj.weight"),
        (language["blk.1.attn_norm.weight"], "model.layers.1.input_layernorm.weight"),
        (language["blk.1.ffn_norm.weight"], "model.layers.1.post_attention_layernorm.weight"),
        (language["output_norm.weight"], "model.norm.weight"),
        (vision["v.blk.0.ffn_up.weight"], "visual.blocks.0.mlp.fc1.weight"),
        (vision["v.blk.0.ffn_down.bias"], "visual.blocks.0.mlp.fc2.bias"),
        (vision["v.blk.2.ln1.bias"], "visual.blocks.2.norm1.bias"),
        (vision["v.post_ln.weight"], "visual.merger.ln_q.weight"),
        (vision["mm.0.weight"], "visual.merger.mlp.0.weight"),
        (vision["mm.2.bias"], "visual.merger.mlp.2.bias"),
        (np.concatenate([vision[f"v.blk.3.attn_{letter}.weight"] for letter in "qkv"]), fused),
        (
            np.stack([vision["v.patch_embd.weight"], vision["v.patch_embd.weight.1"]], axis=2),
            "visual.patch_embed.proj.weight",
        ),
    ]
    for written, source in pairs:
        original = (checkpoint.weight(source) if isinstance(source, str) else source).astype(np.float32)
        assert written.shape == original.shape
        if converted[0] == "q8_0" and original.ndim == 2:
            assert np.abs(written - original).max() <= np.abs(original).max() / 250, source
        else:
            assert np.array_equal(written, original), source


def test_nothing_of_the_checkpoint_is_left_behind(converted: tuple[WeightType, Path]) -> None:
    language, vision = files(converted)
    sizes = sum(np.prod(read[name].shape) for read in (language, vision) for name in read.types)
    assert sizes == sum(tensor.size for tensor in load_file(MODEL / "model.safetensors").values())


def test_norms_and_biases_stay_exact(converted: tuple[WeightType, Path]) -> None:
    language, vision = files(converted)
    wanted = {"f32": "F32", "f16": "F16", "q8_0": "Q8_0"}[converted[0]]
    for read in (language, vision):
        for name, type_ in read.types.items():
            plain = name.endswith(("bias", "norm.weight")) or ".ln" in name or "post_ln" in name
            small = name.startswith("v.patch_embd") and wanted == "Q8_0"  # its rows are shorter than a block
            assert type_.name == ("F32" if plain or small else wanted), name


def test_keys_are_the_configuration(converted: tuple[WeightType, Path]) -> None:
    language, vision = files(converted)
    assert {name.removeprefix("qwen2vl."): value for name, value in language.keys.items() if "qwen2vl." in name} == {
        "block_count": 4, "context_length": 2048, "embedding_length": 256, "feed_forward_length": 768,
        "attention.head_count": 4, "attention.head_count_kv": 2, "attention.key_length": 64,
        "attention.value_length": 64, "rope.freq_base": 100.0, "rope.dimension_sections": [8, 12, 12, 0],
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
    }  # fmt: skip
    assert vision.keys["clip.projector_type"] == "qwen2vl_merger"
    assert (vision.keys["clip.vision.image_min_pixels"], vision.keys["clip.vision.image_max_pixels"]) == (12544, 38400)
    assert vision.keys["clip.vision.image_mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])


def test_the_vocabulary_keeps_its_numbers(converted: tuple[WeightType, Path]) -> None:
    language, _ = files(converted)
    tokenizer = json.loads((MODEL / "tokenizer.json").read_text())
    texts, types = language.keys["tokenizer.ggml.tokens"], language.keys["tokenizer.ggml.token_type"]
    assert {text: texts.index(text) for text in tokenizer["model"]["vocab"]} == tokenizer["model"]["vocab"]
    for token in tokenizer["added_tokens"]:
        assert (texts[token["id"]], types[token["id"]]) == (token["content"], gguf.TokenType.CONTROL)
    assert [tuple(merge.split(" ")) for merge in language.keys["tokenizer.ggml.merges"]] == [
        tuple(merge) for merge in tokenizer["model"]["merges"]
    ]
    assert language.keys["tokenizer.ggml.pre"] == "qwen2"
    assert language.keys["tokenizer.ggml.eos_token_id"] == texts.index("<|im_end|>")
    assert language.keys["tokenizer.chat_template"] == (MODEL / "chat_template.jinja").read_text()


def test_what_the_engine_reads_lies_beside(converted: tuple[WeightType, Path]) -> None:
    names = {path.name for path in converted[1].iterdir()}
    assert names >= {"config.json", "preprocessor_config.json", "tokenizer.json", "chat_template.jinja"}
    assert not any(name.endswith(".safetensors") for name in names)


def checkpoint_with(directory: Path, **tokenizer: object) -> Path:
    """A tiny checkpoint whose tokenizer splits as Qwen2's, and has a pair, unless said otherwise."""
    write_checkpoint(directory)
    path = directory / "tokenizer.json"
    written = json.loads(path.read_text())
    vocabulary = {("ab" if text == UNUSED_BYTE else text): i for text, i in written["model"]["vocab"].items()}
    model = {**written["model"], "vocab": vocabulary, "merges": [["a", "b"]]}
    path.write_text(json.dumps({**written, "pre_tokenizer": QWEN2_SPLIT, "model": model, **tokenizer}))
    return directory


def test_a_shallow_vision_tower_and_a_head_of_its_own(tmp_path: Path) -> None:
    """llama.cpp's converter has no name for the merger of a tower of fewer than three blocks."""
    language, vision = (Read(path) for path in convert(checkpoint_with(tmp_path / "tiny"), tmp_path / "out", "f32"))
    checkpoint = Checkpoint(tmp_path / "tiny")
    assert np.array_equal(vision["mm.2.weight"], checkpoint.weight("visual.merger.mlp.2.weight").astype(np.float32))
    assert np.array_equal(language["output.weight"], checkpoint.weight("lm_head.weight").astype(np.float32))


def test_weights_in_bf16(tmp_path: Path) -> None:
    """As most checkpoints are published; numpy has no such type, so they go by f32."""
    directory = checkpoint_with(tmp_path / "tiny")
    exact = {name: to_bf16(tensor) for name, tensor in load_file(directory / "model.safetensors").items()}
    write_bf16(directory / "model.safetensors", exact)
    language, vision = (Read(path) for path in convert(directory, tmp_path / "out", "f32"))
    for read, name, source in (
        (language, "blk.1.ffn_gate.weight", "model.layers.1.mlp.gate_proj.weight"),
        (vision, "v.blk.1.ln2.bias", "visual.blocks.1.norm2.bias"),
    ):
        assert np.array_equal(read[name], (exact[source].astype(np.uint32) << 16).view(np.float32))


def to_bf16(tensor: np.ndarray) -> np.ndarray:
    """The upper halves, cut off."""
    return (tensor.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def write_bf16(path: Path, tensors: dict[str, np.ndarray]) -> None:
    header, end = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor.tobytes() for tensor in tensors.values()))


def test_progress_is_told_to_the_last_byte(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    convert(checkpoint_with(tmp_path / "tiny"), tmp_path / "out", "f16", lambda *said: told.append(said))
    for name in ("model-f16.gguf", "mmproj-f16.gguf"):
        steps = [(written, total) for file, written, total in told if file == name]
        assert [written for written, _ in steps] == sorted({written for written, _ in steps})
        assert steps[0][0] == 0
        assert steps[-1][0] == steps[-1][1] < (tmp_path / "out" / name).stat().st_size


def test_another_architecture_is_told_where_to_go(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(CheckpointError, match=r"model_type is 'llava'.*convert_hf_to_gguf\.py.*--mmproj"):
        convert(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_tokenizer_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    odd = checkpoint_with(tmp_path / "odd", pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False})
    with pytest.raises(CheckpointError, match="tokenise differently"):
        convert(odd, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_vocabulary_without_pairs_is_refused(tmp_path: Path) -> None:
    """llama.cpp loads none."""
    bare = checkpoint_with(tmp_path / "bare")
    (bare / "tokenizer.json").write_text((bare / "tokenizer.json").read_text().replace('[["a", "b"]]', "[]"))
    with pytest.raises(CheckpointError, match="no merges"):
        convert(bare, tmp_path / "out")


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    holed = checkpoint_with(tmp_path / "holed")
    weights = load_file(holed / "model.safetensors")
    del weights["visual.merger.ln_q.bias"]
    save_file(weights, holed / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"visual\.merger\.ln_q\.bias"):
        convert(holed, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
