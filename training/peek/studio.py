"""Makes batches: draws pictures, keeps them for a while, and asks each of them many things.

Drawing costs more than asking, so a group of pictures (of one grid of tokens) returns in later
batches with new questions, from a bounded pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import numpy as np

from training.peek import album, talk, tasks
from training.peek.batches import Batch, Picture, Row, Rows, Turn, by_length, conversation, packed, pad, text_first
from training.peek.draw import Pixels, TokenLabels, draw, label
from training.peek.tasks import DENSE, PICTURES, Mixture
from training.peek.wording import Question, Rng, Scope
from training.peek.world import Scene, sample_grid

SYSTEMS: Final = (
    "You are a helpful assistant.", "Answer in one word.", "You are a helpful assistant. Answer briefly.",
    "You answer questions about pictures.",
)  # fmt: skip
QUESTIONS_EACH: Final = 5
TEXT_FIRST_EACH: Final = 3
"""Questions that come before their picture cannot share its row, but are another thing to learn and just as usual:
with one of them for eight of the others, version 0 answered half of them by chance."""
_DENSE_ONLY: Final = 0.12
"""Share of pictures in the joint stage that are too full to be asked about."""

Table = Mapping[str, tuple[Callable[[Rng, int, int], Scene], float]]


class Group(NamedTuple):
    """Pictures of one grid, drawn, with the dense labels of all their tokens in order."""

    scenes: tuple[Scene, ...]
    pixels: Pixels
    labels: TokenLabels


class Size(NamedTuple):
    """Of a batch: how many groups, of how many pictures; `fresh` is the share of groups drawn anew, `pool` how many
    groups are kept."""

    groups: int
    pictures: int
    fresh: float
    pool: int


def draw_group(rng: Rng, scenes: list[Scene]) -> Group:
    columns = zip(*map(label, scenes), strict=True)
    labels = TokenLabels(*(np.concatenate(column) for column in columns))
    return Group(tuple(scenes), np.stack([draw(scene, rng) for scene in scenes]), labels)


class Studio:
    """An endless supply of batches from one stream of random numbers."""

    def __init__(self, rng: Rng, size: Size, mixture: Mixture) -> None:
        self._rng, self._size, self._mixture = rng, size, mixture
        self._pools: dict[bool, deque[Group]] = {joint: deque(maxlen=size.pool) for joint in (False, True)}

    def batch(self, *, joint: bool) -> Batch:
        """For the dense stage pictures and labels alone, for the joint one sequences about them as well."""
        groups = [self._group(joint) for _ in range(self._size.groups)]
        labels = TokenLabels(*(np.concatenate(c) for c in zip(*(group.labels for group in groups), strict=True)))
        rows = self._rows(_places(groups)) if joint else ()
        return Batch(tuple(group.pixels for group in groups), labels, rows)

    def _group(self, joint: bool) -> Group:
        pool, rng = self._pools[joint], self._rng
        if len(pool) >= self._size.groups and rng.random() > self._size.fresh:
            return pool[int(rng.integers(len(pool)))]
        rows, columns = sample_grid(rng)
        count = self._size.pictures
        full = round(count * _DENSE_ONLY) if joint else count
        scenes = [tasks.sample(rng, DENSE, rows, columns) for _ in range(full)]
        scenes += [tasks.sample(rng, PICTURES, rows, columns) for _ in range(count - full)]
        pool.append(draw_group(rng, scenes))
        return pool[-1]

    def _rows(self, places: list[tuple[Scene, Picture]]) -> tuple[Rows, ...]:
        rng, mixture = self._rng, self._mixture
        asked = [place for place in places if is_askable(place[0])]
        long: list[Row] = []
        short: list[Row] = []
        for scene, picture in asked:
            system = SYSTEMS[int(rng.integers(len(SYSTEMS)))] if rng.random() < 0.06 else ""
            turns = [mixture.ask(rng, scene) for _ in range(QUESTIONS_EACH)]
            if rng.random() < 0.12:
                first, *later = turns
                said = (first.text, picture) if rng.random() < 0.4 else (picture, first.text)
                follow = [Turn((turn.text,), turn.answer) for turn in later]
                long.append(conversation([Turn(said, first.answer), *follow], system))
            else:
                long.append(packed([picture], turns, system))
            short += [text_first([picture], mixture.ask(rng, scene), system) for _ in range(TEXT_FIRST_EACH)]
            if rng.random() < 0.4:
                long.append(self._album(asked, system))
            if rng.random() < 0.04:
                question = talk.greet(rng) if rng.random() < 0.6 else talk.ask_outside(rng)
                short.append(conversation([Turn((question.text,), question.answer)], system))
        return (*by_length(long, 3), *by_length(short, 2))

    def _album(self, asked: list[tuple[Scene, Picture]], system: str) -> Row:
        """Two to four pictures: all first, the question first, or one a turn."""
        rng, mixture = self._rng, self._mixture
        count = 2 + int(rng.choice(3, p=(0.5, 0.25, 0.25)))
        chosen = [asked[i] for i in rng.choice(len(asked), min(count, len(asked)), replace=False)]
        scenes, pictures = [scene for scene, _ in chosen], [picture for _, picture in chosen]
        draw = rng.random()
        if draw < 0.4:
            return packed(pictures, [album.ask_several(rng, scenes, mixture) for _ in range(4)], system)
        if draw < 0.65:
            return text_first(pictures, album.ask_several(rng, scenes, mixture), system)
        turns: list[Turn] = []
        for seen, picture in enumerate(pictures, 1):
            question = mixture.ask(rng, scenes[0]) if seen == 1 else album.ask_several(rng, scenes[:seen], mixture)
            said = (question.text, picture) if rng.random() < 0.4 else (picture, question.text)
            turns.append(Turn(said, question.answer))
            for _ in range(int(rng.integers(0, 3)) if seen == len(pictures) else int(rng.random() < 0.3)):
                later = album.ask_several(rng, scenes[:seen], mixture) if seen > 1 else mixture.ask(rng, scenes[0])
                turns.append(Turn((later.text,), later.answer))
        return conversation(turns, system)


def is_askable(scene: Scene) -> bool:
    """Not one of the grids full of shapes or characters, which only the dense heads learn from, nor one that was left
    empty: there is nothing in it to ask about."""
    if scene.chart is not None or scene.unseen:
        return True
    return bool(scene.things or scene.lines) and len(scene.things) <= 5 and len(scene.lines) <= 2


def _places(groups: list[Group]) -> list[tuple[Scene, Picture]]:
    places, start = list[tuple[Scene, Picture]](), 0
    for scene in (scene for group in groups for scene in group.scenes):
        places.append((scene, Picture(start, scene.rows, scene.columns)))
        start += scene.rows * scene.columns
    return places


class Exam(NamedTuple):
    """Labelled pictures for measuring; `tasks[group][row][segment]` names each question of `batch.rows[group]`."""

    batch: Batch
    tasks: tuple[list[dict[int, str]], ...]


def make_exam(rng: Rng, pictures: int) -> Exam:
    """One group of scenes, every possible task asked of each, some with the text first, some of several pictures."""
    rows, columns = sample_grid(rng)
    mixture = Mixture()
    group = draw_group(rng, [tasks.sample(rng, PICTURES, rows, columns) for _ in range(pictures)])
    places = [(scene, place) for scene, place in _places([group]) if is_askable(scene)]
    sheets: list[tuple[Row, dict[int, str]]] = []
    others: list[tuple[Row, dict[int, str]]] = []
    for index, (scene, place) in enumerate(places):
        found = [question for task in tasks.TASKS if (question := tasks.ask(rng, scene, task))]
        if scene.unseen:
            found = [tasks.refused(rng, Scope()) for _ in range(2)]
        sheets.append((packed([place], found), _names(found)))
        if index % 2:
            others.append((text_first([place], mixture.ask(rng, scene)), {0: "text first"}))
        else:
            chosen = [places[(index + step) % len(places)] for step in range(2 + index % 3)]
            several = [album.ask_several(rng, [scene for scene, _ in chosen], mixture) for _ in range(3)]
            others.append((packed([place for _, place in chosen], several), _names(several)))
    both = tuple(pad([row for row, _ in part]) for part in (sheets, others))
    return Exam(
        Batch((group.pixels,), group.labels, both), tuple([names for _, names in part] for part in (sheets, others))
    )


def _names(asked: list[Question]) -> dict[int, str]:
    return {segment: question.task for segment, question in enumerate(asked, 1)}
