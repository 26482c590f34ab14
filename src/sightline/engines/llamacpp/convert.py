"""A Qwen2-VL checkpoint in Hugging Face format becomes the two files that llama.cpp runs, in seconds and without torch.

What llama.cpp's own converter writes for this architecture (`conversion/qwenvl.py`, `conversion/base.py`), with the
same names of tensors and keys: the language model with its vocabulary in one file, the vision tower ("mmproj") in the
other. The tower's range of pixels is written too, which that converter leaves out and llama.cpp does not look for.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal, get_args

import gguf
import numpy as np
import numpy.typing as npt
from gguf import quants

from sightline.engines.checkpoint import CheckpointError, read_json
from sightline.engines.openvino.checkpoint import ARCHITECTURE, Checkpoint

WeightType = Literal["f32", "f16", "q8_0"]
WEIGHT_TYPES: Final[tuple[WeightType, ...]] = get_args(WeightType)

Progress = Callable[[str, int, int], None]
"""Told the file's name, bytes written and bytes in all."""

_FILE_TYPES: Final = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
}
_TENSOR_TYPES: Final = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_QWEN2_SPLIT: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Qwen2's tokenizer splits text before it looks for pairs; llama.cpp has this built in under the name `qwen2`."""
_MAP_BLOCKS: Final = 3
"""gguf's table of names takes the merger's second layer, `merger.mlp.2`, for one of a third block's."""
_LARGEST_PICTURE: Final = 560
"""Nominal; the tower takes pictures of any size."""


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    read: Callable[[], npt.NDArray[Any]]
    """Given when it is written, so that one tensor at a time is in memory."""
    shape: tuple[int, ...]
    type: gguf.GGMLQuantizationType

    @property
    def num_bytes(self) -> int:
        block, block_bytes = gguf.GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape)) // block * block_bytes


def convert(
    checkpoint_dir: Path, out_dir: Path, weights: WeightType = "f16", progress: Progress = lambda *_: None
) -> tuple[Path, Path]:
    """Writes the language model and the vision tower to `out_dir` (made if absent), with configuration and tokenizer
    beside them, from which the engine reads what the files do not hold. Gives the two paths.

    Norms and biases stay f32, as llama.cpp needs them. `q8_0`: blocks of 32 weights as int8 and a scale; a tensor whose
    rows are no multiple of 32 becomes f16. Raises `CheckpointError` for another architecture, a missing weight or a
    tokenizer that llama.cpp has no name for.
    """
    _check_architecture(checkpoint_dir)
    logging.getLogger("gguf").setLevel(logging.ERROR)  # it tells of every key at level INFO
    checkpoint = Checkpoint(checkpoint_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    language, vision = out_dir / f"model-{weights}.gguf", out_dir / f"mmproj-{weights}.gguf"
    # A running engine has the files mapped: they are replaced, never written over.
    with TemporaryDirectory(dir=out_dir) as unfinished:
        for path, make in ((language, _language_model), (vision, _vision_tower)):
            writer, tensors = make(checkpoint, checkpoint_dir, weights)
            writer.add_file_type(_FILE_TYPES[weights])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            _write(writer, tensors, Path(unfinished) / path.name, progress)
        for path in (language, vision):
            (Path(unfinished) / path.name).replace(path)
    if out_dir.resolve() != checkpoint_dir.resolve():
        _copy_companions(checkpoint_dir, out_dir)
    return language, vision


def _check_architecture(checkpoint_dir: Path) -> None:
    model_type = read_json(checkpoint_dir / "config.json").get("model_type")
    if model_type != ARCHITECTURE:
        raise CheckpointError(
            f"config.json: model_type is {model_type!r}; {ARCHITECTURE!r} is converted here. For every other use "
            "llama.cpp's own converter, which needs torch: `python convert_hf_to_gguf.py CHECKPOINT --outfile "
            "DIR/model.gguf`, and again with `--mmproj --outfile DIR/mmproj-model.gguf`; the engine serves DIR."
        )


def _copy_companions(checkpoint_dir: Path, out_dir: Path) -> None:
    for pattern in ("*.json", "*.jinja"):
        for path in checkpoint_dir.glob(pattern):
            if not path.name.endswith(".safetensors.index.json"):
                shutil.copyfile(path, out_dir / path.name)


# --- the language model ----------------------------------------------------------------------------------------------


def _language_model(
    checkpoint: Checkpoint, checkpoint_dir: Path, weights: WeightType
) -> tuple[gguf.GGUFWriter, list[_Tensor]]:
    config = checkpoint.language
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.QWEN2VL])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(checkpoint.shape("model.layers.0.mlp.up_proj.weight")[0])
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_sections([*config.mrope_section, 0])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _add_vocabulary(writer, checkpoint_dir, config.vocab_size)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2VL, config.num_layers)
    return writer, [
        _tensor(checkpoint, source, _gguf_name(names, source), weights)
        for source in _language_names(config.num_layers, tied=config.tie_word_embeddings)
    ]


def _language_names(num_layers: int, *, tied: bool) -> Iterator[str]:
    yield "model.embed_tokens.weight"
    for layer in range(num_layers):
        block = f"model.layers.{layer}"
        for projection in ("q_proj", "k_proj", "v_proj"):
            yield f"{block}.self_attn.{projection}.weight"
            yield f"{block}.self_attn.{projection}.bias"
        yield f"{block}.self_attn.o_proj.weight"
        for projection in ("gate_proj", "up_proj", "down_proj"):
            yield f"{block}.mlp.{projection}.weight"
        yield f"{block}.input_layernorm.weight"
        yield f"{block}.post_attention_layernorm.weight"
    yield "model.norm.weight"
    if not tied:
        yield "lm_head.weight"


def _add_vocabulary(writer: gguf.GGUFWriter, checkpoint_dir: Path, vocab_size: int) -> None:
    """The tokens in the order of their numbers, pairs, special tokens and the chat template."""
    tokenizer = read_json(checkpoint_dir / "tokenizer.json")
    _check_split(tokenizer)
    texts = [f"[PAD{number}]" for number in range(vocab_size)]
    types = [gguf.TokenType.UNUSED] * vocab_size
    try:
        for text, number in tokenizer["model"]["vocab"].items():
            texts[number], types[number] = text, gguf.TokenType.NORMAL
        for token in tokenizer["added_tokens"]:
            kind = gguf.TokenType.CONTROL if _is_control(token) else gguf.TokenType.USER_DEFINED
            texts[token["id"]], types[token["id"]] = token["content"], kind
    except (KeyError, TypeError, IndexError) as error:
        raise CheckpointError(
            f"tokenizer.json: {type(error).__name__}: {error}; a BPE vocabulary of up to {vocab_size} tokens is wanted"
        ) from None
    writer.add_tokenizer_model("gpt2")  # llama.cpp's word for byte-level BPE
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(texts)
    writer.add_token_types(types)
    gguf.SpecialVocab(checkpoint_dir, load_merges=True, n_vocab=vocab_size).add_to_gguf(writer, quiet=True)


def _check_split(tokenizer: dict[str, Any]) -> None:
    """llama.cpp's converter knows a tokenizer by the numbers it gives to a sample, so knows published vocabularies
    only; what makes one Qwen2's is how it splits."""
    splits = [part.get("pattern", {}).get("Regex") for part in _parts(tokenizer.get("pre_tokenizer"))]
    if tokenizer.get("model", {}).get("type") != "BPE" or _QWEN2_SPLIT not in splits:
        raise CheckpointError(
            "tokenizer.json: this is not Qwen2's byte-level BPE (its pre_tokenizer splits text in another way), so "
            "llama.cpp would tokenise differently from the model's own tokenizer"
        )
    if not tokenizer["model"].get("merges"):
        raise CheckpointError("tokenizer.json: it has no merges, without which llama.cpp loads no vocabulary")


def _parts(pre_tokenizer: dict[str, Any] | None) -> list[dict[str, Any]]:
    return (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {}]


def _is_control(token: dict[str, Any]) -> bool:
    text = token["content"]
    return bool(token.get("special")) or (text.startswith("<|") and text.endswith("|>"))


# --- the vision tower ------------------------------------------------------------------------------------------------


def _vision_tower(
    checkpoint: Checkpoint, checkpoint_dir: Path, weights: WeightType
) -> tuple[gguf.GGUFWriter, list[_Tensor]]:
    config = checkpoint.vision
    if config.temporal_patch_size != 2:
        raise CheckpointError(f"config.json: temporal_patch_size is {config.temporal_patch_size}; llama.cpp knows 2")
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.MMPROJ])
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type(gguf.VisionProjectorType.QWEN2VL)
    writer.add_vision_projection_dim(checkpoint.language.hidden_size)
    writer.add_vision_image_size(_LARGEST_PICTURE)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_spatial_merge_size(config.spatial_merge_size)
    writer.add_vision_embedding_length(config.embed_dim)
    writer.add_vision_feed_forward_length(checkpoint.shape("visual.blocks.0.mlp.fc1.weight")[0])
    writer.add_vision_block_count(config.depth)
    writer.add_vision_head_count(config.num_heads)
    writer.add_vision_attention_layernorm_eps(config.layer_norm_eps)
    _add_preprocessing(writer, read_json(checkpoint_dir / "preprocessor_config.json"))
    return writer, list(_vision_tensors(checkpoint, weights))


def _add_preprocessing(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    size: dict[str, Any] = config.get("size") or {}
    try:
        writer.add_vision_image_mean([float(value) for value in config["image_mean"]])
        writer.add_vision_image_std([float(value) for value in config["image_std"]])
        writer.add_vision_min_pixels(int(config.get("min_pixels") or size["shortest_edge"]))
        writer.add_vision_max_pixels(int(config.get("max_pixels") or size["longest_edge"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"preprocessor_config.json: {type(error).__name__}: {error}") from None


def _vision_tensors(checkpoint: Checkpoint, weights: WeightType) -> Iterator[_Tensor]:
    depth = checkpoint.vision.depth
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, max(depth, _MAP_BLOCKS))
    yield from _patch_embedding(checkpoint, weights)
    for block in (f"visual.blocks.{number}" for number in range(depth)):
        for part in ("weight", "bias"):
            for third, letter in enumerate("qkv"):
                name = _gguf_name(names, f"{block}.attn.{letter}.{part}")
                yield _tensor(checkpoint, f"{block}.attn.qkv.{part}", name, weights, partial(_third, third))
            for layer in ("attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2"):
                source = f"{block}.{layer}.{part}"
                yield _tensor(checkpoint, source, _gguf_name(names, source), weights)
    for layer in ("ln_q", "mlp.0", "mlp.2"):
        for part in ("weight", "bias"):
            source = f"visual.merger.{layer}.{part}"
            yield _tensor(checkpoint, source, _gguf_name(names, source), weights)


def _patch_embedding(checkpoint: Checkpoint, weights: WeightType) -> Iterator[_Tensor]:
    """The convolution over two frames as one for each. Never quantised: its rows are 14 pixels long."""
    exact: WeightType = "f16" if weights == "f16" else "f32"
    name = gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.V_ENC_EMBD_PATCH]
    for frame, suffix in enumerate((".weight", ".weight.1")):
        source = "visual.patch_embed.proj.weight"
        yield _tensor(checkpoint, source, f"{name}{suffix}", exact, partial(_frame, frame))


def _third(which: int, fused: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of queries, keys and values in one."""
    part: npt.NDArray[Any] = np.split(fused, 3)[which]
    return part


def _frame(which: int, kernel: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Of a kernel [outputs, channels, frames, rows, columns]."""
    return kernel[:, :, which]


# --- tensors ---------------------------------------------------------------------------------------------------------


def _gguf_name(names: gguf.TensorNameMap, source: str) -> str:
    name = names.get_name(source, try_suffixes=(".weight", ".bias"))
    assert name is not None, source
    return name


def _tensor(
    checkpoint: Checkpoint,
    source: str,
    name: str,
    weights: WeightType,
    part: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] = lambda whole: whole,
) -> _Tensor:
    shape = part(np.broadcast_to(np.float32(0), checkpoint.shape(source))).shape
    type_ = _TENSOR_TYPES[weights]
    if len(shape) == 1 or name.endswith("_norm.weight"):
        type_ = gguf.GGMLQuantizationType.F32
    elif shape[-1] % gguf.GGML_QUANT_SIZES[type_][0]:
        type_ = gguf.GGMLQuantizationType.F16

    def read() -> npt.NDArray[Any]:
        values = np.ascontiguousarray(part(checkpoint.weight(source)))
        return quants.quantize(values, type_)

    return _Tensor(name, read, shape, type_)


def _write(writer: gguf.GGUFWriter, tensors: list[_Tensor], path: Path, progress: Progress) -> None:
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.num_bytes, tensor.type)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total, written = sum(tensor.num_bytes for tensor in tensors), 0
    progress(path.name, written, total)
    for tensor in tensors:
        writer.write_tensor_data(tensor.read())
        written += tensor.num_bytes
        progress(path.name, written, total)
    writer.close()
