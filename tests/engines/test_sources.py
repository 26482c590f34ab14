"""What may be named as a model, and for which engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines import ENGINES
from sightline.engines.sources import check_source, kind_of, model_directory, name_of
from sightline.errors import EngineUnavailable, InvalidRequest

HUB = "Qwen/Qwen2-VL-2B-Instruct"


@pytest.fixture
def gguf(tmp_path: Path) -> str:
    (tmp_path / "tiny-Q8_0.gguf").write_bytes(b"GGUF")
    return str(tmp_path / "tiny-Q8_0.gguf")


def test_what_a_source_is(tmp_path: Path, gguf: str) -> None:
    assert [kind_of(source) for source in (PEEK, str(tmp_path), gguf, HUB, "llama3.2-vision:11b")] == [
        "directory", "directory", "gguf", "hub", "name",
    ]  # fmt: skip


def test_what_a_model_is_called(tmp_path: Path, gguf: str) -> None:
    assert [name_of(source) for source in (PEEK, str(tmp_path), gguf, HUB)] == [
        PEEK, tmp_path.name, "tiny-Q8_0", HUB,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "source"),
    [
        ("openvino", "."), ("transformers", HUB), ("vllm", HUB), ("llamacpp", "GGUF"), ("llamacpp", "."),
        ("ollama", "llama3.2-vision:11b"), ("ollama", "hf.co/org/model-GGUF"), ("remote", HUB), ("fake", PEEK),
        *((engine, PEEK) for engine in ENGINES),
    ],
)  # fmt: skip
def test_what_an_engine_takes(engine: str, source: str, gguf: str) -> None:
    check_source(gguf if source == "GGUF" else source, engine, ENGINES[engine])


@pytest.mark.parametrize(
    ("engine", "source", "told"),
    [
        ("openvino", "nowhere", "There is no model 'nowhere': it is neither `peek` nor a directory."),
        (
            "openvino",
            HUB,
            "is the id of a model on .* takes a directory. Serve it with the engine transf",
        ),
        ("openvino", "GGUF", "is a GGUF file, .* Serve it with the engine llamacpp"),
        ("transformers", "nowhere", "nor the id of a model on Hugging Face's hub"),
        ("transformers", "GGUF", "Serve it with the engine llamacpp"),
        ("llamacpp", "nowhere.gguf", "There is no file 'nowhere.gguf'"),
        ("llamacpp", HUB, "takes a directory or a GGUF file"),
        ("ollama", "/nowhere", "There is no model '/nowhere'"),
        ("vllm", "./nowhere", "There is no model './nowhere'"),
    ],
)
def test_what_it_does_not_take(engine: str, source: str, told: str, gguf: str) -> None:
    with pytest.raises(InvalidRequest, match=told) as refused:
        check_source(gguf if source == "GGUF" else source, engine, ENGINES[engine])
    assert refused.value.param == "model"


def test_a_hubs_model_is_read_from_its_copy_and_never_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = ModelConfig(name="m", engine="transformers", source=HUB)
    with pytest.raises(EngineUnavailable, match=f"not on this machine: `sightline pull {HUB} --engine transformers`"):
        model_directory(config)
    repository = tmp_path / "models--Qwen--Qwen2-VL-2B-Instruct"
    (repository / "snapshots" / "abc").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert model_directory(config) == repository / "snapshots" / "abc"
