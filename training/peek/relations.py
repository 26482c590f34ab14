"""Questions that compare two shapes: which is larger, and where one stands relative to the other."""

from __future__ import annotations

from typing import Final

from training.peek.questions import refs_of
from training.peek.wording import Question, Rng, Scope, dress, pick
from training.peek.world import Scene, Thing

LARGER_BY: Final = 1.5
"""How much larger, in extent, the larger of two that are compared must be."""
CLEARER_BY: Final = 1.7
"""How much longer the axis that names a relation must be than the other."""

LARGER_OF_TWO: Final = (
    "which is {more}, {one} or {two}", "what is {more}, {one} or {two}", "which one is {more}: {one} or {two}",
    "{one} or {two}: which is {more}", "which of the two is {more}, {one} or {two}", "is {one} or {two} {more}",
    "tell me which is {more}, {one} or {two}", "which shape is {more}, {one} or {two}",
)  # fmt: skip
MOST: Final = (
    "which shape is the {most}", "what is the {most} shape", "which is the {most} shape", "name the {most} shape",
    "what shape is the {most} one", "which shape is {most}", "the {most} shape is what", "which figure is the {most}",
    "tell me which shape is the {most}", "what is the {most} figure", "identify the {most} shape", "which is {most}",
    "what kind of shape is the {most} one",
)  # fmt: skip
MORE: Final = (
    "what is the {more} shape", "what is the {more} shape",
    "which shape is {more}", "which shape is the {more} one", "name the {more} shape",
    "what shape is the {more} one", "which is the {more} shape", "which of the two shapes is {more}",
    "the {more} shape is what", "which is {more}", "what kind of shape is the {more} one",
)  # fmt: skip
COLOUR_OF: Final = (
    "which colour is the {most} shape", "what colour is the {most} shape", "what is the colour of the {most} shape",
    "name the colour of the {most} shape", "what colour is the {most} one", "which colour does the {most} shape have",
    "the {most} shape is what colour", "tell me the colour of the {most} shape", "what's the colour of the {most} one",
)  # fmt: skip
IS_MORE: Final = (
    "is {one} {more} than {two}", "is {one} {more} than {two}, yes or no", "tell me if {one} is {more} than {two}",
    "yes or no: is {one} {more} than {two}", "would you say {one} is {more} than {two}", "{one} is {more} than {two}",
)  # fmt: skip
_MORE: Final = {True: ("larger", "larger", "bigger"), False: ("smaller",)}
_MOST: Final = {True: ("largest", "largest", "biggest"), False: ("smallest",)}

WHERE: Final = (
    "where is {one} relative to {two}", "where is {one} compared to {two}", "where is {one} with respect to {two}",
    "where is {one} as seen from {two}", "relative to {two}, where is {one}",
    "where does {one} stand relative to {two}",
    "on which side of {two} is {one}", "which side of {two} is {one} on",
    "what is the position of {one} relative to {two}",
    "in which direction from {two} is {one}", "is {one} left of, right of, above or below {two}",
    "where is {one} in relation to {two}", "how is {one} placed relative to {two}", "where is {one} from {two}",
)  # fmt: skip
ACROSS: Final = (
    "is {one} left or right of {two}", "is {one} to the left or to the right of {two}",
    "is {one} on the left or the right of {two}", "left or right: where is {one} relative to {two}",
    "does {one} stand left or right of {two}", "is {one} right or left of {two}",
    "tell me if {one} is left or right of {two}",
)  # fmt: skip
UPRIGHT: Final = (
    "is {one} above or below {two}", "above or below: where is {one} relative to {two}",
    "is {one} below or above {two}",
    "does {one} stand above or below {two}", "is {one} over or under {two}, above or below",
    "tell me if {one} is above or below {two}", "is {one} higher or lower than {two}, above or below",
)  # fmt: skip
IS_THERE: Final = (
    "is {one} {side} {two}", "is {one} {side} {two}, yes or no", "yes or no: is {one} {side} {two}",
    "does {one} stand {side} {two}", "tell me if {one} is {side} {two}", "would you say {one} is {side} {two}",
)  # fmt: skip
WHAT_IS: Final = (
    "what is {side} {two}", "what is {side} {two}", "what is {side} {two}", "which shape is {side} {two}",
    "what shape is {side} {two}", "what do you see {side} {two}",
    "name the shape {side} {two}", "what stands {side} {two}", "which figure is {side} {two}", "what's {side} {two}",
)  # fmt: skip
SIDES: Final = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
}
_ACROSS: Final = ("left", "right")
OPPOSITE: Final = {"left": "right", "right": "left", "above": "below", "below": "above"}


def extent(thing: Thing) -> float:
    """The longer side of the box around a thing, in target pixels."""
    xs, ys = zip(*thing.outline, strict=True)
    return max(max(xs) - min(xs), max(ys) - min(ys)) * thing.radius_px


def relation(one: Thing, two: Thing, scene: Scene) -> str | None:
    """Where `one` stands as seen from `two`, or None where neither axis is clear."""
    dx, dy = (one.x - two.x) * scene.width, (one.y - two.y) * scene.height
    if max(abs(dx), abs(dy)) < CLEARER_BY * min(abs(dx), abs(dy)):
        return None
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "below" if dy > 0 else "above"


def _named_pair(rng: Rng, scene: Scene) -> tuple[tuple[Thing, str], tuple[Thing, str]] | None:
    """Two things with names that fit nothing else."""
    if len(scene.things) < 2:
        return None
    first, second = (scene.things[i] for i in rng.permutation(len(scene.things))[:2])
    named = []
    for thing in (first, second):
        refs = refs_of(rng, scene, thing)
        able = [refs[way] for way in ("shape", "both", "colour") if way in refs]
        if not able:
            return None
        named.append((thing, able[0] if rng.random() < 0.55 else pick(rng, able)))
    return named[0], named[1]


def _as_written(text: str, answer: str) -> str:
    """An answer that repeats the question spells as it does."""
    return answer.replace("grey", "gray") if "gray" in text.lower() else answer


def ask_larger(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    """About the largest or smallest of all, or the larger or smaller of two."""
    if len(scene.things) < 2:
        return None
    larger = bool(rng.random() < 0.55)
    draw = rng.random()
    if draw < 0.55:
        return _compare(rng, scene, scope, larger, yes_no=draw < 0.28)
    ranked = sorted(scene.things, key=extent, reverse=larger)
    winner, second = ranked[0], ranked[1]
    if max(extent(winner), extent(second)) < LARGER_BY * min(extent(winner), extent(second)):
        return None
    words = _MORE if len(scene.things) == 2 and rng.random() < 0.6 else _MOST
    word = pick(rng, words[larger])
    if draw < 0.75:
        return Question("larger", dress(rng, pick(rng, COLOUR_OF), scope, most=word), winner.colour)
    template = pick(rng, MORE if words is _MORE else MOST)
    return Question("larger", dress(rng, template, scope, more=word, most=word), winner.shape)


def _compare(rng: Rng, scene: Scene, scope: Scope, larger: bool, *, yes_no: bool) -> Question | None:
    pair = _named_pair(rng, scene)
    if pair is None:
        return None
    (one, one_name), (two, two_name) = pair
    if max(extent(one), extent(two)) < LARGER_BY * min(extent(one), extent(two)):
        return None
    right = (extent(one) > extent(two)) == larger
    template = pick(rng, IS_MORE if yes_no else LARGER_OF_TWO)
    text = dress(rng, template, scope, one=one_name, two=two_name, more=pick(rng, _MORE[larger]))
    answer = ("yes" if right else "no") if yes_no else _as_written(text, one_name if right else two_name)
    return Question("larger", text, answer)


def ask_relation(rng: Rng, scene: Scene, scope: Scope) -> Question | None:
    """Left, right, above or below of two shapes with a clear axis."""
    for _ in range(4):
        pair = _named_pair(rng, scene)
        if pair and (side := relation(pair[0][0], pair[1][0], scene)):
            break
    else:
        return None
    (one, one_name), (_, two_name) = pair
    draw = rng.random()
    names = {"one": one_name, "two": two_name}
    if draw < 0.3:
        return Question("relation", dress(rng, pick(rng, WHERE), scope, **names), side)
    if draw < 0.5:
        template = pick(rng, ACROSS if side in _ACROSS else UPRIGHT)
        return Question("relation", dress(rng, template, scope, **names), side)
    if draw < 0.75:
        asked = side if rng.random() < 0.5 else OPPOSITE[side]
        text = dress(rng, pick(rng, IS_THERE), scope, **names, side=pick(rng, SIDES[asked]))
        return Question("relation", text, "yes" if asked == side else "no")
    sides = [relation(thing, pair[1][0], scene) for thing in scene.things if thing is not pair[1][0]]
    if sides.count(side) > 1 or None in sides:
        return None
    text = dress(rng, pick(rng, WHAT_IS), scope, two=two_name, side=pick(rng, SIDES[side]))
    return Question("relation", text, one.shape)
