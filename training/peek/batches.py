"""From scenes and questions to arrays: what one training step eats.

Several questions share one picture in one row. Each sees only the picture and itself, and its
positions restart right after the picture, so each is exactly a first question, while the picture is
looked at once. Other rows are real conversations, text before picture, several pictures, a system line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from training.peek import tokens
from training.peek.draw import IGNORE, Pixels, TokenLabels
from training.peek.wording import Question

Ints = npt.NDArray[np.int64]


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
        size = picture.rows * picture.columns
        self.ids += [tokens.IMAGE_PAD] * size
        self.source += range(picture.start, picture.start + size)
        across = range(origin, origin + picture.columns)
        self.positions += [(origin, origin + row, column) for row in range(picture.rows) for column in across]
        self.segments += [self.segment] * size
        self.targets += [IGNORE] * size
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
    """Padded sequences: [rows, length], positions [rows, 3, length]. `learnt` are the flat places with a target."""

    ids: Ints
    source: Ints
    positions: Ints
    segments: Ints
    targets: Ints
    learnt: Ints


class Batch(NamedTuple):
    """Groups of equal pictures, their dense labels in order, and sequences about them."""

    pictures: tuple[Pixels, ...]
    labels: TokenLabels
    rows: tuple[Rows, ...]


@lru_cache(2**16)
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
    targets = stack([row.targets for row in rows], IGNORE)
    return Rows(
        ids=stack([row.ids for row in rows], 0),
        source=stack([row.source for row in rows], -1),
        positions=positions,
        segments=stack([row.segments for row in rows], 0),
        targets=targets,
        learnt=np.flatnonzero(targets != IGNORE),
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
    return conversation([Turn((question.text, *pictures), question.answer)], system)


class Turn(NamedTuple):
    """What a person says at once, in order, and what is answered."""

    parts: tuple[str | Picture, ...]
    answer: str


def conversation(turns: Sequence[Turn], system: str = "") -> Row:
    """Turns that follow one another; pictures may come in any of them."""
    row = _opened(system)
    for number, turn in enumerate(turns):
        if number:
            row.text("\n<|im_start|>user\n")
        for part in turn.parts:
            if isinstance(part, str):
                row.text(part)
            else:
                row.picture(part)
        row.text(TURN)
        row.text(turn.answer, learn=True)
        row.text(END, learn=True)
    return row


def _opened(system: str) -> Row:
    row = Row()
    if system:
        row.text(f"<|im_start|>system\n{system}{END}\n")
    row.text("<|im_start|>user\n")
    return row


def by_length(rows: list[Row], parts: int) -> tuple[Rows, ...]:
    """Padded groups of similar length, so that few places are padding."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    size = max(1, -(-len(ordered) // parts))
    return tuple(pad(ordered[start : start + size]) for start in range(0, len(ordered), size))
