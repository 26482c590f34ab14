"""`sightline import`: what becomes of LiteLLM's model_list, and what is told not to."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sightline.cli import main
from sightline.cli.import_ import to_sightline
from sightline.errors import InvalidRequest

LITELLM = """
model_list:
  - model_name: local
    litellm_params:
      {model: hosted_vllm/qwen, api_base: "http://localhost:8001/v1", api_key: os.environ/VLLM_KEY, timeout: 30}
    model_info: {id: 1}
  - model_name: small
    litellm_params: {model: ollama_chat/llava, api_base: "http://localhost:11434"}
  - model_name: local
    litellm_params: {model: openai/other, api_base: "http://localhost:8002/v1", api_key: sk-literal, rpm: 5}
litellm_settings:
  fallbacks: [{local: [small]}, {small: [local]}]
  num_retries: 2
general_settings: {master_key: sk-master}
"""


def test_the_result_passes_check(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_VLLM_KEY", "k")
    (tmp_path / "litellm.yaml").write_text(LITELLM)
    out = tmp_path / "sightline.yaml"
    assert main(["import", str(tmp_path / "litellm.yaml"), "--out", str(out)]) == 0
    told = capsys.readouterr().err
    assert main(["check", str(out)]) == 0, capsys.readouterr().err
    models = {model["name"]: model for model in yaml.safe_load(out.read_text())["models"]}
    assert models["local"]["options"] == {
        "base_url": "http://localhost:8001/v1", "model": "qwen", "api_key_env": "SIGHTLINE_VLLM_KEY", "total_s": 30.0,
    }  # fmt: skip
    assert models["local"]["fallbacks"] == ["local-2", "small"]
    assert (models["small"]["engine"], models["small"]["options"]["model"]) == ("ollama", "llava")
    for lost in (
        "model_info",
        "rpm",
        "api_key: a key written out",
        "num_retries",
        "general_settings",
        "small to local",
    ):
        assert lost in told
    assert "sk-" not in told + out.read_text()
    assert main(["import", str(tmp_path / "litellm.yaml"), "--out", str(out)]) == 1, "it must not replace a file"


def test_a_provider_goes_to_the_engine_litellm() -> None:
    params = {
        "model": "anthropic/claude",
        "api_key": "os.environ/MY_KEY",
        "aws_region_name": "eu",
        "api_base": "os.environ/BASE",
    }
    made, notes = to_sightline({"model_list": [{"model_name": "c", "litellm_params": params}]})
    options = {"model": "anthropic/claude", "api_base": "${BASE}", "region": "eu", "env": ["ANTHROPIC_API_KEY"]}
    assert made == {"models": [{"name": "c", "engine": "litellm", "options": options}]}
    assert notes == ["model_list[0].litellm_params.api_key: the name MY_KEY; set ANTHROPIC_API_KEY to the same key"]


@pytest.mark.parametrize("given", [None, [], {}, {"model_list": []}, {"model_list": [{"model_name": "a"}]}])
def test_another_file_is_refused(given: object) -> None:
    with pytest.raises(InvalidRequest, match="model_list"):
        to_sightline(given)
