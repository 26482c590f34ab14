"""Questions about two or three figures of one picture: which is larger, which is where."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from training.peek.evaluation.cases import Asked
from training.peek.evaluation.drawing import Figure, Scene
from training.peek.evaluation.shapes import SHAPES, apparent_size
from training.peek.evaluation.tasks.figures import sample
from training.peek.evaluation.world import Wish, compose, served_size

LARGER_BY = 1.5
"""Radii and square roots of areas differ by this factor at least: a slender star of a large radius looks small."""
DOMINANT = 1.8
"""The distance along one axis is so many times that along the other, as the model gets the picture."""
PLACES = ("left", "right", "above", "below")

Blanks = tuple[tuple[str, str], ...]


def sizes(index: int, rng: Random) -> Asked:
    """Four kinds of question in turn, about the larger one and about the smaller one in turn."""
    large = index // 4 % 2 == 0
    scene, figures = _of_different_sizes(rng, 3 if index % 4 == 1 and rng.random() < 0.5 else 2, large)
    extreme, other = figures[:2]
    return (_named, _superlative, _than, _colour)[index % 4](index, rng, scene, (extreme, other), large)


def _named(_: int, rng: Random, scene: Scene, pair: tuple[Figure, Figure], large: bool) -> Asked:
    word = rng.choice(("larger", "bigger")) if large else "smaller"
    first, second = rng.sample([f"the {f.colour} {f.shape}" for f in pair], 2)
    phrasing = rng.choice(
        [f"Which is {word}, {{first}} or {{second}}?", f"What is {word}, {{first}} or {{second}}?",
         f"Which one is {word}: {{first}} or {{second}}?"]
    )  # fmt: skip
    truth = f"the {pair[0].colour} {pair[0].shape}"
    return Asked(phrasing, truth, (scene,), (("first", first), ("second", second)))


def _superlative(_: int, rng: Random, scene: Scene, pair: tuple[Figure, Figure], large: bool) -> Asked:
    most = rng.choice(("largest", "biggest")) if large else "smallest"
    phrasings = [f"Which shape is the {most}?", f"What is the {most} shape?", f"Which shape is {most}?"]
    if len(scene.figures) == 2:
        phrasings.append(f"What is the {'larger' if large else 'smaller'} shape?")
    return Asked(rng.choice(phrasings), pair[0].shape, (scene,))


def _than(index: int, rng: Random, scene: Scene, pair: tuple[Figure, Figure], large: bool) -> Asked:
    truth = ("yes", "no")[index // 8 % 2]
    extreme, other = pair if truth == "yes" else pair[::-1]
    word = rng.choice(("larger", "bigger")) if large else "smaller"
    blanks = (("shape", extreme.shape), ("other", other.shape))
    return Asked(f"Is the {{shape}} {word} than the {{other}}?", truth, (scene,), blanks)


def _colour(_: int, rng: Random, scene: Scene, pair: tuple[Figure, Figure], large: bool) -> Asked:
    word = "larger" if large else "smaller"
    phrasing = rng.choice(
        [f"Which colour is the {word} shape?", f"What colour is the {word} shape?",
         f"What is the colour of the {word} shape?"]
    )  # fmt: skip
    return Asked(phrasing, pair[0].colour, (scene,))


def _of_different_sizes(rng: Random, count: int, large: bool) -> tuple[Scene, list[Figure]]:
    """Figures of unlike shapes and colours, and the list of them that begins with the largest (or smallest)."""
    while True:
        small = rng.uniform(0.1, 0.14)
        scales = [small * rng.uniform(1.6, 2.4), small, small * rng.uniform(1.0, 1.1)]
        if not large:
            scales = [small, small * rng.uniform(1.6, 2.4), small * rng.uniform(1.6, 2.4)]
        shapes, colours = rng.sample(SHAPES, count), sample(rng, count)
        wishes = [Wish(s, c, scale=k) for s, c, k in zip(shapes, colours, scales, strict=False)]
        scene = compose(wishes, rng)
        figures = sorted(scene.figures, key=lambda f: shapes.index(f.shape))
        if all(_ratio(figures[0], other, large) >= LARGER_BY for other in figures[1:]):
            return scene, figures


def _ratio(extreme: Figure, other: Figure, large: bool) -> float:
    a, b = (extreme, other) if large else (other, extreme)
    seen = [apparent_size(f.shape, f.radius, f.proportion) for f in (a, b)]
    return min(a.radius / b.radius, seen[0] / seen[1])


def relations(index: int, rng: Random) -> Asked:
    """Four kinds of question in turn; each of the four places in turn within them."""
    place = PLACES[index // 4 % 4]
    scene, first, second = _standing(rng, place)
    blanks: Blanks = (("shape", first.shape), ("other", second.shape))
    if index % 4 == 3:
        side = {"left": "to the left of", "right": "to the right of"}.get(place, place)
        phrasing = rng.choice([f"What is {side} the {{other}}?", f"Which shape is {side} the {{other}}?"])
        return Asked(phrasing, first.shape, (scene,), blanks)
    if index % 4 == 2:
        return _claim(index, rng, scene, (first, second), place)
    if index % 4 == 1:
        choice = "left or right of" if place in PLACES[:2] else "above or below"
        return Asked(f"Is the {{shape}} {choice} the {{other}}?", place, (scene,), blanks)
    phrasing = rng.choice(
        ["Where is the {shape} relative to the {other}?", "Where does the {shape} stand relative to the {other}?",
         "Seen from the {other}, where is the {shape}?", "Where is the {shape} compared to the {other}?"]
    )  # fmt: skip
    return Asked(phrasing, place, (scene,), blanks)


def _claim(index: int, rng: Random, scene: Scene, pair: Sequence[Figure], place: str) -> Asked:
    """A "no" is the opposite of what is true."""
    truth = ("yes", "no")[index // 16 % 2]
    said = place if truth == "yes" else PLACES[PLACES.index(place) ^ 1]
    side = {"left": "to the left of", "right": "to the right of"}.get(said, said)
    blanks = (("shape", pair[0].shape), ("other", pair[1].shape))
    return Asked(f"Is the {{shape}} {side} the {{other}}?", truth, (scene,), blanks)


def _standing(rng: Random, place: str) -> tuple[Scene, Figure, Figure]:
    """Two unlike figures, the first `place` of the second."""
    while True:
        shapes, colours = rng.sample(SHAPES, 2), sample(rng, 2)
        scene = compose([Wish(s, c) for s, c in zip(shapes, colours, strict=True)], rng)
        first, second = sorted(scene.figures, key=lambda f: shapes.index(f.shape))
        if place_of(first, second, scene) == place:
            return scene, first, second


def place_of(first: Figure, second: Figure, scene: Scene) -> str | None:
    """Where the first stands seen from the second, of `PLACES`; None where neither axis is dominant."""
    across, down = served_size(scene.width, scene.height)
    x, y = (first.x - second.x) * across / scene.width, (first.y - second.y) * down / scene.height
    if abs(x) >= DOMINANT * abs(y):
        return "left" if x < 0 else "right"
    if abs(y) >= DOMINANT * abs(x):
        return "above" if y < 0 else "below"
    return None
