"""Draws a run's log: losses, and word error rates on voices and speeds that are not trained on, over the minutes.

python -m training.whisper.plot RUN_DIR out.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes


def read(run: Path) -> list[dict[str, Any]]:
    """The log's lines, without those of a try that was given up and resumed from before them."""
    kept: list[dict[str, Any]] = []
    for text in (run / "log.jsonl").read_text().splitlines():
        line = json.loads(text)
        while kept and kept[-1]["minute"] > line["minute"]:
            kept.pop()
        kept.append(line)
    return kept


def _curve(axis: Axes, lines: list[dict[str, Any]], name: str, label: str) -> None:
    points = [(line["minute"], line[name]) for line in lines if name in line]
    if points:
        axis.plot(*zip(*points, strict=True), label=label, linewidth=1)


def plot(run: Path, target: Path) -> None:
    lines = read(run)
    figure, (losses, exams) = plt.subplots(2, 1, figsize=(8, 7), sharex=True)
    _curve(losses, lines, "said", "tokens")
    _curve(losses, lines, "heard", "what is said at each 20 ms")
    _curve(losses, lines, "looked", "where attention is")
    losses.set_ylabel("loss, in training")
    for kind in ("en", "es"):
        _curve(exams, lines, f"wer_plain_{kind}", f"{kind}, without timestamps")
        _curve(exams, lines, f"wer_timed_{kind}", f"{kind}, with timestamps")
    exams.set_ylim(0, 1)
    exams.set_ylabel("word error rate, held-out voices and speeds")
    exams.set_xlabel("minutes")
    for axis in (losses, exams):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(target, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    plot(options.run, options.target)


if __name__ == "__main__":
    main()
