"""Which files of a directory llama.cpp is given, and what they tell of the model."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sightline.config import PEEK, ModelConfig
from sightline.engines.llamacpp.options import LlamaCppOptions
from sightline.engines.remote.options import wrong
from sightline.errors import EngineUnavailable
from sightline.images.budget import CellBudget, VisionBudget
from sightline.images.checkpoint import BudgetError, read_budget

_LATER_PART = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
"""Of a model in several files; llama.cpp finds them by the first."""
_CELL_TOWERS = {"qwen2vl_merger", "qwen2.5vl_merger", "qwen3vl_merger"}
"""Projectors for which a picture is a grid of cells, a token each (`clip_n_output_tokens` in llama.cpp's clip.cpp)."""
_MERGE = 2
_FEWEST_CELLS, _MOST_CELLS = 8, 4096
"""llama.cpp's own range for them, where nothing else is said (`set_limit_image_tokens` in clip.cpp)."""
_NORMAL_FORM_C = {"qwen2"}
"""`tokenizer.ggml.pre` of tokenizers that begin with NFC: Qwen2's, 2.5's and 3's."""
_NOT_TEXT = {2, 3, 4}
"""`tokenizer.ggml.token_type`: unknown, control and user-defined tokens, which are found wherever their text stands."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    model: Path
    mmproj: Path | None
    """None: a model that cannot see."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the files tell."""

    context_length: int | None
    special_tokens: tuple[str, ...]
    budget: VisionBudget | None
    """None: it cannot see, or by a rule that we do not know."""
    normalizes: bool
    """Its tokenizer takes text in normal form C, and llama.cpp leaves that to whoever asks."""


def find(config: ModelConfig, options: LlamaCppOptions) -> ModelFiles:
    """Raises `InvalidRequest` where there is none, or a choice that is the operator's."""
    if config.path.suffix.lower() == ".gguf" and options.model_file is None:
        options = msgspec.structs.replace(options, model_file=config.path.name)
    directory = config.path if config.path.is_dir() else config.path.parent
    found = [path for path in sorted(directory.glob("*.gguf")) if not _LATER_PART.search(path.name)]
    towers = [path for path in found if "mmproj" in path.name.lower()]
    models = [path for path in found if path not in towers]
    if not models and options.model_file is None:
        source = PEEK if config.source == PEEK else "CHECKPOINT"
        raise wrong(
            f"{config.source!r} holds no model as GGUF. `sightline convert {source} --for gguf --out DIR` makes one; "
            "then serve DIR."
        )
    model = _chosen(directory, models, options.model_file, "model_file")
    assert model is not None
    return ModelFiles(model, _chosen(directory, towers, options.mmproj_file, "mmproj_file"))


def _chosen(directory: Path, found: list[Path], named: str | None, option: str) -> Path | None:
    if named is not None:
        if Path(named).name != named or not (directory / named).is_file():
            raise wrong(f"{option} names a file of the model's directory; there is no {named!r}.")
        return directory / named
    if len(found) > 1:
        raise wrong(f"the directory holds {', '.join(path.name for path in found)}: choose one with {option}.")
    return found[0] if found else None


def read_facts(files: ModelFiles) -> Facts:
    """Reads both files' keys, and the checkpoint's configuration where it lies beside them.

    Raises `EngineUnavailable` for what is no GGUF file, or when the package that reads them is not there.
    """
    keys = _read_keys(files.model)
    budget = _budget(files.mmproj) if files.mmproj is not None else None
    length = keys.get(f"{keys.get('general.architecture')}.context_length")
    texts, types = keys.get("tokenizer.ggml.tokens") or [], keys.get("tokenizer.ggml.token_type") or []
    specials = tuple(str(text) for text, kind in zip(texts, types, strict=False) if kind in _NOT_TEXT)
    normalizes = keys.get("tokenizer.ggml.pre") in _NORMAL_FORM_C
    return Facts(length if isinstance(length, int) else None, specials, budget, normalizes)


def _budget(mmproj: Path) -> VisionBudget | None:
    """The checkpoint's own rule; else that of the tower's family; None where neither is known."""
    keys = _read_keys(mmproj)
    if keys.get("clip.projector_type", keys.get("clip.vision.projector_type")) not in _CELL_TOWERS:
        return None
    try:
        return read_budget(mmproj.parent)
    except BudgetError:
        cell = keys["clip.vision.patch_size"] * keys.get("clip.vision.spatial_merge_size", _MERGE)
        least = keys.get("clip.vision.image_min_pixels", _FEWEST_CELLS * cell**2)
        return CellBudget(cell, least, keys.get("clip.vision.image_max_pixels", _MOST_CELLS * cell**2))


def _read_keys(path: Path) -> dict[str, Any]:
    try:
        import gguf
    except ModuleNotFoundError:
        raise EngineUnavailable(
            "The engine llamacpp needs the package 'gguf': pip install 'sightline[llamacpp]'."
        ) from None
    try:
        return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise EngineUnavailable(f"{path.name} cannot be read as a GGUF file: {type(error).__name__}.") from None


def digest(model: Path) -> str:
    """`sha256:<hex>` of the file; of the first, of a model in several."""
    with model.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def to_option(budget: VisionBudget | None, files: ModelFiles, options: LlamaCppOptions) -> dict[str, Any] | str | None:
    """The budget as `RemoteOptions.budget`: what the operator says comes first."""
    if files.mmproj is None:
        return None
    if options.budget is not None:
        return options.budget
    return msgspec.to_builtins(budget) if budget is not None else "as-is"
