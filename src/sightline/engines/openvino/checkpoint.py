"""A model directory as Hugging Face lays it out: the configuration, as far as we use it, and the weights.

The safetensors format is a length, a JSON header and the tensors' bytes: a page of code, and no dependency.
Format: https://huggingface.co/docs/safetensors (8-byte little-endian header length, JSON header, data).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from sightline.engines.checkpoint import CheckpointError, read_json

ARCHITECTURE: Final = "qwen2_vl"


@dataclass(frozen=True, slots=True)
class LanguageConfig:
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]
    """Frequencies that turn with frame, row and column; they sum to head_dim / 2."""
    tie_word_embeddings: bool
    context_length: int


@dataclass(frozen=True, slots=True)
class VisionConfig:
    depth: int
    embed_dim: int
    num_heads: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    in_channels: int
    layer_norm_eps: float = 1e-6

    @property
    def head_dim(self) -> int:
        return self.embed_dim // self.num_heads

    @property
    def patch_values(self) -> int:
        """Numbers in a flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What `config.json` says, whichever of the layouts of the last years it is in."""

    language: LanguageConfig
    vision: VisionConfig
    image_token_id: int
    eos_token_ids: frozenset[int]
    """From `generation_config.json`, else from `config.json`."""


def read_facts(model_dir: Path) -> ModelFacts:
    """Raises `CheckpointError` for another architecture, a missing key or an unreadable file."""
    config = read_json(model_dir / "config.json")
    if config.get("model_type") != ARCHITECTURE:
        raise CheckpointError(f"config.json: model_type is {config.get('model_type')!r}; {ARCHITECTURE!r} is served")
    try:
        return _to_facts(config, model_dir)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"config.json: {type(error).__name__}: {error}") from error


def _to_facts(config: dict[str, Any], model_dir: Path) -> ModelFacts:
    # transformers 5 nests the language model's keys in text_config and renames rope_scaling; both layouts are about.
    text: dict[str, Any] = {**config, **config.get("text_config", {})}
    rope: dict[str, Any] = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    heads = int(text["num_attention_heads"])
    frame, row, column = (int(n) for n in rope["mrope_section"])
    language = LanguageConfig(
        hidden_size=int(text["hidden_size"]),
        num_layers=int(text["num_hidden_layers"]),
        num_heads=heads,
        num_kv_heads=int(text.get("num_key_value_heads", heads)),
        head_dim=int(text.get("head_dim") or text["hidden_size"] // heads),
        vocab_size=int(text["vocab_size"]),
        rms_norm_eps=float(text.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta") or text["rope_theta"]),
        mrope_section=(frame, row, column),
        tie_word_embeddings=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        context_length=int(text["max_position_embeddings"]),
    )
    seen: dict[str, Any] = config["vision_config"]
    vision = VisionConfig(
        depth=int(seen["depth"]),
        embed_dim=int(seen["embed_dim"]),
        num_heads=int(seen["num_heads"]),
        patch_size=int(seen.get("patch_size", 14)),
        temporal_patch_size=int(seen.get("temporal_patch_size", 2)),
        spatial_merge_size=int(seen.get("spatial_merge_size", 2)),
        in_channels=int(seen.get("in_channels", seen.get("in_chans", 3))),
    )
    generation_file = model_dir / "generation_config.json"
    generation = read_json(generation_file) if generation_file.exists() else {}
    eos = generation.get("eos_token_id", text.get("eos_token_id"))
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    return ModelFacts(language, vision, int(config["image_token_id"]), frozenset(int(i) for i in ids))


class Weights:
    """The tensors of a directory's safetensors files. They are mapped, not read, until they are asked for."""

    def __init__(self, checkpoint_dir: Path, original: Callable[[str], str] = str) -> None:
        """`original`: from a name in the files to the name by which a tensor is asked for."""
        self._dir = checkpoint_dir
        self._original = original

    def weight(self, name: str) -> npt.NDArray[Any]:
        """A tensor by its name: f16 stays f16, f32 stays f32, bf16 becomes f32."""
        return _to_array(*self._tensor(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor, which is not read for it."""
        return tuple(self._tensor(name)[1]["shape"])

    def _tensor(self, name: str) -> _Tensor:
        try:
            return self._tensors[name]
        except KeyError:
            raise CheckpointError(f"the checkpoint has no weight {name!r}") from None

    @cached_property
    def _tensors(self) -> dict[str, _Tensor]:
        files = sorted(self._dir.glob("*.safetensors"))
        if not files:
            raise CheckpointError("the checkpoint holds no *.safetensors file")
        return {self._original(name): tensor for file in files for name, tensor in _read_safetensors(file).items()}


class Checkpoint(Weights):
    """Configuration and weights of a Qwen2-VL checkpoint, by the names of the original ones."""

    def __init__(self, checkpoint_dir: Path) -> None:
        super().__init__(checkpoint_dir, _original)
        facts = read_facts(checkpoint_dir)
        self.language = facts.language
        self.vision = facts.vision


def _original(name: str) -> str:
    """transformers 5 writes `model.language_model.…` and `model.visual.…` for what was `model.…` and `visual.…`."""
    return name.replace("model.language_model.", "model.", 1).replace("model.visual.", "visual.", 1)


_Tensor: TypeAlias = tuple[npt.NDArray[np.uint8], dict[str, Any]]
"""The bytes of a file's tensors, and the tensor's entry in its header."""


def _read_safetensors(path: Path) -> dict[str, _Tensor]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    data = np.memmap(path, np.uint8, "r", offset=8 + length)
    header.pop("__metadata__", None)
    return {name: (data, entry) for name, entry in header.items()}


def _to_array(data: npt.NDArray[np.uint8], entry: dict[str, Any]) -> npt.NDArray[Any]:
    begin, end = entry["data_offsets"]
    raw, shape = data[begin:end], entry["shape"]
    match entry["dtype"]:
        case "F32":
            return raw.view("<f4").reshape(shape)
        case "F16":
            return raw.view("<f2").reshape(shape)
        case "BF16":
            # numpy has no bfloat16: it is the upper half of a float32
            return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        case other:
            raise CheckpointError(f"weights of type {other} are not supported")
