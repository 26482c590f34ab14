"""Questions about scenes, in many phrasings, with short lower-case answers.

The words are data: a template per line, dressed at random with a scope ("in the picture"), an
opening, a closing, another spelling or case. A model this small learns the phrasings it meets, so
there are many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from training.peek.world import CELLS, COLOURS, SHAPES, Scene, Thing

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Question:
    task: str
    text: str
    answer: str


COLOUR: Final = (
    "what colour is {ref}", "which colour is {ref}", "what is the colour of {ref}", "what's the colour of {ref}",
    "name the colour of {ref}", "tell me the colour of {ref}", "the colour of {ref}", "colour of {ref}",
    "what colour does {ref} have", "which colour does {ref} have", "{ref}: what colour", "{ref} is what colour",
    "can you tell me what colour {ref} is", "say what colour {ref} is", "give the colour of {ref}",
    "tell me what colour {ref} is", "do you know which colour {ref} is", "identify the colour of {ref}",
    "what colour has been used for {ref}", "in what colour is {ref} drawn", "i would like to know the colour of {ref}",
)  # fmt: skip
SHAPE: Final = (
    "what shape is {ref}", "which shape is {ref}", "what is the shape of {ref}", "what kind of shape is {ref}",
    "name the shape of {ref}", "tell me what shape {ref} is", "what sort of shape is {ref}", "shape of {ref}",
    "which kind of shape is {ref}", "{ref}: what shape", "{ref} is what shape", "what type of shape is {ref}",
    "can you tell me which shape {ref} is", "say which shape {ref} is", "identify the shape of {ref}",
    "what form does {ref} have", "what shape does {ref} have", "give the shape of {ref}", "what figure is {ref}",
    "what's the shape of {ref}", "which shape does {ref} have", "what is {ref}", "tell me the shape of {ref}",
)  # fmt: skip
SHAPE_ALONE: Final = (
    "what shape is it", "which shape is it", "what shape is this", "what shape do you see", "what shape can you see",
    "name the shape", "what is the shape", "which shape is shown", "what shape is shown", "what is drawn",
    "which shape is there", "what shape is there", "what is this", "what do you see", "identify the shape",
    "tell me the shape", "which shape do you see", "what kind of shape is it", "what shape is drawn",
)  # fmt: skip
COLOUR_ALONE: Final = ("it", "the shape", "this shape", "the object", "the thing", "the figure")
POSITION: Final = (
    "where is {ref}", "where is {ref} located", "in which part {scope} is {ref}", "what is the position of {ref}",
    "tell me where {ref} is", "where can i find {ref}", "where do you see {ref}", "position of {ref}",
    "name the position of {ref}", "say where {ref} is", "in what position is {ref}", "where's {ref}",
    "what position is {ref} in", "whereabouts is {ref}", "can you tell me where {ref} is", "{ref}: where is it",
    "give the position of {ref}", "in which place is {ref}", "where does {ref} stand", "where has {ref} been drawn",
    "which part {scope} holds {ref}", "what is the location of {ref}", "locate {ref}", "find {ref}",
    "where is {ref} placed", "in which area {scope} is {ref}", "give the location of {ref}",
)  # fmt: skip
ARROW: Final = (
    "which way does {ref} point", "which way is {ref} pointing", "where does {ref} point", "where is {ref} pointing",
    "what direction does {ref} point", "in which direction does {ref} point", "which direction is {ref} pointing",
    "in what direction is {ref} pointing", "what is the direction of {ref}", "direction of {ref}",
    "tell me which way {ref} points", "name the direction of {ref}", "say where {ref} points",
    "what direction is {ref} pointing in", "which direction does {ref} show", "where does {ref} point to",
    "what way does {ref} point", "which way does {ref} face", "in which direction is {ref} going",
    "does {ref} point up, down, left or right", "is {ref} pointing up, down, left or right", "{ref} points where",
    "which direction is {ref} facing", "tell me the direction of {ref}", "give the direction {ref} points in",
)  # fmt: skip
COUNT: Final = (
    "how many {refs} are there", "how many {refs} do you see", "how many {refs} can you see", "count the {refs}",
    "how many {refs} are shown", "what is the number of {refs}", "number of {refs}",
    "tell me how many {refs} there are", "how many {refs}", "say how many {refs} there are",
    "how many {refs} are drawn", "give the number of {refs}",
    "how many {refs} are visible", "how many {refs} can be seen", "what number of {refs} is there",
    "can you count the {refs}", "please count the {refs}",
)  # fmt: skip
BACKGROUND: Final = (
    "what colour is the background", "which colour is the background", "what is the background colour",
    "what's the colour of the background", "name the background colour", "tell me the colour of the background",
    "the background colour", "background colour", "what is the colour of the background", "colour of the background",
    "what colour does the background have", "which colour has the background", "say what colour the background is",
    "what colour is behind the shapes", "the background is what colour", "name the colour of the background",
    "can you tell me the background colour", "on what colour are the shapes drawn", "the background: what colour",
    "what background colour do you see", "which background colour is used", "identify the background colour",
)  # fmt: skip
EXISTS: Final = (
    "is there {ref}", "do you see {ref}", "can you see {ref}", "is {ref} shown", "is {ref} there",
    "does it show {ref}", "is there {ref} here", "does the {picture} show {ref}", "does the {picture} contain {ref}",
    "does the {picture} have {ref}", "is {ref} present", "is {ref} visible", "can {ref} be seen",
    "yes or no: is there {ref}", "tell me if there is {ref}", "is there any {any}", "are there any {anys}",
    "do you see any {anys}", "can you find {ref}", "say whether there is {ref}", "is {ref} in the {picture}",
)  # fmt: skip
DESCRIBE: Final = (
    "describe the {picture}", "what do you see", "what is in the {picture}", "what can you see",
    "describe what you see", "what does the {picture} show", "describe this {picture}",
    "tell me what you see", "what is shown",
    "list the shapes", "name everything you see", "describe it in one sentence", "what's in this {picture}",
)  # fmt: skip
WHICH: Final = (
    "which {picture} has {ref}", "which {picture} shows {ref}", "which {picture} contains {ref}",
    "in which {picture} is {ref}", "in which {picture} do you see {ref}", "which {picture} is {ref} in",
    "where is {ref}: in the first or the second {picture}", "which one has {ref}", "which of the {picture}s has {ref}",
    "is {ref} in the first or the second {picture}", "which of the two {picture}s shows {ref}",
    "first or second {picture}: which has {ref}", "tell me which {picture} has {ref}",
    "which of these {picture}s contains {ref}", "{ref} is in which {picture}", "name the {picture} with {ref}",
)  # fmt: skip
PICTURES: Final = ("picture", "image", "picture", "image", "photo", "drawing")
NOUNS: Final = ("shape", "thing", "object", "one", "figure")
_ORDERS: Final = (
    "name", "tell", "say", "give", "count", "describe", "list", "identify", "find", "locate", "i",
    "please",
)  # fmt: skip
_OPENINGS: Final = (
    "look at the {picture}. ", "please tell me: ", "hello! ", "question: ", "look closely. ", "hi, ", "please answer: ",
)  # fmt: skip
_CLOSINGS: Final = (
    " Answer in one word.", " One word.", " Answer with one word.", " Answer with one word only.",
    " Reply with a single word.", " Answer briefly.", " Please answer in one word.", " Use one word.", " Be brief.",
    " Just the answer.", " Short answer.",
)  # fmt: skip
_POSITION_CLOSINGS: Final = (
    " Answer briefly.", " Be brief.", " Just the answer.", " Short answer.",
    " Answer with a position such as top left or centre.", " Answer in one or two words.",
)  # fmt: skip

_SPELLINGS: Final = (("colour", "color"), ("Colour", "Color"), ("grey", "gray"), ("Grey", "Gray"))


def _pick(rng: Rng, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _plural(noun: str) -> str:
    return f"{noun}es" if noun == "cross" else f"{noun}s"


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


@dataclass(frozen=True, slots=True)
class Scope:
    """Which picture a question is about: the only one, or one of two."""

    ordinal: str | None = None

    def words(self, rng: Rng, *, of: bool = False) -> str:
        picture, preposition = _pick(rng, PICTURES), "of" if of else "in"
        if self.ordinal is None:
            return f"{preposition} {_pick(rng, ('the', 'the', 'this'))} {picture}"
        if rng.random() < 0.15 and picture in ("picture", "image"):
            return f"{preposition} {picture} {'1' if self.ordinal == 'first' else '2'}"
        return f"{preposition} the {self.ordinal} {picture}"


def _dress(rng: Rng, template: str, scope: Scope, closings: Sequence[str] = _CLOSINGS, **parts: str) -> str:
    """A template in one of the many forms people type it."""
    picture = _pick(rng, PICTURES)
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
        text = _pick(rng, _OPENINGS).format(picture=picture) + text
    if rng.random() < 0.75:
        text = text[0].upper() + text[1:]
    if draw < 0.82 and rng.random() < 0.18:
        text += _pick(rng, closings)
    if rng.random() < 0.5:
        for british, american in _SPELLINGS:
            text = text.replace(british, american)
    if rng.random() < 0.02:
        text = text.upper() if rng.random() < 0.3 else text.lower()
    return text


def _kind(rng: Rng, shape: str) -> str:
    return "plus sign" if shape == "cross" and rng.random() < 0.08 else shape


def _refs(rng: Rng, scene: Scene, thing: Thing) -> dict[str, str]:
    """Ways to name `thing` that fit nothing else in the scene, by what they give away."""
    others = [t for t in scene.things if t is not thing]
    found: dict[str, str] = {}
    kind = _kind(rng, thing.shape)
    if all(t.shape != thing.shape for t in others):
        found["shape"] = f"the {kind}"
    if all(t.colour != thing.colour for t in others):
        found["colour"] = f"the {thing.colour} {_pick(rng, NOUNS)}"
    if all((t.shape, t.colour) != (thing.shape, thing.colour) for t in others):
        found["both"] = f"the {thing.colour} {kind}"
    if all(t.cell != thing.cell for t in others):
        place = CELLS[thing.cell]
        place = f"{'in' if ' ' in place or place == 'centre' else 'at'} the {place}"
        found["cell"] = f"the {_pick(rng, NOUNS[:3])} {place}"
    return found


def _some(rng: Rng, scene: Scene, *ways: str) -> tuple[Thing, str] | None:
    """A thing with a name of one of the kinds in `ways` (likelier first), or None."""
    for index in rng.permutation(len(scene.things)):
        thing = scene.things[index]
        refs = _refs(rng, scene, thing)
        able = [way for way in ways if way in refs]
        if able:
            return thing, refs[able[0] if rng.random() < 0.7 else _pick(rng, able)]
    return None


def _colour(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    if len(scene.things) == 1 and rng.random() < 0.4:
        text = _dress(rng, _pick(rng, COLOUR), scope, ref=_pick(rng, COLOUR_ALONE))
        return Question("colour", text, scene.things[0].colour)
    found = _some(rng, scene, "shape", "cell")
    if found is None:
        return None
    return Question("colour", _dress(rng, _pick(rng, COLOUR), scope, ref=found[1]), found[0].colour)


def _shape(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    if len(scene.things) == 1 and rng.random() < 0.5:
        return Question("shape", _dress(rng, _pick(rng, SHAPE_ALONE), scope), scene.things[0].shape)
    found = _some(rng, scene, "colour", "cell")
    if found is None:
        return None
    return Question("shape", _dress(rng, _pick(rng, SHAPE), scope, ref=found[1]), found[0].shape)


def _position(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    if len(scene.things) == 1 and rng.random() < 0.2:
        found: tuple[Thing, str] | None = (scene.things[0], _pick(rng, COLOUR_ALONE[1:]))
    else:
        found = _some(rng, scene, "shape", "both", "colour")
    if found is None:
        return None
    text = _dress(rng, _pick(rng, POSITION), scope, _POSITION_CLOSINGS, ref=found[1])
    return Question("position", text, CELLS[found[0].cell])


def _arrow(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    arrows = [t for t in scene.things if t.direction]
    if not arrows:
        return None
    arrow = arrows[int(rng.integers(len(arrows)))]
    refs = _refs(rng, scene, arrow)
    able = [refs[way] for way in ("shape", "shape", "both") if way in refs]
    if not able:
        return None
    text = _dress(rng, _pick(rng, ARROW), scope, ref=_pick(rng, able))
    return Question("arrow", text, arrow.direction or "")


def _count(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    """Most groups in a scene are of one: those are asked about less often."""
    for _ in range(3):
        refs, number = _group(rng, scene)
        if number != 1 or rng.random() < 0.4:
            break
    return Question("count", _dress(rng, _pick(rng, COUNT), scope, refs=refs), str(number))


def _group(rng: Rng, scene: Scene) -> tuple[str, int]:
    """Some group of things to count, by name, and how many there are."""
    draw = rng.random()
    if draw < 0.15:
        refs, number = _pick(rng, ("shapes", "objects", "things", "figures")), len(scene.things)
    elif draw < 0.4:
        pool = [t.shape for t in scene.things] if rng.random() < 0.85 else list(SHAPES)
        shape = _pick(rng, pool)
        refs, number = _plural(shape), sum(t.shape == shape for t in scene.things)
    elif draw < 0.65:
        colours = [t.colour for t in scene.things] if rng.random() < 0.85 else list(COLOURS)
        colour = _pick(rng, colours)
        refs = f"{colour} {_pick(rng, ('shapes', 'objects', 'things'))}"
        number = sum(t.colour == colour for t in scene.things)
    else:
        thing = scene.things[int(rng.integers(len(scene.things)))]
        refs = f"{thing.colour} {_plural(thing.shape)}"
        number = sum((t.shape, t.colour) == (thing.shape, thing.colour) for t in scene.things)
    return refs, number


def _background(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    if scene.background is None:
        return None
    return Question("background", _dress(rng, _pick(rng, BACKGROUND), scope), scene.background)


def _exists(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    """Balanced; most of the wrong ones swap one property with something that is in the picture: that both
    belong to one thing is what has to be learned."""
    kind = _pick(rng, ("both", "both", "both", "both", "both", "shape", "shape", "colour"))
    pairs = {(t.shape, t.colour) for t in scene.things}
    thing = scene.things[int(rng.integers(len(scene.things)))]
    shape, colour, wanted = thing.shape, thing.colour, bool(rng.random() < 0.5)

    def holds() -> bool:
        return any((kind == "colour" or s == shape) and (kind == "shape" or c == colour) for s, c in pairs)

    for _ in range(0 if wanted else 50):
        shape, colour = thing.shape, thing.colour
        hard, swap = rng.random() < 0.85, rng.random() < 0.6
        others = scene.things
        if kind != "colour" and (swap or kind == "shape"):
            shape = others[int(rng.integers(len(others)))].shape if hard and kind == "both" else _pick(rng, SHAPES)
        else:
            colour = others[int(rng.integers(len(others)))].colour if hard and kind == "both" else _pick(rng, COLOURS)
        if not holds():
            break
    name = _kind(rng, shape)
    noun = {"both": f"{colour} {name}", "shape": name, "colour": f"{colour} {_pick(rng, NOUNS[:3])}"}[kind]
    text = _dress(rng, _pick(rng, EXISTS), scope, ref=_a(noun), any=noun, anys=_plural(noun))
    return Question("exists", text, "yes" if holds() else "no")


def _describe(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    if len(scene.things) == 1 and rng.random() < 0.6:
        return None  # "what do you see" of one shape is mostly asked for its name
    ordered = sorted(scene.things, key=lambda t: (t.cell, t.x))
    answer = _and([_a(f"{t.colour} {t.shape}") for t in ordered]) + "."
    text = _dress(rng, _pick(rng, [t for t in DESCRIBE if len(scene.things) > 1 or "shown" not in t]), scope)
    return Question("describe", text.replace("one word", "one sentence"), answer[0].upper() + answer[1:])


Maker = Callable[[Rng, Scene, Scope], Question | None]
TASKS: Final[dict[str, tuple[Maker, float]]] = {
    "colour": (_colour, 0.11),
    "shape": (_shape, 0.14),
    "position": (_position, 0.10),
    "arrow": (_arrow, 0.03),
    "count": (_count, 0.28),
    "exists": (_exists, 0.30),
    "background": (_background, 0.02),
    "describe": (_describe, 0.02),
}


def ask(rng: Rng, scene: Scene, task: str, ordinal: str | None = None) -> Question | None:
    """A question of `task` about `scene`, or None where the scene has no unambiguous one."""
    return TASKS[task][0](rng, scene, Scope(ordinal)) if scene.things else None


def ask_any(rng: Rng, scene: Scene, ordinal: str | None = None) -> Question:
    """A question of some task, the harder tasks more often."""
    names, weights = list(TASKS), np.array([weight for _, weight in TASKS.values()])
    while True:
        question = ask(rng, scene, names[int(rng.choice(len(names), p=weights / weights.sum()))], ordinal)
        if question is not None:
            return question


def ask_pair(rng: Rng, first: Scene, second: Scene) -> Question:
    """A question about two pictures of one conversation."""
    if rng.random() < 0.35:
        question = _which(rng, first, second)
        if question is not None:
            return question
    scene, ordinal = (first, "first") if rng.random() < 0.5 else (second, "second")
    while True:
        question = ask_any(rng, scene, ordinal)
        if question.task != "describe":
            return Question("pair", question.text, question.answer)


def _which(rng: Rng, first: Scene, second: Scene) -> Question | None:
    scenes, kind = (first, second), _pick(rng, ("shape", "shape", "both", "colour"))

    def names(scene: Scene) -> set[str]:
        if kind == "shape":
            return {t.shape for t in scene.things}
        if kind == "colour":
            return {f"{t.colour} shape" for t in scene.things}
        return {f"{t.colour} {t.shape}" for t in scene.things}

    index = int(rng.integers(2))
    able = sorted(names(scenes[index]) - names(scenes[1 - index]))
    if not able:
        return None
    noun = _pick(rng, able)
    text = _dress(rng, _pick(rng, WHICH), Scope(), ref=f"the {noun}" if rng.random() < 0.6 else _a(noun))
    return Question("which", text, ("first", "second")[index])
