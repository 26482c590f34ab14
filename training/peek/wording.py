"""How questions are worded: a template, dressed in one of the many forms in which people type it.

A model this small learns the phrasings it meets, so there are many: a scope ("in the picture"), an
opening, a closing, another spelling or case.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Question:
    task: str
    text: str
    answer: str


PICTURES: Final = ("picture", "image", "picture", "image", "photo", "drawing")
NOUNS: Final = ("shape", "thing", "object", "one", "figure")
_ORDERS: Final = (
    "name", "tell", "say", "give", "count", "describe", "list", "identify", "find", "locate", "i",
    "please",
)  # fmt: skip
_OPENINGS: Final = (
    "look at the {picture}. ", "please tell me: ", "hello! ", "question: ", "look closely. ", "hi, ", "please answer: ",
)  # fmt: skip
CLOSINGS: Final = (
    " Answer in one word.", " One word.", " Answer with one word.", " Answer with one word only.",
    " Reply with a single word.", " Answer briefly.", " Please answer in one word.", " Use one word.", " Be brief.",
    " Just the answer.", " Short answer.",
)  # fmt: skip
POSITION_CLOSINGS: Final = (
    " Answer briefly.", " Be brief.", " Just the answer.", " Short answer.",
    " Answer with a position such as top left or centre.", " Answer in one or two words.",
)  # fmt: skip

_SPELLINGS: Final = (("colour", "color"), ("Colour", "Color"), ("grey", "gray"), ("Grey", "Gray"))


def pick(rng: Rng, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def plural(noun: str) -> str:
    return f"{noun}es" if noun == "cross" else f"{noun}s"


def join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


ORDINALS: Final = ("first", "second", "third", "fourth")


@dataclass(frozen=True, slots=True)
class Scope:
    """Which picture a question is about: the only one (`index` is None), or one of `count`."""

    index: int | None = None
    count: int = 1

    @property
    def ordinal(self) -> str | None:
        return None if self.index is None else ORDINALS[self.index]

    def words(self, rng: Rng, *, of: bool = False) -> str:
        picture, preposition = pick(rng, PICTURES), "of" if of else "in"
        if self.index is None:
            return f"{preposition} {pick(rng, ('the', 'the', 'this'))} {picture}"
        if rng.random() < 0.25 and picture in ("picture", "image"):
            return f"{preposition} {picture} {self.index + 1}"
        if self.index == self.count - 1 and rng.random() < 0.06:
            return f"{preposition} the last {picture}"
        return f"{preposition} the {self.ordinal} {picture}"


def dress(rng: Rng, template: str, scope: Scope, closings: Sequence[str] = CLOSINGS, **parts: str) -> str:
    """A template in one of the many forms people type it."""
    picture = parts.pop("picture", None) or pick(rng, PICTURES)
    scoped = "{scope}" in template or "{picture}" in template
    if scope.ordinal and "{picture}" in template:
        template = template.replace("the {picture}", f"the {scope.ordinal} {{picture}}")
        template = template.replace("this {picture}", f"the {scope.ordinal} {{picture}}")
    text = template.format(picture=picture, scope=scope.words(rng, of=True), **parts)
    order = template.split()[0] in _ORDERS
    if not scoped and (scope.ordinal or rng.random() < 0.3):
        words = scope.words(rng)
        text = f"{words}, {text}" if rng.random() < 0.2 and not order else f"{text} {words}"
    draw = rng.random()
    text = f"{text}{'.' if order else '?'}" if draw < 0.82 else text
    if rng.random() < 0.1:
        text = pick(rng, _OPENINGS).format(picture=picture) + text
    if rng.random() < 0.75:
        text = text[0].upper() + text[1:]
    if draw < 0.82 and rng.random() < 0.18:
        text += pick(rng, closings)
    if rng.random() < 0.5:
        for british, american in _SPELLINGS:
            text = text.replace(british, american)
    case = rng.random()
    if case < 0.04:
        text = text.upper() if case < 0.025 else text.lower()
    return text
