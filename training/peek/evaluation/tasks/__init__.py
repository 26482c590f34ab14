"""The evaluation's tasks: for each, scenes, a question in our own words, and the one right answer.

A case is made from its task, index and seed alone, so two runs ask the same. Truths go round in turn (twelve colours,
yes and no, nought to five, ...), so that no constant answer does better than its share.
"""

from __future__ import annotations

from training.peek.evaluation.cases import Case, Task
from training.peek.evaluation.tasks import charts, comparing, figures, refusing, several, text

TASKS: dict[str, Task] = {
    "colour": Task(figures.colour, 0.97),
    "background": Task(figures.background, 0.97),
    "shape": Task(figures.shape, 0.97),
    "yes-no": Task(figures.existence, 0.97),
    "arrow": Task(figures.arrow, 0.97),
    "position": Task(figures.position, 0.95),
    "counting": Task(figures.counting, 0.90),
    "description": Task(figures.description, 0.88),
    "larger-smaller": Task(comparing.sizes, 0.92),
    "relations": Task(comparing.relations, 0.92),
    "reading-1-3": Task(text.reading_up_to_3, 0.90),
    "reading-4-6": Task(text.reading_4_to_6, 0.90),
    "reading-7-8": Task(text.reading_7_to_8, None),
    "two-lines": Task(text.two_lines, 0.90),
    "chart-extreme": Task(charts.extreme, 0.80),
    "chart-value": Task(charts.value, 0.80),
    "chart-bars": Task(charts.number_of_bars, 0.80),
    "several-which": Task(several.which, 0.92),
    "several-detail": Task(several.detail, 0.92),
    "several-later": Task(several.later, 0.92),
    "greeting": Task(refusing.greeting, None),
    "cannot-picture": Task(refusing.strange_picture, 0.95),
    "cannot-question": Task(refusing.strange_question, 0.95),
}

READING = ("reading-1-3", "reading-4-6", "reading-7-8", "two-lines")
"""Tasks whose answers are letters that stand in the picture, not words."""
CANNOT = ("cannot-picture", "cannot-question")
"""Tasks where only "I can only see ..." is right; in all others it is a false refusal."""


def make_cases(task: str, count: int, seed: int) -> list[Case]:
    """The first `count` cases of a task; a longer run begins with the shorter one's cases."""
    return [TASKS[task].case(task, index, seed) for index in range(count)]
