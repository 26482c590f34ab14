"""Which pictures and questions there are, and how often each comes: the one table of the mixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from training.peek import questions, reading, relations, talk, unseen
from training.peek.charts import sample_chart
from training.peek.lettering import sample_characters, sample_text
from training.peek.shapes import sample_shapes, sample_tiles
from training.peek.wording import Question, Rng, Scope, dress, pick
from training.peek.world import Scene

Maker = Callable[[Rng, Scene, Scope], Question | None]


def sample_unseen(rng: Rng, rows: int, columns: int) -> Scene:
    """A picture from outside the world."""
    seed = int(rng.integers(2**31))
    return Scene(rows, columns, None, (0, 0, 0), unseen=unseen.sample_kind(rng), seed=seed)


PICTURES: Final[Mapping[str, tuple[Callable[[Rng, int, int], Scene], float]]] = {
    "shapes": (sample_shapes, 0.46),
    "text": (sample_text, 0.27),
    "chart": (sample_chart, 0.13),
    "unseen": (sample_unseen, 0.14),
}
DENSE: Final[Mapping[str, tuple[Callable[[Rng, int, int], Scene], float]]] = {
    "tiles": (sample_tiles, 0.26),
    "characters": (sample_characters, 0.42),
    "shapes": (sample_shapes, 0.12),
    "text": (sample_text, 0.12),
    "chart": (sample_chart, 0.08),
}
"""What the first stage sees; of the joint stage, a share of tiles and characters remains."""


def _outside(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    return talk.ask_outside(rng)


def _greet(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    return talk.greet(rng)


TASKS: Final[Mapping[str, tuple[Maker, float]]] = {
    "colour": (questions.ask_colour, 0.10),
    "shape": (questions.ask_shape, 0.12),
    "position": (questions.ask_position, 0.09),
    "arrow": (questions.ask_arrow, 0.04),
    "count": (questions.ask_count, 0.17),
    "exists": (questions.ask_exists, 0.17),
    "background": (questions.ask_background, 0.03),
    "describe": (questions.ask_describe, 0.03),
    "larger": (relations.ask_larger, 0.14),
    "relation": (relations.ask_relation, 0.14),
    "reading": (reading.ask_read, 0.5),
    "two lines": (reading.ask_line, 0.3),
    "chart": (reading.ask_chart, 0.8),
    "can't see": (_outside, 0.04),
    "greeting": (_greet, 0.015),
}
"""Each task and how often it is asked of a picture on which it can be: an exam makes the weak ones more frequent."""

SHAPE_TASKS: Final = ("colour", "shape", "position", "arrow", "count", "exists", "describe", "larger", "relation")
EVERYWHERE: Final = ("can't see", "greeting")
GOAL: Final = 0.99

ASKED_OF: Final[Mapping[str, tuple[str, ...]]] = {
    "shapes": (*SHAPE_TASKS, "background", *EVERYWHERE),
    "text": ("reading", "two lines", "background", *EVERYWHERE),
    "chart": ("chart", *EVERYWHERE),
    "unseen": EVERYWHERE,
}


def kind_of(scene: Scene) -> str:
    """The row of PICTURES a scene belongs to."""
    if scene.unseen:
        return "unseen"
    return "chart" if scene.chart else "text" if scene.lines else "shapes"


class Mixture:
    """How often each task is asked, adapted to what an exam shows. `factors` may live in memory shared by processes."""

    def __init__(self, factors: np.ndarray | None = None) -> None:  # type: ignore[type-arg]
        self.factors = np.ones(len(TASKS)) if factors is None else factors

    def adapt(self, accuracy: Mapping[str, float]) -> None:
        """A task at its goal is asked half as often as at the start, one 15 points below three times as often."""
        for index, task in enumerate(TASKS):
            if task in accuracy:
                self.factors[index] = 0.5 + 2.5 * min(1.0, max(0.0, GOAL - accuracy[task]) / 0.15)

    def ask(self, rng: Rng, scene: Scene, scope: Scope | None = None) -> Question:
        """A question that `scene` answers without ambiguity, or whose answer is that it cannot."""
        scope = scope or Scope()
        kind = kind_of(scene)
        if kind == "unseen" and rng.random() < 0.93:
            return refused(rng, scope)
        names = ASKED_OF[kind]
        order = list(TASKS)
        weights = np.array([TASKS[name][1] * self.factors[order.index(name)] for name in names])
        weights = weights.cumsum() / weights.sum()
        while True:
            make = TASKS[names[int(weights.searchsorted(rng.random()))]][0]
            for _ in range(4):  # before another task, so that the rarely possible ones keep their share
                question = make(rng, scene, scope)
                if question is not None:
                    return question


def ask(rng: Rng, scene: Scene, task: str, scope: Scope | None = None) -> Question | None:
    """A question of `task` about `scene`, or None where the scene has no unambiguous one."""
    if task not in ASKED_OF[kind_of(scene)]:
        return None
    return TASKS[task][0](rng, scene, scope or Scope())


def refused(rng: Rng, scope: Scope) -> Question:
    """Any question at all, put to a picture from outside the world."""
    kind = ("shapes", "shapes", "shapes", "text", "chart")[int(rng.integers(5))]
    borrowed = PICTURES[kind][0](rng, 6, 6)
    tasks = [task for task in ASKED_OF[kind] if task not in EVERYWHERE]
    while True:
        draw = rng.random()
        if draw < 0.2:
            text = dress(rng, pick(rng, questions.DESCRIBE + questions.SHAPE_ALONE), scope)
            return Question("can't see", text, talk.REFUSAL)
        question = ask(rng, borrowed, pick(rng, tasks), scope) if draw < 0.85 else talk.ask_outside(rng)
        if question is not None:
            return Question("can't see", question.text, talk.REFUSAL)


def sample(
    rng: Rng, table: Mapping[str, tuple[Callable[[Rng, int, int], Scene], float]], rows: int, columns: int
) -> Scene:
    """A scene of one of the kinds in `table`, each as often as it says."""
    weights = np.array([weight for _, weight in table.values()]).cumsum()
    kind = int(weights.searchsorted(rng.random() * weights[-1]))
    return list(table.values())[kind][0](rng, rows, columns)
