"""A case: a conversation whose last question has one right answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from training.peek.evaluation.drawing import Scene
from training.peek.evaluation.files import Picture

CANT_SEE = "I can only see simple shapes, charts and short text."
GREETING = "Hello! I look at pictures of simple shapes, charts and short text."
WELCOME = "You are welcome."
INTRODUCTION = "I am a small model that looks at pictures of simple shapes, charts and short text."


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says, and the right answer to it."""

    text: str
    pictures: tuple[Picture, ...]
    answer: str
    text_first: bool = False
    """Whether the text stands before the pictures."""


@dataclass(frozen=True, slots=True)
class Case:
    id: str
    task: str
    phrasing: str
    """The question before its blanks were filled: what a breakdown by wording counts over."""
    turns: tuple[Turn, ...]
    """The last one is asked; those before it stand in the conversation with their right answers."""

    @property
    def question(self) -> str:
        return self.turns[-1].text

    @property
    def truth(self) -> str:
        return self.turns[-1].answer

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures of the conversation, in their order."""
        return tuple(picture for turn in self.turns for picture in turn.pictures)

    @property
    def scenes(self) -> tuple[Scene, ...]:
        return tuple(picture for picture in self.pictures if isinstance(picture, Scene))

    @property
    def text_first(self) -> bool:
        return self.turns[-1].text_first


@dataclass(frozen=True, slots=True)
class Asked:
    """What a task makes of one draw."""

    phrasing: str
    truth: str
    scenes: tuple[Scene, ...] = ()
    blanks: tuple[tuple[str, str], ...] = ()
    """Names and words: `{name}` becomes the word, `{a name}` the word with its article."""
    earlier: tuple[Turn, ...] = ()

    @property
    def question(self) -> str:
        question = self.phrasing
        for name, word in self.blanks:
            question = question.replace(f"{{a {name}}}", f"{article(word)} {word}").replace(f"{{{name}}}", word)
        return question


@dataclass(frozen=True, slots=True)
class Task:
    make: Callable[[int, Random], Asked]
    """From the case's index (which truth is due) and its own random numbers."""
    floor: float | None
    """Accuracy that `peek` must reach, 0..1; None: reported only."""

    def case(self, name: str, index: int, seed: int) -> Case:
        rng = Random(f"peek evaluation/{seed}/{name}/{index}")
        asked = self.make(index, rng)
        # half of each task's cases, and of each truth's: the truth goes round faster than this bit
        text_first = (Random(f"order/{seed}/{name}/{index // 2}").random() < 0.5) ^ (index % 2 == 1)
        last = Turn(typed(asked.question, rng), asked.scenes, asked.truth, text_first)
        return Case(f"{name}-{index:04}", name, asked.phrasing, (*asked.earlier, last))


def typed(question: str, rng: Random) -> str:
    """The question as one of many people types it: British or American, in capitals or without, without its end."""
    if rng.random() < 0.35:
        for british, american in (("olour", "olor"), ("grey", "gray"), ("centre", "center")):
            question = question.replace(british, american)
    if rng.random() < 0.1:
        question = question.rstrip("?.!")
    draw = rng.random()
    return question.lower() if draw < 0.2 else question.upper() if draw < 0.27 else question


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    return shape + "es" if shape.endswith("s") else shape + "s"
