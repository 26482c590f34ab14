"""The evaluation's tasks: for each, scenes, a question in our own words, and the one right answer.

A case is made from its task, index and seed alone, so two runs ask the same. Truths go round in turn (twelve colours,
yes and no, one two three, ...), so that no constant answer does better than its share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from training.peek.evaluation.drawing import DIRECTIONS, POSITIONS, SHAPES, Scene
from training.peek.evaluation.world import COLOURS, Wish, compose


@dataclass(frozen=True, slots=True)
class Case:
    id: str
    task: str
    phrasing: str
    """The question before its blanks were filled: what a breakdown by wording counts over."""
    question: str
    truth: str
    scenes: tuple[Scene, ...]
    text_first: bool
    """Whether the question stands before the pictures."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a task makes of one draw."""

    phrasing: str
    truth: str
    scenes: tuple[Scene, ...]
    blanks: tuple[tuple[str, str], ...] = ()

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
    """Accuracy that version 0 must reach, 0..1; None: reported only."""


def make_cases(task: str, count: int, seed: int) -> list[Case]:
    """The first `count` cases of a task; a longer run begins with the shorter one's cases."""
    return [_make_case(task, index, seed) for index in range(count)]


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    return shape + "es" if shape.endswith("s") else shape + "s"


def _make_case(task: str, index: int, seed: int) -> Case:
    rng = Random(f"peek evaluation/{seed}/{task}/{index}")
    asked = TASKS[task].make(index, rng)
    # half of each task's cases, and of each truth's: the truth goes round faster than this bit
    text_first = Random(f"order/{seed}/{task}/{index // 2}").random() < 0.5
    text_first ^= index % 2 == 1
    return Case(f"{task}-{index:04}", task, asked.phrasing, asked.question, asked.truth, asked.scenes, text_first)


# --- one picture -----------------------------------------------------------------------------------------------------


def _colour(index: int, rng: Random) -> Asked:
    truth = COLOURS[index % 12]
    shape, *others = rng.sample(SHAPES, rng.randint(1, 3))
    scene = compose([Wish(shape, truth), *(Wish(o, rng.choice(_without(COLOURS, truth))) for o in others)], rng)
    if not others and rng.random() < 0.5:
        phrasing = rng.choice(["What colour is the shape?", "Which colour does the shape have?"])
    else:
        phrasing = rng.choice(
            ["What colour is the {shape}?", "Which colour is the {shape}?", "What is the colour of the {shape}?",
             "Tell me the colour of the {shape}."]
        )  # fmt: skip
    return Asked(phrasing, truth, (scene,), (("shape", shape),))


def _background(index: int, rng: Random) -> Asked:
    truth = COLOURS[index % 12]
    colours = rng.sample(_without(COLOURS, truth), rng.randint(1, 3))
    scene = compose([Wish(rng.choice(SHAPES), colour) for colour in colours], rng, background=truth)
    phrasing = rng.choice(
        ["What colour is the background?", "Which colour is the background?", "What is the background colour?",
         "What is the colour of the background?"]
    )  # fmt: skip
    return Asked(phrasing, truth, (scene,))


def _existence(index: int, rng: Random) -> Asked:
    """Half yes, half no, and hard: a "no" to a red star has a red figure and a star; asked for less, as many others."""
    truth = ("yes", "no")[index % 2]
    kind = rng.choice(["both", "both", "shape", "colour"])
    (shape, other_shape, third_shape), (colour, other_colour, third_colour) = rng.sample(SHAPES, 3), _sample(rng, 3)
    if kind == "both":
        wishes = [Wish(shape, other_colour), Wish(other_shape, colour)]
        wishes.append(Wish(shape, colour) if truth == "yes" else Wish(third_shape, third_colour))
        if rng.random() < 0.5:
            del wishes[rng.randrange(2) if truth == "yes" else 2]
    else:
        wishes = [Wish(other_shape, other_colour), Wish(third_shape, third_colour)]
        if truth == "yes":
            found = Wish(shape, third_colour) if kind == "shape" else Wish(third_shape, colour)
            wishes[rng.randrange(2)] = found
        if rng.random() < 0.3:
            wishes.append(Wish(other_shape, other_colour))
    scene = compose(wishes, rng, avoid=colour)
    asked = {
        "both": ("colour", "{colour} {shape}"),
        "shape": ("shape", "{shape}"),
        "colour": ("colour", "{colour} shape"),
    }
    first, words = asked[kind]
    noun = "{a " + first + "}" + words.removeprefix("{" + first + "}")
    phrasing = rng.choice(["Is there X?", "Do you see X?", "Is there X in the picture?", "Does the picture show X?"])
    return Asked(phrasing.replace("X", noun), truth, (scene,), (("colour", colour), ("shape", shape)))


def _counting(index: int, rng: Random) -> Asked:
    """One to three of what is asked for, among up to four figures."""
    number = index % 3 + 1
    kind = rng.choice(["all", "shape", "colour", "both"])
    (shape, *other_shapes), (colour, *other_colours) = rng.sample(SHAPES, 3), _sample(rng, 3)
    extra = 0 if kind == "all" else rng.randint(0, min(2, 4 - number))
    if kind == "all":
        wishes = [Wish(rng.choice(SHAPES), c) for c in rng.choices([colour, *other_colours], k=number)]
    elif kind == "shape":
        wishes = [Wish(shape, c) for c in rng.choices([colour, *other_colours], k=number)]
        wishes += [Wish(rng.choice(other_shapes), rng.choice([colour, *other_colours])) for _ in range(extra)]
    elif kind == "colour":
        wishes = [Wish(s, colour) for s in rng.choices([shape, *other_shapes], k=number)]
        wishes += [Wish(rng.choice([shape, *other_shapes]), rng.choice(other_colours)) for _ in range(extra)]
    else:
        wishes = [Wish(shape, colour)] * number
        wishes += [rng.choice([Wish(shape, other_colours[0]), Wish(other_shapes[0], colour)]) for _ in range(extra)]
    scene = compose(wishes, rng, avoid=colour)
    noun = {"all": "shapes", "shape": "{shapes}", "colour": "{colour} shapes", "both": "{colour} {shapes}"}[kind]
    phrasing = rng.choice(
        ["How many X are there?", "How many X do you see?", "How many X are in the picture?", "Count the X."]
    ).replace("X", noun)
    return Asked(phrasing, str(number), (scene,), (("shapes", plural(shape)), ("colour", colour)))


def _which_shape(index: int, rng: Random) -> Asked:
    truth = SHAPES[index % 8]
    colour, *other_colours = _sample(rng, rng.randint(1, 3))
    scene = compose([Wish(truth, colour), *(Wish(rng.choice(SHAPES), c) for c in other_colours)], rng)
    if not other_colours and rng.random() < 0.6:
        phrasing = rng.choice(["What shape is this?", "Which shape is in the picture?", "What shape do you see?"])
    else:
        phrasing = rng.choice(
            ["Which shape is {colour}?", "What shape is {colour}?", "What is the {colour} shape?",
             "Which shape has the colour {colour}?"]
        )  # fmt: skip
    return Asked(phrasing, truth, (scene,), (("colour", colour),))


def _position(index: int, rng: Random) -> Asked:
    truth = POSITIONS[index % 9]
    shapes = rng.sample(SHAPES, rng.randint(1, 3))
    places = [truth, *rng.sample(_without(POSITIONS, truth), len(shapes) - 1)]
    colours = rng.sample(COLOURS, len(shapes))
    scene = compose([Wish(s, c, position=p) for s, c, p in zip(shapes, colours, places, strict=True)], rng)
    phrasing = rng.choice(
        ["Where is the {shape}?", "Where do you see the {shape}?", "In which part of the picture is the {shape}?",
         "Where is the {colour} {shape}?", "Where is the {colour} shape?"]
    )  # fmt: skip
    return Asked(phrasing, truth, (scene,), (("shape", shapes[0]), ("colour", colours[0])))


def _arrow(index: int, rng: Random) -> Asked:
    truth = DIRECTIONS[index % 4]
    others = rng.sample(_without(SHAPES, "arrow"), rng.randint(0, 2))
    scene = compose(
        [Wish("arrow", rng.choice(COLOURS), direction=truth), *(Wish(o, rng.choice(COLOURS)) for o in others)], rng
    )
    phrasing = rng.choice(
        ["Which way does the arrow point?", "Where does the arrow point?", "In which direction does the arrow point?",
         "What is the direction of the arrow?", "Which way is the arrow pointing?"]
    )  # fmt: skip
    return Asked(phrasing, truth, (scene,))


def _description(_: int, rng: Random) -> Asked:
    colours = _sample(rng, rng.randint(1, 2))
    pairs = [(c, rng.choice(SHAPES)) for c in colours]
    scene = compose([Wish(s, c) for c, s in pairs], rng)
    phrasing = rng.choice(["Describe the picture.", "What is in the picture?", "Describe what you see."])
    phrases = [f"{article(c)} {c} {s}" for c, s in pairs]
    return Asked(phrasing, " and ".join(phrases).capitalize() + ".", (scene,))


# --- two pictures ----------------------------------------------------------------------------------------------------


def _colour_of_two(index: int, rng: Random) -> Asked:
    truth = COLOURS[index % 12]
    asked = rng.randrange(2)
    colours = [truth, truth]
    colours[1 - asked] = rng.choice(_without(COLOURS, truth))
    scenes = tuple(compose([Wish(rng.choice(SHAPES), c)], rng, max_side=800) for c in colours)
    phrasing = rng.choice(
        [f"What colour is the shape in the {_ORDINALS[asked]} picture?",
         f"Which colour does the shape in the {_ORDINALS[asked]} picture have?"]
    )  # fmt: skip
    return Asked(phrasing, truth, scenes)


def _which_of_two(index: int, rng: Random) -> Asked:
    there = index % 2
    shape, other = rng.sample(SHAPES, 2)
    shapes = [other, other]
    shapes[there] = shape
    scenes = tuple(compose([Wish(s, rng.choice(COLOURS))], rng, max_side=800) for s in shapes)
    phrasing = rng.choice(
        ["Which picture has the {shape}?", "Which picture shows {a shape}?", "In which picture is {a shape}?"]
    )
    return Asked(phrasing, _ORDINALS[there], scenes, (("shape", shape),))


_ORDINALS = ("first", "second")

TASKS: dict[str, Task] = {
    "colour": Task(_colour, 0.90),
    "background": Task(_background, 0.90),
    "yes-no": Task(_existence, 0.90),
    "counting": Task(_counting, 0.90),
    "which-shape": Task(_which_shape, 0.60),
    "position": Task(_position, 0.60),
    "arrow": Task(_arrow, 0.60),
    "description": Task(_description, None),
    "two-colour": Task(_colour_of_two, None),
    "two-which": Task(_which_of_two, None),
}


def _sample(rng: Random, count: int) -> list[str]:
    """Different colours, drawn by lot."""
    return rng.sample(COLOURS, count)


def _without(words: tuple[str, ...], word: str) -> list[str]:
    return [w for w in words if w != word]
