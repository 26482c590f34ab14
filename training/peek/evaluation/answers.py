"""When is an answer right."""

from __future__ import annotations

import re
from collections import Counter

from training.peek.evaluation.drawing import SHAPES
from training.peek.evaluation.world import COLOURS

_SAME = {
    "gray": "grey",
    "center": "centre",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
}


def normalise(answer: str) -> str:
    """Lower case, single spaces, no final punctuation, one spelling per word."""
    words = answer.lower().strip().rstrip(".!?,;: ").split()
    return " ".join(_SAME.get(word, word) for word in words)


def is_right(task: str, answer: str, truth: str) -> bool:
    """A description is right when it names just the figures that are there, in any order; else words must be equal."""
    if task == "description":
        return bool(_figures(answer)) and _figures(answer) == _figures(truth)
    return normalise(answer) == normalise(truth)


def _figures(description: str) -> Counter[str]:
    return Counter(_FIGURE.findall(normalise(description)))


_FIGURE = re.compile(rf"\b(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})\b")
