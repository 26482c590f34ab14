"""Draw a run's log: losses, dense accuracy and exam accuracy over the minutes.

python -m training.peek.plot RUN_DIR out.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from training.peek.log import read


def _curve(axis: Axes, lines: list[dict[str, Any]], name: str, label: str) -> None:
    points = [(line["minute"], line[name]) for line in lines if name in line]
    if points:
        axis.plot(*zip(*points, strict=True), label=label, linewidth=1)


def plot(run: Path, target: Path) -> None:
    lines = read(run)
    figure, (losses, dense, exams) = plt.subplots(3, 1, figsize=(9, 11), sharex=True)
    _curve(losses, lines, "loss", "loss (dense stage: sum of heads)")
    _curve(losses, lines, "answers", "answers")
    losses.set_yscale("log")
    for head in ("shape", "colour", "direction", "cell", "place", "under", "read_1", "read_2", "read_3"):
        _curve(dense, lines, f"token {head}", head)
    dense.set_ylabel("vision tokens right, in training")
    graded = [{"minute": line["minute"], **line["accuracy"]} for line in lines if "accuracy" in line]
    for task in sorted({name for line in graded for name in line if name != "minute"}):
        _curve(exams, graded, task, task)
    exams.set_ylabel("answers right, unseen scenes")
    exams.set_xlabel("minutes")
    for axis in (losses, dense, exams):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, ncol=3)
    figure.tight_layout()
    figure.savefig(target, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    plot(options.run, options.target)


if __name__ == "__main__":
    main()
