"""Killed at random moments while a batch runs, on both stores: nothing lost, nothing twice. `kill.py` does more."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.jobs.kill import VICTIMS, Outcome, StoreName, Victim, run_killed
from tests.jobs.redis_server import BINARY, needs_redis

ALL: list[tuple[StoreName, Victim]] = [(store, victim) for store, victims in VICTIMS.items() for victim in victims]
Outcomes = dict[tuple[StoreName, Victim], Future[Outcome]]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
    """All at once: most of the time each waits for a process to start."""

    def run(store: StoreName, victim: Victim, folder: Path) -> Outcome:
        return run_killed(folder, 40, kills=2, seed=3, within_s=150, store=store, victim=victim)

    with ThreadPoolExecutor(len(ALL)) as pool:
        yield {
            (store, victim): pool.submit(run, store, victim, tmp_path_factory.mktemp(f"{store}-{victim}"))
            for store, victim in ALL
            if store == "sqlite" or BINARY is not None
        }


@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("store", "victim"), [pytest.param(*each, marks=[needs_redis] if each[0] == "redis" else []) for each in ALL]
)
def test_no_line_is_lost_or_told_twice(outcomes: Outcomes, store: StoreName, victim: Victim) -> None:
    outcome = outcomes[store, victim].result()
    assert outcome.killed >= 1
    assert set(outcome.ends) <= {"200", "max_attempts"}
    assert outcome.ends["200"] >= 24
    if victim in ("engine", "redis"):
        assert outcome.ends == {"200": 40}, "it is waited for"
