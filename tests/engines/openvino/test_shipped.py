"""The embedded model: what runs is what ships, and its IR holds the checkpoint's numbers."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines import open_engine
from sightline.engines.openvino import files
from sightline.engines.openvino.export import export

CONFIG = ModelConfig(name=PEEK)
WEIGHTS = [name.replace(".xml", ".bin") for name in files.MODELS]


@pytest.mark.anyio
async def test_the_server_s_engine_runs_the_shipped_weights() -> None:
    """In its child process, as the server opens it."""
    engine = open_engine(CONFIG)
    await engine.start()
    try:
        shipped = (CONFIG.path / WEIGHTS[0]).read_bytes()
        assert engine.info.weights_digest == f"sha256:{hashlib.sha256(shipped).hexdigest()}"
    finally:
        await engine.close()


def test_the_ir_is_the_checkpoint_s_export(tmp_path: Path) -> None:
    """After training: `python -m sightline.engines.openvino.export src/sightline/peek/model`."""
    export(CONFIG.path, tmp_path)
    for name in WEIGHTS:
        assert (tmp_path / name).read_bytes() == (CONFIG.path / name).read_bytes(), f"{name}: export anew"
