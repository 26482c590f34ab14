"""From scenes and questions to arrays: what one training step eats.

Several questions share one picture in one row. Each sees only the picture and itself, and its
positions restart right after the picture, so each is exactly a first question, while the picture is
looked at once. Other rows are real conversations, text before picture, two pictures, a system line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.peek import questions, tokens
from training.peek.draw import IGNORE, Pixels, TokenLabels, draw, label
from training.peek.questions import Question
from training.peek.world import Scene, sample_grid, sample_scene, sample_tiles

Ints = npt.NDArray[np.int64]
SYSTEMS: Final = (
    "You are a helpful assistant.", "Answer in one word.", "You are a helpful assistant. Answer briefly.",
    "You answer questions about pictures.",
)  # fmt: skip


class Picture(NamedTuple):
    """Where the vision tokens of a picture start among all of a batch, and their grid."""

    start: int
    rows: int
    columns: int


@dataclass(slots=True)
class Row:
    """One sequence, built left to right."""

    ids: list[int] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    positions: list[tuple[int, int, int]] = field(default_factory=list)
    segments: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    next: int = 0
    segment: int = 0

    def text(self, text: str, *, learn: bool = False) -> None:
        """Append text; with `learn`, every one of its tokens is a target of the token before it."""
        for token in _encode(text):
            if learn:
                self.targets[-1] = token
            self._append(token, -1, (self.next,) * 3)
            self.next += 1

    def picture(self, picture: Picture) -> None:
        self._append(tokens.VISION_START, -1, (self.next,) * 3)
        origin = self.next + 1
        for index in range(picture.rows * picture.columns):
            row, column = divmod(index, picture.columns)
            self._append(tokens.IMAGE_PAD, picture.start + index, (origin, origin + row, origin + column))
        self.next = origin + max(picture.rows, picture.columns)
        self._append(tokens.VISION_END, -1, (self.next,) * 3)
        self.next += 1

    def _append(self, token: int, source: int, position: tuple[int, int, int]) -> None:
        self.ids.append(token)
        self.source.append(source)
        self.positions.append(position)
        self.segments.append(self.segment)
        self.targets.append(IGNORE)


class Rows(NamedTuple):
    """Padded sequences: [rows, length], positions [rows, 3, length]."""

    ids: Ints
    source: Ints
    positions: Ints
    segments: Ints
    targets: Ints


class Batch(NamedTuple):
    """Groups of equal pictures, their dense labels in order, and sequences about them."""

    pictures: tuple[Pixels, ...]
    labels: TokenLabels
    rows: tuple[Rows, ...]


@cache
def _encode(text: str) -> tuple[int, ...]:
    return tuple(_tokenizer().encode(text, add_special_tokens=False).ids)


@cache
def _tokenizer() -> Tokenizer:
    return tokens.load()


END: Final = "<|im_end|>"
TURN: Final = f"{END}\n<|im_start|>assistant\n"


def pad(rows: list[Row]) -> Rows:
    """Pads never matter: they come last and attention is causal."""
    length = max(len(row.ids) for row in rows)

    def stack(values: list[list[int]], fill: int) -> Ints:
        return np.array([v + [fill] * (length - len(v)) for v in values], np.int64)

    positions = np.zeros((len(rows), 3, length), np.int64)
    for row, target in zip(rows, positions, strict=True):
        target[:, : len(row.ids)] = np.array(row.positions).T
    return Rows(
        ids=stack([row.ids for row in rows], 0),
        source=stack([row.source for row in rows], -1),
        positions=positions,
        segments=stack([row.segments for row in rows], 0),
        targets=stack([row.targets for row in rows], IGNORE),
    )


def packed(pictures: list[Picture], asked: list[Question], system: str = "") -> Row:
    """Pictures first, then questions that don't see each other."""
    row = _opened(system)
    for picture in pictures:
        row.picture(picture)
    start = row.next
    for segment, question in enumerate(asked, 1):
        row.next, row.segment = start, segment
        row.text(question.text)
        row.text(TURN)
        row.text(question.answer, learn=True)
        row.text(END, learn=True)
    return row


def text_first(pictures: list[Picture], question: Question, system: str = "") -> Row:
    """The order most clients send: the question, then its pictures."""
    row = _opened(system)
    row.text(question.text)
    for picture in pictures:
        row.picture(picture)
    row.text(TURN)
    row.text(question.answer, learn=True)
    row.text(END, learn=True)
    return row


def conversation(picture: Picture, asked: list[Question], system: str = "") -> Row:
    """Turns that follow one another, all about the picture in the first."""
    row = _opened(system)
    row.picture(picture)
    for turn, question in enumerate(asked):
        if turn:
            row.text("\n<|im_start|>user\n")
        row.text(question.text)
        row.text(TURN)
        row.text(question.answer, learn=True)
        row.text(END, learn=True)
    return row


def _opened(system: str) -> Row:
    row = Row()
    if system:
        row.text(f"<|im_start|>system\n{system}{END}\n")
    row.text("<|im_start|>user\n")
    return row


class Exam(NamedTuple):
    """Labelled pictures for measuring; `tasks[row][segment]` names each question of `batch.rows[0]`
    and `batch.rows[1]`."""

    batch: Batch
    tasks: tuple[list[dict[int, str]], list[dict[int, str]]]


def exam(rng: np.random.Generator, pictures: int) -> Exam:
    """One group of scenes, every task asked of each, and some again with the text first."""
    rows, columns = sample_grid(rng)
    scenes = [sample_scene(rng, rows, columns) for _ in range(pictures)]
    scenes = [scene for scene in scenes if scene.things]
    size = rows * columns
    sheets: tuple[list[dict[int, str]], list[dict[int, str]]] = ([], [])
    sequences: tuple[list[Row], list[Row]] = ([], [])
    for index, scene in enumerate(scenes):
        place, other = Picture(index * size, rows, columns), (index + 1) % len(scenes)
        found = [question for task in questions.TASKS if (question := questions.ask(rng, scene, task))]
        sequences[0].append(packed([place], found))
        sheets[0].append({segment: question.task for segment, question in enumerate(found, 1)})
        if index % 2:
            sequences[1].append(text_first([place], questions.ask_any(rng, scene)))
            sheets[1].append({0: "text first"})
        else:
            pair = [questions.ask_pair(rng, scene, scenes[other]) for _ in range(3)]
            sequences[1].append(packed([place, Picture(other * size, rows, columns)], pair))
            sheets[1].append({segment: question.task for segment, question in enumerate(pair, 1)})
    paper = Batch((_draw_all(rng, scenes),), _label_all(scenes), tuple(pad(rows) for rows in sequences))
    return Exam(paper, sheets)


def dense_batch(rng: np.random.Generator, pictures: int) -> Batch:
    """For the first stage: one group, mostly tiles, dense labels only."""
    rows, columns = sample_grid(rng)
    scenes = [(sample_tiles if rng.random() < 0.65 else sample_scene)(rng, rows, columns) for _ in range(pictures)]
    return Batch((_draw_all(rng, scenes),), _label_all(scenes), ())


def joint_batch(rng: np.random.Generator, pictures: int, questions_each: int = 5, text_first_each: int = 3) -> Batch:
    """Two groups of different sizes with everything that may be asked about them.

    Questions that come before their picture cannot share its row, but are another thing to learn and just as usual:
    with one of them for eight of the others, the model answered half of them by chance.
    """
    groups: list[list[Scene]] = []
    places: list[tuple[Scene, Picture]] = []
    start = 0
    for _ in range(2):
        rows, columns = sample_grid(rng)
        scenes = [sample_scene(rng, rows, columns) for _ in range(pictures // 2)]
        groups.append(scenes + [sample_tiles(rng, rows, columns) for _ in range(max(1, pictures // 16))])
        for scene in groups[-1]:
            places.append((scene, Picture(start, rows, columns)))
            start += rows * columns
    asked = [place for place in places if len(place[0].things) <= 4 and place[0].things]
    long: list[Row] = []
    double: list[Row] = []
    short: list[Row] = []
    for index in rng.permutation(len(asked)):
        scene, picture = asked[index]
        other, other_picture = asked[int(rng.integers(len(asked)))]
        system = SYSTEMS[int(rng.integers(len(SYSTEMS)))] if rng.random() < 0.06 else ""
        turns = [questions.ask_any(rng, scene) for _ in range(questions_each)]
        kind = rng.random()
        long.append(conversation(picture, turns, system) if kind < 0.1 else packed([picture], turns, system))
        short.extend(text_first([picture], questions.ask_any(rng, scene), system) for _ in range(text_first_each))
        if kind < 0.2:
            pair = [questions.ask_pair(rng, scene, other) for _ in range(3)]
            double.append(packed([picture, other_picture], pair, system))
        elif kind < 0.5:
            double.append(text_first([picture, other_picture], questions.ask_pair(rng, scene, other), system))
    scenes = [scene for group in groups for scene in group]
    sequences = tuple(pad(rows) for rows in (*_by_length(long), double, short) if rows)
    return Batch(tuple(_draw_all(rng, group) for group in groups), _label_all(scenes), sequences)


def _by_length(rows: list[Row]) -> list[list[Row]]:
    """Thirds of similar length, so that few places are padding."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    third = -(-len(ordered) // 3)
    return [ordered[start : start + third] for start in range(0, len(ordered), third)]


def _draw_all(rng: np.random.Generator, scenes: list[Scene]) -> Pixels:
    return np.stack([draw(scene, rng) for scene in scenes])


def _label_all(scenes: list[Scene]) -> TokenLabels:
    return TokenLabels(*(np.concatenate(column) for column in zip(*map(label, scenes), strict=True)))
