"""The files that Ray and Anyscale take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sightline import cli
from sightline.cluster import plan as plans
from sightline.cluster.serve_config import Answers, of_answers, of_file, to_anyscale_service, to_replicas
from sightline.errors import InvalidRequest


def config(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert cli.main(["cluster", "config", *arguments]) == 0
    written: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return written


def test_a_model_by_flags(capsys: pytest.CaptureFixture[str]) -> None:
    written = config(
        capsys, "--model", "Qwen/Qwen2.5-VL-7B-Instruct", "--engine", "vllm", "--accelerator", "A10G",
        "--replicas", "0-8", "--token-variable", "HF_TOKEN",
    )  # fmt: skip
    assert written["http_options"] == {"host": "127.0.0.1", "port": 8000}
    (application,) = written["applications"]
    assert application["import_path"] == "sightline.cluster:app"
    plan = plans.of_app(application["args"])
    (model,) = plans.to_settings(plan.settings).models
    assert (model.name, model.engine, model.source) == (
        "Qwen2.5-VL-7B-Instruct", "vllm", "Qwen/Qwen2.5-VL-7B-Instruct",
    )  # fmt: skip
    assert "HF_TOKEN" in model.options["pass_environment"]
    options = plan.deployments[model.name]
    assert options["autoscaling_config"] == {"min_replicas": 0, "max_replicas": 8}
    assert options["ray_actor_options"] == {"num_gpus": 1, "accelerator_type": "A10G"}


def test_nothing_said_is_the_embedded_model(capsys: pytest.CaptureFixture[str]) -> None:
    (application,) = config(capsys)["applications"]
    plan = plans.of_app(application["args"])
    assert plans.to_settings(plan.settings).models[0].name == "peek"
    assert plan.deployments == {"peek": {"num_replicas": 1}}


def test_a_file_keeps_its_settings_and_its_secrets_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    file = tmp_path / "sightline.yaml"
    file.write_text(
        "request_timeout_s: 20\nport: 9000\njobs: redis://:${REDIS_PASSWORD}@queue:6379/0\n"
        "models:\n- {name: a, source: model}\n- {name: b, engine: fake}\n"
    )
    out = tmp_path / "serve.yaml"
    assert cli.main(["cluster", "config", str(file), "--replicas", "2", "-o", str(out)]) == 0
    (application,) = yaml.safe_load(out.read_text())["applications"]
    args = application["args"]
    assert args["settings"]["request_timeout_s"] == 20
    assert args["settings"]["jobs"] == "redis://:${REDIS_PASSWORD}@queue:6379/0"
    assert "port" not in args["settings"]
    assert args["settings"]["models"][0]["source"] == str(tmp_path / "model")
    assert args["deployments"] == {"a": {"num_replicas": 2}, "b": {"num_replicas": 2}}


def test_an_open_address_needs_a_file_that_says_who_may_ask(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["cluster", "config", "--host", "0.0.0.0"]) == 1
    assert "no key protects them" in capsys.readouterr().err


def test_a_file_with_a_mistake_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sightline.yaml"
    file.write_text("request_timeout_s: soon\n")
    assert cli.main(["cluster", "config", str(file)]) == 1
    assert "request_timeout_s" in capsys.readouterr().err


def test_what_a_replica_may_have_to_do_is_written_where_the_policy_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sightline.yaml"
    file.write_text("models:\n- {name: a, engine: fake}\n")
    for words in (("--model", "peek"), (str(file),)):
        (application,) = config(capsys, *words, "--replicas", "0-3", "--target-tokens", "900")["applications"]
        ((_, options),) = application["args"]["deployments"].items()
        assert options["autoscaling_config"] == {
            "min_replicas": 0,
            "max_replicas": 3,
            "target_outstanding_tokens": 900,
        }
    assert cli.main(["cluster", "config", "--model", "peek", "--replicas", "2", "--target-tokens", "900"]) == 1
    assert "name two numbers, 2-3" in capsys.readouterr().err
    assert cli.main(["cluster", "config", "--model", "peek", "--replicas", "0-2", "--target-tokens", "0"]) == 1
    assert "a number of tokens from 1 on" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "replicas"), [("3", (3, 3)), ("0-8", (0, 8)), ("2-2", (2, 2))])
def test_replicas(text: str, replicas: tuple[int, int]) -> None:
    assert to_replicas(text) == replicas


@pytest.mark.parametrize("text", ["0", "0-0", "8-2", "", "many", "-1", "1-"])
def test_replicas_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(InvalidRequest, match="Replicas are a number"):
        to_replicas(text)


def test_anyscales_service_has_its_documented_fields() -> None:
    service = to_anyscale_service(of_answers(Answers()), image="registry.example.com/sightline:1")
    assert set(service) == {"name", "image_uri", "query_auth_token_enabled", "applications"}
    assert set(service["applications"][0]) == {"name", "route_prefix", "import_path", "runtime_env", "args"}


def test_a_source_elsewhere_stays_as_it_is() -> None:
    args = of_file({"models": [{"name": "a", "source": "org/model"}]}, Path("/nowhere"), (1, 3), None)
    assert args["settings"]["models"] == [{"name": "a", "source": "org/model"}]
    assert args["deployments"]["a"] == {"autoscaling_config": {"min_replicas": 1, "max_replicas": 3}}
