"""What `batch run --on ray` refuses before there is a cluster; tests/cluster/test_batch_run.py has the rest."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sightline.cli import batch, batch_ray, main


@pytest.fixture
def table(tmp_path: Path) -> Path:
    table = tmp_path / "in.csv"
    table.write_text("prompt\nhello\n")
    return table


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--replicas", "2"], "--replicas goes with --on ray"),
        (["--ray-address", "10.0.0.1:6379"], "--ray-address goes with --on ray"),
        (["--on", "ray", "--url", "http://127.0.0.1:1/v1"], "with --url alone"),
        (["--on", "ray", "--engine", "none"], "'none'"),
        (["--on", "ray", "--engine", "fake", "--replicas", "0-2"], "--replicas is at least 1"),
        (["--on", "ray", "--engine", "fake", "--ray-address", "ray://h:1"], "ray job submit"),
        (["--on", "ray", "-c", "missing.yaml"], "missing.yaml cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_told(
    arguments: list[str], told: str, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_ray, "find_spec", lambda _: object())
    assert main(["batch", "run", str(table), "--out", str(table.with_name("out.csv")), *arguments]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["ray", "pyarrow"])
def test_without_ray_data_it_is_told_what_installs_it(
    missing: str, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_ray, "find_spec", lambda name: None if name == missing else object())
    out = table.with_name("out.csv")
    assert main(["batch", "run", str(table), "--out", str(out), "--engine", "fake", "--on", "ray"]) == 1
    assert "pip install 'sightline[cluster]'" in capsys.readouterr().err
    assert list(table.parent.iterdir()) == [table]


@pytest.mark.parametrize("how", [["--engine", "fake", "--option", "step_s=0.5"], ["-c", "sightline.yaml"]])
def test_the_cluster_is_told_which_model_and_what_to_keep_free(
    how: list[str], table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file, as it stands: the cluster's machines fill in `${NAME}`, and have the engines."""
    monkeypatch.chdir(table.parent)
    Path("sightline.yaml").write_text(
        "models: [{name: fake, engine: remote, source: '${MODEL}', max_concurrent: 3}]\njobs: '${REDIS}'\n"
    )
    monkeypatch.setattr(batch_ray, "find_spec", lambda _: object())
    monkeypatch.setattr(os, "environ", dict(os.environ))
    told: dict[str, Any] = {}

    def ray_batch(settings: dict[str, Any], model: str, **more: Any) -> None:
        told.update(settings=settings, model=model, **more)

    stub = SimpleNamespace(RayBatch=ray_batch, Replicas=lambda *given: given)
    monkeypatch.setitem(sys.modules, "sightline.batch.ray_data", stub)
    parser = argparse.ArgumentParser()
    batch.add_arguments(parser)
    args = parser.parse_args(
        ["run", str(table), "--out", "a.csv", "--on", "ray", "--replicas", "2-4", "--accelerator", "A10G", *how]
    )
    _, label = batch_ray.to_ray_batch(args, 7, {"retries": 2, "concurrency": None})
    assert (told["model"], told["total"], told["arguments"]) == ("fake", 7, {"retries": 2})
    assert told["replicas"] == (2, 4, {"num_gpus": 1, "accelerator_type": "A10G"})
    (model,) = told["settings"]["models"]
    if how[0] == "-c":
        assert (label, model["source"], told["settings"]["jobs"]) == ("fake", "${MODEL}", "${REDIS}")
        assert told["per_replica"] == 6
    else:
        assert (label, model["options"]) == ("fake:peek", {"step_s": 0.5})
        assert told["per_replica"] == 32
