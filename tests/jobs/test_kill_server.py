"""Killed at random moments while a batch runs, on both stores: nothing lost, nothing twice. `kill.py` does more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.kill import VICTIMS, StoreName, Victim, run_killed
from tests.jobs.redis_server import needs_redis


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("store", "victim"),
    [
        pytest.param(store, victim, marks=[needs_redis] if store == "redis" else [])
        for store, victims in VICTIMS.items()
        for victim in victims
    ],
)
def test_no_line_is_lost_or_told_twice(tmp_path: Path, store: StoreName, victim: Victim) -> None:
    outcome = run_killed(tmp_path, 60, kills=3, seed=3, within_s=120, store=store, victim=victim)
    assert outcome.killed >= 1
    assert set(outcome.ends) <= {"200", "max_attempts"}
    assert outcome.ends["200"] >= 40
    if victim in ("engine", "redis"):
        assert outcome.ends == {"200": 60}, "it is waited for"
