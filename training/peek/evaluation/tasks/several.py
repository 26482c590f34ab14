"""Questions about two to four pictures of one conversation."""

from __future__ import annotations

from random import Random

from training.peek.evaluation.cases import Asked, Turn, typed
from training.peek.evaluation.drawing import Scene
from training.peek.evaluation.shapes import SHAPES
from training.peek.evaluation.tasks.figures import BACKGROUND, sample
from training.peek.evaluation.world import Wish, compose

ORDINALS = ("first", "second", "third", "fourth")
_LONGEST = 1600
"""Pixels: four pictures of 4,000 would only make the server wait for its decoder."""
_PLACES = [(count, place) for count in (2, 3, 4) for place in range(count)]


def which(index: int, rng: Random) -> Asked:
    """All pictures in one message; which one shows what."""
    count, there = _PLACES[index % 9]
    return _which(_some_pictures(count, rng), there, rng)


def detail(index: int, rng: Random) -> Asked:
    """All pictures in one message; the shape or colour in one of them."""
    count, there = _PLACES[index % 9]
    return _detail(_some_pictures(count, rng), there, rng)


def later(index: int, rng: Random) -> Asked:
    """A picture in each turn, each asked about; then a question about an earlier one, or with the last picture."""
    count, there = _PLACES[index % 9]
    scenes = _some_pictures(count, rng)
    asked = (_which if index // 9 % 2 else _detail)(scenes, there, rng)
    with_last = count > 2 and there < count - 1 and rng.random() < 0.5
    shown = scenes[:-1] if with_last else scenes
    turns = tuple(_small_talk(scene, place, rng) for place, scene in enumerate(shown))
    return Asked(asked.phrasing, asked.truth, scenes[len(shown) :], asked.blanks, turns)


def _some_pictures(count: int, rng: Random) -> tuple[Scene, ...]:
    """Each with one figure; no two alike in shape or colour."""
    pairs = zip(rng.sample(SHAPES, count), sample(rng, count), strict=True)
    return tuple(compose([Wish(shape, colour)], rng, longest=_LONGEST) for shape, colour in pairs)


def _which(scenes: tuple[Scene, ...], there: int, rng: Random) -> Asked:
    (figure,) = scenes[there].figures
    phrasing = rng.choice(
        ["Which picture has the {shape}?", "Which picture shows {a shape}?", "In which picture is {a shape}?",
         "In which picture is {a colour} shape?", "Which picture has the {colour} {shape}?",
         "Which picture shows {a colour} shape?"]
    )  # fmt: skip
    return Asked(phrasing, ORDINALS[there], scenes, (("shape", figure.shape), ("colour", figure.colour)))


def _detail(scenes: tuple[Scene, ...], there: int, rng: Random) -> Asked:
    (figure,) = scenes[there].figures
    place = rng.choice(
        (f"in the {ORDINALS[there]} picture", f"in the {ORDINALS[there]} picture", f"in picture {there + 1}")
    )
    kind = rng.choice(("colour", "shape"))
    phrasings = {
        "colour": ("What colour is the shape X?", "Which colour does the shape X have?"),
        "shape": ("What shape is X?", "Which shape is X?", "What shape do you see X?"),
    }[kind]
    return Asked(rng.choice(phrasings).replace("X", place), getattr(figure, kind), scenes)


def _small_talk(scene: Scene, place: int, rng: Random) -> Turn:
    """A turn that shows a picture and asks something about it: by its number, once there are several."""
    (figure,) = scene.figures
    text, answer = rng.choice(
        [("What colour is the shape?", figure.colour), ("What shape is this?", figure.shape),
         (rng.choice(BACKGROUND), scene.background)]
    )  # fmt: skip
    if place:
        here = f" in the {ORDINALS[place]} picture"
        text = f"What shape is{here}?" if answer == figure.shape else f"{text.rstrip('?.')}{here}{text[-1]}"
    return Turn(typed(text, rng), (scene,), answer, rng.random() < 0.5)
