"""Cases of the evaluation to test with."""

from __future__ import annotations

from collections.abc import Sequence

from training.peek.evaluation.cases import Case
from training.peek.evaluation.tasks import TASKS, make_cases


def small_cases(count: int, seed: int, tasks: Sequence[str] = tuple(TASKS)) -> list[Case]:
    """Cases of each task whose pictures are quickly drawn."""

    def small(case: Case) -> bool:
        return all(scene.width * scene.height < 300_000 for scene in case.scenes)

    return [case for task in tasks for case in [c for c in make_cases(task, 6 * count, seed) if small(c)][:count]]
