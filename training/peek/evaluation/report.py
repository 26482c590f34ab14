"""What a run amounts to: accuracy with its uncertainty, false refusals, conditions, another run beside it."""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.peek.evaluation.client import Result
from training.peek.evaluation.drawing import Scene
from training.peek.evaluation.tasks import CANNOT, TASKS

FORM = 1
"""Of the JSON: version 0's evaluation had ten tasks and none of what follows them."""
PHOTOGRAPHS = "photographs"
"""The task of real photographs, which is none of the table's."""
_MOST_FALSE_REFUSALS = 0.01


@dataclass(frozen=True, slots=True)
class Score:
    task: str
    n: int
    right: int
    floor: float | None

    @property
    def accuracy(self) -> float:
        return self.right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return wilson_interval(self.right, self.n)

    @property
    def passed(self) -> bool:
        """Whether the measured share reaches the floor; true where there is none."""
        return self.floor is None or self.accuracy >= self.floor


def wilson_interval(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """The interval that holds the true share with 95 % confidence (z = 1.96).

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def scores(results: Sequence[Result]) -> list[Score]:
    """A score for every task that was asked, in the table's order."""
    by_task = grouped(results, lambda r: r.case.task)
    return [
        Score(name, len(own), sum(r.right for r in own), task.floor)
        for name, task in TASKS.items()
        if (own := by_task.get(name))
    ]


def summarise(results: Sequence[Result], *, model: str, label: str, seed: int) -> dict[str, Any]:
    """The run in figures: what the docs show. `label` is what a table calls this run."""
    seconds = [r.seconds for r in results]
    return {
        "evaluation": FORM,
        "model": model,
        "label": label,
        "seed": seed,
        "tasks": [
            {
                "task": row.task,
                "n": row.n,
                "right": row.right,
                "accuracy": round(row.accuracy, 4),
                "interval_95": _rounded(row.interval),
                "floor": row.floor,
                "passed": row.passed,
            }
            for row in scores(results)
        ],
        "false_refusals": _false_refusals(results),
        "conditions": conditions(results),
        "photographs": _photographs(results),
        "failed_requests": sum(r.error is not None for r in results),
        "seconds": {"median": round(statistics.median(seconds), 3), "longest": round(max(seconds), 3)},
    }


def details(results: Sequence[Result]) -> dict[str, Any]:
    """What else a reader needs to check the table or to ask one case again; pictures by their digest."""
    asked = [r for r in results if r.case.task in TASKS]
    return {
        "breakdown": {
            "phrasing": _shares(asked, lambda r: f"{r.case.task}: {r.case.phrasing}"),
            "truth": _shares(asked, lambda r: f"{r.case.task}: {_truth_class(r)}"),
            "figures": _shares(asked, lambda r: f"{r.case.task}: {sum(len(s.figures) for s in r.case.scenes)}"),
        },
        "cases": [
            {
                "id": r.case.id,
                "question": r.case.question,
                "truth": r.case.truth,
                "answer": r.answer,
                "right": r.right,
                "error": r.error,
                "text_first": r.case.text_first,
                "seconds": round(r.seconds, 3),
                "pictures": list(r.digests),
            }
            for r in results
        ],
    }


def conditions(results: Sequence[Result]) -> dict[str, dict[str, dict[str, float]]]:
    """Right answers by what the picture's file was like, over all questions about one picture of `peek`'s world.

    Tasks are not equally hard nor equally frequent in each class, so that each class has beside its `n` and `right` the
    number `expected` to be right: what its questions would get at their tasks' own accuracies. A class far below it is
    a fault of the server's decoding as likely as of the model.
    """
    seen = [
        r
        for r in results
        if r.case.task in TASKS
        and r.case.task not in (*CANNOT, "greeting")
        and len(r.case.pictures) == len(r.case.scenes) == 1
    ]
    accuracy = {
        task: sum(r.right for r in own) / len(own) for task, own in grouped(seen, lambda r: r.case.task).items()
    }

    def by(of: Callable[[Result], str]) -> dict[str, dict[str, float]]:
        groups = sorted(grouped(seen, of).items(), key=lambda group: (_numbers(group[0]), group[0]))
        return {
            name: {
                "n": len(own),
                "right": sum(r.right for r in own),
                "expected": round(sum(accuracy[r.case.task] for r in own), 2),
            }
            for name, own in groups
        }

    return {
        "longer side": by(lambda r: _size_class(r.case.scenes[0])),
        "ratio of sides": by(lambda r: _ratio_class(r.case.scenes[0])),
        "format": by(lambda r: _format_class(r.case.scenes[0])),
        "orientation flag": by(lambda r: str(r.case.scenes[0].finish.orientation)),
        "blur": by(lambda r: "blurred" if r.case.scenes[0].finish.blur else "sharp"),
        "noise": by(lambda r: "noisy" if r.case.scenes[0].finish.noise else "clean"),
        "order": by(lambda r: "text first" if r.case.text_first else "picture first"),
    }


def compare(run: Mapping[str, Any], other: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Another run beside this one: for each task of both, the difference in points (this minus the other).

    Where both list their cases and asked the same ones, also how many only this one and only the other got right: the
    difference of two figures says less than the cases on which they differ.
    """
    theirs = {row["task"]: row for row in other["tasks"]}
    answered = {case["id"]: case for case in other.get("cases", [])}
    same_pictures = bool(answered) and run["seed"] == other.get("seed")
    rows = []
    for row in run["tasks"]:
        if row["task"] not in theirs:
            continue
        known = theirs[row["task"]]["accuracy"]
        line = {"task": row["task"], "accuracy": known, "difference": round(100 * (row["accuracy"] - known), 2)}
        if same_pictures:
            mine = [case for case in run["cases"] if case["id"].rpartition("-")[0] == row["task"]]
            pairs = [(case["right"], answered[case["id"]]["right"]) for case in mine if case["id"] in answered]
            line |= {"only_this": sum(a and not b for a, b in pairs), "only_other": sum(b and not a for a, b in pairs)}
        rows.append(line)
    return {"name": name, "tasks": rows}


def name_of(run: Mapping[str, Any], file: Path) -> str:
    """What a table calls a run that was read from a file."""
    return str(run.get("label") or file.parent.name or file.stem)


def _false_refusals(results: Sequence[Result]) -> dict[str, Any] | None:
    """How often it said that it cannot see what it can."""
    due = [r for r in results if r.case.task in TASKS and r.case.task not in CANNOT]
    if not due:
        return None
    refused = sum(r.refused for r in due)
    return {
        "n": len(due),
        "refused": refused,
        "share": round(refused / len(due), 4),
        "interval_95": _rounded(wilson_interval(refused, len(due))),
        "ceiling": _MOST_FALSE_REFUSALS,
        "passed": refused / len(due) <= _MOST_FALSE_REFUSALS,
    }


def _photographs(results: Sequence[Result]) -> dict[str, Any] | None:
    own = [r for r in results if r.case.task == PHOTOGRAPHS]
    if not own:
        return None
    refused = sum(r.right for r in own)
    answers = [{"photograph": r.case.phrasing, "question": r.case.question, "answer": r.answer} for r in own]
    return {
        "n": len(own),
        "refused": refused,
        "share": round(refused / len(own), 4),
        "interval_95": _rounded(wilson_interval(refused, len(own))),
        "answers": answers,
    }


def _rounded(interval: tuple[float, float]) -> list[float]:
    return [round(bound, 4) for bound in interval]


def _shares(results: Sequence[Result], key: Callable[[Result], str]) -> dict[str, dict[str, int]]:
    groups = grouped(results, key)
    return {name: {"n": len(own), "right": sum(r.right for r in own)} for name, own in sorted(groups.items())}


def grouped(results: Sequence[Result], key: Callable[[Result], str]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[key(result)].append(result)
    return groups


def _truth_class(result: Result) -> str:
    """The truth, where there are few: else how many words or letters it has."""
    case = result.case
    if case.task == "description":
        return f"{case.truth.count(',') + case.truth.count(' and ') + 1} figures"
    if case.task.startswith("reading"):
        return f"{len(case.truth)} characters"
    return "" if case.task in ("two-lines", "chart-value") else case.truth


def _numbers(label: str) -> list[int]:
    """What a class is sorted by: sizes and ratios upwards."""
    return [int(number) for number in re.findall(r"\d+", label)]


def _size_class(scene: Scene) -> str:
    longer = max(scene.width, scene.height)
    bounds = (56, 112, 224, 448, 1000, 2000)
    low = max(bound for bound in bounds if bound <= longer)
    return f"{low} to {dict(itertools.pairwise(bounds)).get(low, 4001) - 1} px"


def _ratio_class(scene: Scene) -> str:
    ratio = max(scene.width, scene.height) / min(scene.width, scene.height)
    shape = "" if ratio < 1.1 else " wide" if scene.width > scene.height else " tall"
    return next(
        (f"{name}{shape}" for bound, name in ((1.1, "square"), (2, "to 2:1")) if ratio < bound), f"2:1 to 4:1{shape}"
    )


def _format_class(scene: Scene) -> str:
    kind, _, quality = scene.finish.encoding.partition(":")
    if kind == "png":
        return "PNG"
    return f"JPEG, quality {'50 to 69' if int(quality) < 70 else '70 to 95'}"
