"""The tiny model, made once for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.engines.openvino.export import export
from tests.engines.openvino.tiny import write_checkpoint


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In Hugging Face format, without IR."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint: Path) -> Path:
    """As the engine takes it."""
    out = tiny_checkpoint.parent / "model"
    export(tiny_checkpoint, out)
    return out
