"""A server killed at random moments while it works on a batch: nothing lost, nothing twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.kill import run_killed


@pytest.mark.timeout(180)
def test_no_line_is_lost_or_told_twice_however_often_the_server_is_killed(tmp_path: Path) -> None:
    killed, ends, _ = run_killed(tmp_path, 200, kills=3, seed=3, within_s=120)
    assert killed >= 1
    assert set(ends) <= {"200", "max_attempts"}
    assert ends["200"] > 150


@pytest.mark.timeout(180)
def test_a_batch_waits_for_an_engine_that_is_killed(tmp_path: Path) -> None:
    _, ends, _ = run_killed(tmp_path, 100, kills=3, seed=5, within_s=120, victim="engine")
    assert ends == {"200": 100}
