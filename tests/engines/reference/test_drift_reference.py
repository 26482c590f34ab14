"""The same answer on three engines: `sightline drift` on `peek`, with 200 pairs that nobody was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.cli import main
from sightline.config import PEEK, ModelConfig
from sightline.engines.llamacpp.convert import convert

pytestmark = [pytest.mark.engine_reference, pytest.mark.timeout(900)]


def test_ours_transformers_and_llamacpp_agree(tmp_path: Path) -> None:
    convert(ModelConfig(name=PEEK).path, tmp_path / "gguf", "f32")
    options = ["transformers.threads=1", f"llamacpp.source={tmp_path / 'gguf'}", "llamacpp.threads=1"]
    options += ["llamacpp.kv_cache_type=f32", "llamacpp.flash_attention=false"]
    chosen = [word for option in options for word in ("--engine-option", option)]
    out = tmp_path / "out"
    assert main(["drift", PEEK, "--engines", "openvino,transformers,llamacpp", *chosen, "--out", str(out)]) == 0
    found = json.loads((out / "drift.json").read_text(encoding="utf-8"))
    assert [agreement["of"] for agreement in found["agreements"]] == [200, 200]
    said = {question["answers"]["openvino"]["text"] for question in found["questions"]}
    assert len(said) > 30, "answers that are all alike would agree on anything"
