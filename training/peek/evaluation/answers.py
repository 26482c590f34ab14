"""When is an answer right."""

from __future__ import annotations

import re
from collections import Counter

from training.peek.evaluation.cases import CANT_SEE
from training.peek.evaluation.shapes import SHAPES
from training.peek.evaluation.tasks import READING
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
_END = ".!?,;: "


def normalise(answer: str) -> str:
    """Lower case, single spaces, no final punctuation, one spelling per word."""
    words = answer.lower().strip().rstrip(_END).split()
    return " ".join(_SAME.get(word, word) for word in words)


def is_right(task: str, answer: str, truth: str) -> bool:
    """Whether the words are equal, normalised.

    A description is right when it names just the figures that are there, in any order. What was read has to be what is
    written, case aside: "ONE" is not "1", and a space more is a mistake.
    """
    if task == "description":
        return bool(_figures(answer)) and _figures(answer) == _figures(truth)
    if task in READING:
        return answer.strip().rstrip(_END).upper() == truth
    return normalise(answer) == normalise(truth)


def is_refusal(answer: str) -> bool:
    return normalise(answer) == normalise(CANT_SEE)


def _figures(description: str) -> Counter[str]:
    return Counter(_FIGURE.findall(normalise(description)))


_FIGURE = re.compile(rf"\b(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})\b")
