"""Conversations about several pictures: which one has something, what one of them shows, and following up later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from training.peek import talk
from training.peek.tasks import Mixture, kind_of
from training.peek.wording import ORDINALS, PICTURES, Question, Rng, Scope, a, dress, pick
from training.peek.world import Scene

WHICH: Final = (
    "which {picture} has {ref}", "which {picture} shows {ref}", "which {picture} contains {ref}",
    "in which {picture} is {ref}", "in which {picture} do you see {ref}", "which {picture} is {ref} in",
    "which one has {ref}", "which of the {picture}s has {ref}", "tell me which {picture} has {ref}",
    "which of these {picture}s contains {ref}", "{ref} is in which {picture}", "name the {picture} with {ref}",
    "in which of the {picture}s is {ref}", "which {picture} has {ref} in it", "in which {picture} can you see {ref}",
    "which of the {picture}s shows {ref}", "what {picture} has {ref}",
)  # fmt: skip
WHICH_OF_TWO: Final = (
    "where is {ref}: in the first or the second {picture}", "is {ref} in the first or the second {picture}",
    "which of the two {picture}s shows {ref}", "first or second {picture}: which has {ref}",
)  # fmt: skip


def _names(scene: Scene, kind: str) -> set[str]:
    if kind == "shape":
        return {thing.shape for thing in scene.things}
    if kind == "colour":
        return {f"{thing.colour} shape" for thing in scene.things}
    return {f"{thing.colour} {thing.shape}" for thing in scene.things}


def ask_which(rng: Rng, scenes: Sequence[Scene]) -> Question | None:
    """Which picture has something that only one of them has."""
    kind = pick(rng, ("shape", "shape", "both", "colour"))
    index = int(rng.integers(len(scenes)))
    elsewhere = set().union(*(_names(scene, kind) for other, scene in enumerate(scenes) if other != index))
    able = sorted(_names(scenes[index], kind) - elsewhere)
    if not able:
        return None
    noun = pick(rng, able)
    template = pick(rng, WHICH_OF_TWO if len(scenes) == 2 and rng.random() < 0.2 else WHICH)
    ref = f"the {noun}" if rng.random() < 0.6 else a(noun)
    return Question("several", dress(rng, template, Scope(), ref=ref, picture=pick(rng, PICTURES)), ORDINALS[index])


def ask_several(rng: Rng, scenes: Sequence[Scene], mixture: Mixture) -> Question:
    """A question about pictures of one conversation: about all of them, or about one by its number."""
    if rng.random() < 0.4 and all(kind_of(scene) != "unseen" for scene in scenes):
        question = ask_which(rng, scenes)
        if question is not None:
            return question
    index = int(rng.integers(len(scenes)))
    while True:
        question = mixture.ask(rng, scenes[index], Scope(index, len(scenes)))
        if question.task not in ("greeting", "describe") and question.answer != talk.REFUSAL:
            return Question("several", question.text, question.answer)
        if question.answer == talk.REFUSAL:
            return question
