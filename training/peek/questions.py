"""Questions about scenes of shapes: colour, shape, position, arrow, count, existence, background, description."""

from __future__ import annotations

from typing import Final

from training.peek.wording import NOUNS, POSITION_CLOSINGS, Question, Rng, Scope, a, dress, join, pick, plural
from training.peek.world import CELLS, COLOURS, SHAPES, Scene, Thing

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

DESCRIBE_CLOSINGS: Final = (" Answer in one sentence.", " Be brief.", " One sentence.", " Use one sentence.")
SHAPE_OF_COLOUR: Final = (
    "which shape has the colour {colour}", "what shape is {colour}", "which shape is {colour}", "what is {colour}",
    "which figure is {colour}", "what shape has the colour {colour}", "name the shape that is {colour}",
    "which shape is drawn in {colour}", "what {colour} shape is there", "which {colour} shape do you see",
)  # fmt: skip


def _kind(rng: Rng, shape: str) -> str:
    return "plus sign" if shape == "cross" and rng.random() < 0.08 else shape


def refs_of(rng: Rng, scene: Scene, thing: Thing) -> dict[str, str]:
    """Ways to name `thing` that fit nothing else in the scene, by what they give away."""
    others = [t for t in scene.things if t is not thing]
    found: dict[str, str] = {}
    kind = _kind(rng, thing.shape)
    if all(t.shape != thing.shape for t in others):
        found["shape"] = f"the {kind}"
    if all(t.colour != thing.colour for t in others):
        found["colour"] = f"the {thing.colour} {pick(rng, NOUNS)}"
    if all((t.shape, t.colour) != (thing.shape, thing.colour) for t in others):
        found["both"] = f"the {thing.colour} {kind}"
    if all(t.cell != thing.cell for t in others):
        place = CELLS[thing.cell]
        place = f"{'in' if ' ' in place or place == 'centre' else 'at'} the {place}"
        found["cell"] = f"the {pick(rng, NOUNS[:3])} {place}"
    return found


def some(rng: Rng, scene: Scene, *ways: str) -> tuple[Thing, str] | None:
    """A thing with a name of one of the kinds in `ways` (likelier first), or None."""
    for index in rng.permutation(len(scene.things)):
        thing = scene.things[index]
        refs = refs_of(rng, scene, thing)
        able = [way for way in ways if way in refs]
        if able:
            return thing, refs[able[0] if rng.random() < 0.7 else pick(rng, able)]
    return None


def ask_colour(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    if len(scene.things) == 1 and rng.random() < 0.4:
        text = dress(rng, pick(rng, COLOUR), scope, ref=pick(rng, COLOUR_ALONE))
        return Question("colour", text, scene.things[0].colour)
    found = some(rng, scene, "shape", "cell")
    if found is None:
        return None
    return Question("colour", dress(rng, pick(rng, COLOUR), scope, ref=found[1]), found[0].colour)


def ask_shape(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    if len(scene.things) == 1 and rng.random() < 0.5:
        return Question("shape", dress(rng, pick(rng, SHAPE_ALONE), scope), scene.things[0].shape)
    found = some(rng, scene, "colour", "cell")
    if found is None:
        return None
    alone = all(t.colour != found[0].colour for t in scene.things if t is not found[0])
    if alone and rng.random() < 0.25:
        text = dress(rng, pick(rng, SHAPE_OF_COLOUR), scope, colour=found[0].colour)
        return Question("shape", text, found[0].shape)
    return Question("shape", dress(rng, pick(rng, SHAPE), scope, ref=found[1]), found[0].shape)


def ask_position(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    if len(scene.things) == 1 and rng.random() < 0.2:
        found: tuple[Thing, str] | None = (scene.things[0], pick(rng, COLOUR_ALONE[1:]))
    else:
        found = some(rng, scene, "shape", "both", "colour")
    if found is None:
        return None
    text = dress(rng, pick(rng, POSITION), scope, POSITION_CLOSINGS, ref=found[1])
    return Question("position", text, CELLS[found[0].cell])


def ask_arrow(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    arrows = [t for t in scene.things if t.direction]
    if not arrows:
        return None
    arrow = arrows[int(rng.integers(len(arrows)))]
    refs = refs_of(rng, scene, arrow)
    able = [refs[way] for way in ("shape", "shape", "both") if way in refs]
    if not able:
        return None
    text = dress(rng, pick(rng, ARROW), scope, ref=pick(rng, able))
    return Question("arrow", text, arrow.direction or "")


def ask_count(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    """Most groups in a scene are of one: those are asked about less often."""
    for _ in range(4):
        refs, number = _group(rng, scene)
        if number > 2 or rng.random() < (0.8, 0.3, 0.6)[number]:
            break
    return Question("count", dress(rng, pick(rng, COUNT), scope, refs=refs), str(number))


def _group(rng: Rng, scene: Scene) -> tuple[str, int]:
    """Some group of things to count, by name, and how many there are."""
    draw = rng.random()
    if draw < 0.15:
        refs, number = pick(rng, ("shapes", "objects", "things", "figures")), len(scene.things)
    elif draw < 0.4:
        pool = [t.shape for t in scene.things] if rng.random() < 0.85 else list(SHAPES)
        shape = pick(rng, pool)
        refs, number = plural(shape), sum(t.shape == shape for t in scene.things)
    elif draw < 0.65:
        colours = [t.colour for t in scene.things] if rng.random() < 0.85 else list(COLOURS)
        colour = pick(rng, colours)
        refs = f"{colour} {pick(rng, ('shapes', 'objects', 'things'))}"
        number = sum(t.colour == colour for t in scene.things)
    else:
        thing = scene.things[int(rng.integers(len(scene.things)))]
        refs = f"{thing.colour} {plural(thing.shape)}"
        number = sum((t.shape, t.colour) == (thing.shape, thing.colour) for t in scene.things)
    return refs, number


def ask_background(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    if scene.background is None:
        return None
    return Question("background", dress(rng, pick(rng, BACKGROUND), scope), scene.background)


def ask_exists(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    """Balanced; most of the wrong ones swap one property with something that is in the picture: that both
    belong to one thing is what has to be learned."""
    kind = pick(rng, ("both", "both", "both", "both", "both", "shape", "shape", "colour"))
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
            shape = others[int(rng.integers(len(others)))].shape if hard and kind == "both" else pick(rng, SHAPES)
        else:
            colour = others[int(rng.integers(len(others)))].colour if hard and kind == "both" else pick(rng, COLOURS)
        if not holds():
            break
    name = _kind(rng, shape)
    noun = {"both": f"{colour} {name}", "shape": name, "colour": f"{colour} {pick(rng, NOUNS[:3])}"}[kind]
    text = dress(rng, pick(rng, EXISTS), scope, ref=a(noun), any=noun, anys=plural(noun))
    return Question("exists", text, "yes" if holds() else "no")


def ask_describe(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    if len(scene.things) == 1 and rng.random() < 0.6:
        return None  # "what do you see" of one shape is mostly asked for its name
    ordered = sorted(scene.things, key=lambda t: (t.cell, t.x))
    answer = join([a(f"{t.colour} {t.shape}") for t in ordered]) + "."
    templates = [t for t in DESCRIBE if len(scene.things) > 1 or "shown" not in t]
    text = dress(rng, pick(rng, templates), scope, DESCRIBE_CLOSINGS)
    return Question("describe", text, answer[0].upper() + answer[1:])
