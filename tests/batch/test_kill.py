"""A small one of `python -m tests.batch.kill`."""

from __future__ import annotations

from pathlib import Path

from tests.batch.kill import run_killed


def test_rows_survive_kills(tmp_path: Path) -> None:
    killed, _ = run_killed(tmp_path, total=60, kills=2, seed=1, step_s=0.03)
    assert killed == 2
