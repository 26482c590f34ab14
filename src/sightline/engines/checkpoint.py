"""A model directory as Hugging Face lays it out, as far as every engine that opens one needs it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class CheckpointError(ValueError):
    """The directory does not hold what it must. The message names the file and what is wrong."""


def is_whisper(model_dir: Path) -> bool:
    """Whether the directory holds a speech model of Whisper's architecture."""
    try:
        return read_json(model_dir / "config.json").get("model_type") == "whisper"
    except CheckpointError:
        return False


def read_json(path: Path) -> dict[str, Any]:
    """Raises `CheckpointError` when the file is missing or is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name}: {type(error).__name__}: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name}: a JSON object is wanted")
    return value
