"""What a run amounts to: accuracy with its uncertainty, a table, a sheet of failures, a plot."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from training.peek.evaluation.answers import normalise
from training.peek.evaluation.client import Result
from training.peek.evaluation.drawing import draw, encode
from training.peek.evaluation.questions import TASKS

_INK, _FAINT, _GOOD, _BAD, _PAPER = "#1b1f24", "#8a929b", "#2f7d4f", "#b3362b", "#ffffff"


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
    by_task = _grouped(results, lambda r: r.case.task)
    return [
        Score(name, len(own), sum(r.right for r in own), task.floor)
        for name, task in TASKS.items()
        if (own := by_task.get(name))
    ]


def to_table(rows: Sequence[Score]) -> str:
    lines = [f"{'task':<12} {'n':>5} {'right':>6} {'%':>6}   {'95 %':<13} {'floor':>5}"]
    for row in rows:
        low, high = row.interval
        verdict = "reported" if row.floor is None else "pass" if row.passed else "FAIL"
        floor = "" if row.floor is None else f"{100 * row.floor:.0f}"
        lines.append(
            f"{row.task:<12} {row.n:>5} {row.right:>6} {100 * row.accuracy:>6.1f}   "
            f"{f'{100 * low:.1f}..{100 * high:.1f}':<13} {floor:>5}  {verdict}"
        )
    return "\n".join(lines)


def to_json(results: Sequence[Result], *, model: str, seed: int) -> dict[str, Any]:
    """Everything a reader needs to check the table or to ask one case again; pictures by their digest."""
    return {
        "model": model,
        "seed": seed,
        "tasks": [
            {
                "task": row.task,
                "n": row.n,
                "right": row.right,
                "accuracy": round(row.accuracy, 4),
                "interval_95": [round(bound, 4) for bound in row.interval],
                "floor": row.floor,
                "passed": row.passed,
            }
            for row in scores(results)
        ],
        "breakdown": {
            "phrasing": _breakdown(results, lambda r: f"{r.case.task}: {r.case.phrasing}"),
            "truth": _breakdown(results, lambda r: f"{r.case.task}: {'' if _is_prose(r) else r.case.truth}"),
            "figures": _breakdown(results, lambda r: f"{r.case.task}: {sum(len(s.figures) for s in r.case.scenes)}"),
            "short side": _breakdown(results, lambda r: f"{r.case.task}: {_size_class(r)}"),
            "encoding": _breakdown(results, lambda r: r.case.scenes[0].encoding.partition(":")[0]),
            "order": _breakdown(results, lambda r: "text first" if r.case.text_first else "picture first"),
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
                "pictures": [
                    {"digest": f"sha256:{hashlib.sha256(encode(s)).hexdigest()}", "width": s.width, "height": s.height}
                    for s in r.case.scenes
                ],
            }
            for r in results
        ],
    }


def failures_sheet(results: Sequence[Result], *, columns: int = 6, most: int = 60) -> Image.Image:
    """The first failures of each task in turn: picture, question, what was said, what is true."""
    by_task = _grouped([r for r in results if not r.right], lambda r: r.case.task)
    longest = max((len(own) for own in by_task.values()), default=0)
    turns = [own[i] for i in range(longest) for own in by_task.values() if i < len(own)][:most]
    shown = sorted(turns, key=lambda r: list(TASKS).index(r.case.task))
    return contact_sheet(shown, columns=columns)


def contact_sheet(results: Sequence[Result], *, columns: int = 6) -> Image.Image:
    """The cases as a grid of cards."""
    width, picture, height = 220, 150, 215
    rows = max(1, math.ceil(len(results) / columns))
    sheet = Image.new("RGB", (columns * width, rows * height), _PAPER)
    pen, small = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for i, result in enumerate(results):
        left, top = i % columns * width, i // columns * height
        share = (width - 12) // len(result.case.scenes) - 4
        for j, scene in enumerate(result.case.scenes):
            thumbnail = Image.fromarray(draw(scene))
            thumbnail.thumbnail((share, picture - 8))
            place = (left + 6 + j * (share + 6), top + 6)
            sheet.paste(thumbnail, place)
            pen.rectangle(
                (place[0] - 1, place[1] - 1, place[0] + thumbnail.width, place[1] + thumbnail.height), outline=_FAINT
            )
        said = result.error or normalise(result.answer) or "(nothing)"
        sizes = ", ".join(f"{s.width}x{s.height}" for s in result.case.scenes)
        lines = [(result.case.question, _INK), (f"said: {said}", _GOOD if result.right else _BAD)]
        lines += [(f"true: {result.case.truth}", _GOOD), (f"{result.case.id}  {sizes}", _FAINT)]
        for k, (text, ink) in enumerate(lines):
            while pen.textlength(text, small) > width - 10:
                text = text[:-4] + ".."
            pen.text((left + 6, top + picture + 2 + 14 * k), text, fill=ink, font=small)
    if not results:
        pen.text((6, 6), "no failures", fill=_GOOD, font=small)
    return sheet


def accuracy_plot(rows: Sequence[Score]) -> Image.Image:
    """A bar for each task, its 95 % interval as a whisker, its floor as a tick."""
    left, scale, line, top = 130, 5, 34, 40
    plot = Image.new("RGB", (left + 100 * scale + 90, top + line * len(rows) + 30), _PAPER)
    pen, font = ImageDraw.Draw(plot), ImageFont.load_default(13)
    pen.text((left, 12), "right answers, %: bar with 95 % interval; tick = floor", fill=_INK, font=font)
    for percent in range(0, 101, 20):
        x = left + percent * scale
        pen.line((x, top - 4, x, top + line * len(rows)), fill="#e3e6e9")
        pen.text((x - 6, top + line * len(rows) + 6), str(percent), fill=_FAINT, font=font)
    for i, row in enumerate(rows):
        y, end = top + line * i, left + 100 * row.accuracy * scale
        pen.text((8, y + 6), row.task, fill=_INK, font=font)
        pen.rectangle(
            (left, y + 4, end, y + 22), fill="#7f8c99" if row.floor is None else _GOOD if row.passed else _BAD
        )
        low, high = (left + 100 * bound * scale for bound in row.interval)
        pen.line((low, y + 13, high, y + 13), fill=_INK, width=2)
        if row.floor is not None:
            pen.line((left + 100 * row.floor * scale, y, left + 100 * row.floor * scale, y + 26), fill=_INK, width=3)
        pen.text((left + 100 * scale + 12, y + 6), f"{100 * row.accuracy:.1f}", fill=_INK, font=font)
    return plot


def _breakdown(results: Sequence[Result], key: Callable[[Result], str]) -> dict[str, dict[str, int]]:
    groups = _grouped(results, key)
    return {name: {"n": len(own), "right": sum(r.right for r in own)} for name, own in sorted(groups.items())}


def _grouped(results: Sequence[Result], key: Callable[[Result], str]) -> dict[str, list[Result]]:
    groups: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        groups[key(result)].append(result)
    return groups


def _is_prose(result: Result) -> bool:
    return result.case.task == "description"


def _size_class(result: Result) -> str:
    short = min(min(s.width, s.height) for s in result.case.scenes)
    return next((f"under {bound} px" for bound in (112, 224, 448) if short < bound), "448 px and more")
