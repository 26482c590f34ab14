"""Questions about the figures of one picture."""

from __future__ import annotations

from random import Random

from training.peek.evaluation.cases import Asked, article, plural
from training.peek.evaluation.drawing import DIRECTIONS, POSITIONS
from training.peek.evaluation.shapes import SHAPES
from training.peek.evaluation.world import COLOURS, Wish, compose

COLOUR = (
    "What colour is the {shape}?", "Which colour is the {shape}?", "What is the colour of the {shape}?",
    "Tell me the colour of the {shape}.", "What colour does the {shape} have?",
)  # fmt: skip
SHAPE_ALONE = ("What shape is this?", "Which shape is in the picture?", "What shape do you see?", "Name the shape.")
BACKGROUND = (
    "What colour is the background?", "Which colour is the background?", "What is the background colour?",
    "What is the colour of the background?", "Name the colour of the background.",
)  # fmt: skip
POSITION = (
    "Where is the {shape}?", "Where do you see the {shape}?", "In which part of the picture is the {shape}?",
    "Where is the {colour} {shape}?", "Where is the {colour} shape?", "What is the position of the {shape}?",
)  # fmt: skip
DESCRIBE = ("Describe the picture.", "What is in the picture?", "Describe what you see.", "Describe this image.")
COUNT = (
    "How many X are there?", "How many X do you see?", "How many X are in the picture?", "Count the X.",
    "What is the number of X?",
)  # fmt: skip


def colour(index: int, rng: Random) -> Asked:
    truth = COLOURS[index % 12]
    asked, *others = rng.sample(SHAPES, rng.randint(1, 3))
    scene = compose([Wish(asked, truth), *(Wish(o, rng.choice(without(COLOURS, truth))) for o in others)], rng)
    alone = ("What colour is the shape?", "Which colour does the shape have?")
    phrasing = rng.choice(alone if not others and rng.random() < 0.5 else COLOUR)
    return Asked(phrasing, truth, (scene,), (("shape", asked),))


def background(index: int, rng: Random) -> Asked:
    truth = COLOURS[index % 12]
    colours = rng.sample(without(COLOURS, truth), rng.randint(1, 3))
    scene = compose([Wish(rng.choice(SHAPES), c) for c in colours], rng, background=truth)
    return Asked(rng.choice(BACKGROUND), truth, (scene,))


def shape(index: int, rng: Random) -> Asked:
    truth = SHAPES[index % 8]
    asked, *other_colours = sample(rng, rng.randint(1, 3))
    scene = compose([Wish(truth, asked), *(Wish(rng.choice(SHAPES), c) for c in other_colours)], rng)
    named = (
        "Which shape is {colour}?", "What shape is {colour}?", "What is the {colour} shape?",
        "Which shape has the colour {colour}?",
    )  # fmt: skip
    phrasing = rng.choice(SHAPE_ALONE if not other_colours and rng.random() < 0.6 else named)
    return Asked(phrasing, truth, (scene,), (("colour", asked),))


def existence(index: int, rng: Random) -> Asked:
    """Half yes, half no, and hard: a "no" to a red star has a red figure and a star; asked for less, as many others."""
    truth = ("yes", "no")[index % 2]
    kind = rng.choice(["both", "both", "shape", "colour"])
    (shape, other_shape, third_shape), (colour, other_colour, third_colour) = rng.sample(SHAPES, 3), sample(rng, 3)
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
    noun = {"both": "{a colour} {shape}", "shape": "{a shape}", "colour": "{a colour} shape"}[kind]
    phrasing = rng.choice(["Is there X?", "Do you see X?", "Is there X in the picture?", "Does the picture show X?"])
    scene = compose(wishes, rng, avoid=colour)
    return Asked(phrasing.replace("X", noun), truth, (scene,), (("colour", colour), ("shape", shape)))


def arrow(index: int, rng: Random) -> Asked:
    truth = DIRECTIONS[index % 4]
    others = rng.sample(without(SHAPES, "arrow"), rng.randint(0, 2))
    wishes = [Wish("arrow", rng.choice(COLOURS), direction=truth), *(Wish(o, rng.choice(COLOURS)) for o in others)]
    phrasing = rng.choice(
        ["Which way does the arrow point?", "Where does the arrow point?", "In which direction does the arrow point?",
         "What is the direction of the arrow?", "Which way is the arrow pointing?"]
    )  # fmt: skip
    return Asked(phrasing, truth, (compose(wishes, rng),))


def position(index: int, rng: Random) -> Asked:
    truth = POSITIONS[index % 9]
    shapes = rng.sample(SHAPES, rng.randint(1, 3))
    places = [truth, *rng.sample(without(POSITIONS, truth), len(shapes) - 1)]
    colours = sample(rng, len(shapes))
    scene = compose([Wish(s, c, position=p) for s, c, p in zip(shapes, colours, places, strict=True)], rng)
    return Asked(rng.choice(POSITION), truth, (scene,), (("shape", shapes[0]), ("colour", colours[0])))


def counting(index: int, rng: Random) -> Asked:
    """None to five of what is asked for, and up to three others."""
    number = index % 6
    kind = rng.choice(["all", "shape", "colour", "both"] if number else ["shape", "colour", "both"])
    (shape, *other_shapes), (colour, *other_colours) = rng.sample(SHAPES, 3), sample(rng, 3)
    extra = 0 if kind == "all" else rng.randint(0 if number else 1, 3 if number < 4 else 2)
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
    noun = {"all": "shapes", "shape": "{shapes}", "colour": "{colour} shapes", "both": "{colour} {shapes}"}[kind]
    phrasing = rng.choice(COUNT).replace("X", noun)
    scene = compose(wishes, rng, avoid=colour)
    return Asked(phrasing, str(number), (scene,), (("shapes", plural(shape)), ("colour", colour)))


def description(index: int, rng: Random) -> Asked:
    """One, two or three figures in turn."""
    pairs = [(c, rng.choice(SHAPES)) for c in sample(rng, index % 3 + 1)]
    scene = compose([Wish(s, c) for c, s in pairs], rng)
    *first, last = [f"{article(c)} {c} {s}" for c, s in pairs]
    truth = f"{', '.join(first)} and {last}" if first else last
    return Asked(rng.choice(DESCRIBE), truth.capitalize() + ".", (scene,))


def sample(rng: Random, count: int) -> list[str]:
    """Different colours, drawn by lot."""
    return rng.sample(COLOURS, count)


def without(words: tuple[str, ...], word: str) -> list[str]:
    return [w for w in words if w != word]
