"""What `batch run --on ray` refuses before there is a cluster; tests/cluster/test_batch_run.py has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from sightline.cli import batch_ray, main


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
    assert "pip install 'ray[data]>=2.60,<3'" in capsys.readouterr().err
    assert list(table.parent.iterdir()) == [table]
