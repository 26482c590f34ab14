"""What is not a question about a picture of its world: greetings, strange pictures, strange questions."""

from __future__ import annotations

from random import Random

from training.peek.evaluation import elsewhere
from training.peek.evaluation.cases import CANT_SEE, GREETING, INTRODUCTION, WELCOME, Asked
from training.peek.evaluation.drawing import Scene
from training.peek.evaluation.shapes import SHAPES
from training.peek.evaluation.tasks import charts, figures, text
from training.peek.evaluation.world import COLOURS, Wish, compose, some_finish, some_size

_GREETINGS = {
    GREETING: ("Hello", "Hello!", "Hi", "Hi there!", "Good morning.", "Hey", "Good evening!", "Hello there"),
    WELCOME: ("Thanks", "Thank you!", "Thanks a lot.", "Thank you very much.", "Many thanks!"),
    INTRODUCTION: ("Who are you?", "What can you do?", "What are you?", "What are you able to do?"),
}
_STRANGE = (
    "Who painted this?", "How old is the person?", "What is the weather?", "Translate this into French.", "2+2?",
    "Is the dog happy?", "What is the name of the street?", "When was this picture taken?", "Who is the woman?",
    "What is the capital of France?", "Is it raining?", "How much does it cost?", "What breed is the cat?",
    "Write a poem about the sea.", "Which country is this?", "What is the man wearing?", "How tall is the building?",
    "Which brand is the car?", "What time is it?", "Is the food tasty?",
)  # fmt: skip


def greeting(index: int, rng: Random) -> Asked:
    """Hello, thanks and who are you in turn; half of them under a picture."""
    truth = (GREETING, WELCOME, INTRODUCTION)[index % 3]
    scenes = (_of_its_world(rng),) if rng.random() < 0.5 else ()
    return Asked(rng.choice(_GREETINGS[truth]), truth, scenes)


def strange_picture(index: int, rng: Random) -> Asked:
    """Each kind of stand-in for a photograph in turn, under a question that `peek` understands."""
    kind = tuple(elsewhere.KINDS)[index % len(elsewhere.KINDS)]
    size = some_size(rng)
    finish = some_finish(rng, *size)
    scene = Scene(*size, kind, (0, 0, 0), elsewhere=kind, seed=rng.getrandbits(32), finish=finish)
    question = rng.choice(
        (*figures.COLOUR, *figures.SHAPE_ALONE, *figures.POSITION, *figures.DESCRIBE, *figures.BACKGROUND, *text.READ,
         "How many {shape}s are there?", "Is there {a colour} {shape}?", "Which bar is tallest?", *_STRANGE[:4])
    )  # fmt: skip
    question = question.replace("{shape}s", "shapes")
    return Asked(question, CANT_SEE, (scene,), (("shape", rng.choice(SHAPES)), ("colour", rng.choice(COLOURS))))


def strange_question(index: int, rng: Random) -> Asked:
    """A question outside its world under a picture of its world."""
    return Asked(_STRANGE[index % len(_STRANGE)], CANT_SEE, (_of_its_world(rng),))


def _of_its_world(rng: Random) -> Scene:
    kind = rng.random()
    if kind < 0.6:
        wishes = [Wish(rng.choice(SHAPES), c) for c in figures.sample(rng, rng.randint(1, 3))]
        return compose(wishes, rng, longest=1600)
    if kind < 0.8:
        return text.sign((text.some_text(rng.randint(2, 6), rng),), rng, longest=1600)
    return charts.plot(charts.Chart(("A", "B", "C"), tuple(rng.sample((12, 35, 58, 81), 3))), rng, longest=1600)
