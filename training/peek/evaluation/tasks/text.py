"""Questions about words: capitals and digits, one line or two."""

from __future__ import annotations

import math
import string
from random import Random

from training.peek.evaluation.cases import Asked
from training.peek.evaluation.drawing import Rgb, Scene, Text
from training.peek.evaluation.lettering import FONTS, extent
from training.peek.evaluation.world import (
    COLOURS,
    Ground,
    scene_on,
    served_scale,
    shade,
    some_ground,
    some_size,
    to_lab,
)

LEGIBLE = 12.0
"""Height of capitals in pixels of what the model gets."""
LEGIBLE_IN_FILE = 9.0
"""And in pixels of the file, of which a small one has fewer: a person has to read it too."""
_MIN_LIGHTNESS = 38.0
"""Difference in CIELAB's lightness, 0..100, between letters and paper: two strong hues of one lightness dazzle."""

READ = (
    "What does it say?", "Read the text.", "What is written here?", "Which word is shown?",
    "What letters do you see?", "What does the text say?", "What is the text?", "Read the word.",
)  # fmt: skip
_BOTH = ("Read both lines.", "Read the text.", "What do the two lines say?", "What is written here?")
_FIRST = ("What is the first line?", "What is on the top line?", "What does the first line say?", "Read the top line.")
_SECOND = (
    "What is the second line?", "What is on the bottom line?", "What does the second line say?",
    "Read the bottom line.",
)  # fmt: skip

WORDS = {
    2: "UP GO NO OK IN ON AT WE SO IT HE MY",
    3: "BUS RED TEA SUN MAP KEY CAT JAM FOX ICE OWL ZOO VAN WAX HUT GYM",
    4: "EXIT STOP BLUE OPEN LAMP FISH WAVE JUMP DESK QUIZ GOLD VIEW MILK ROCK TAXI PARK",
    5: "HELLO TRAIN WORLD QUICK APPLE JOKER ZEBRA CLOUD PIANO LEMON VOICE NIGHT GHOST FLAME BRICK WATCH",
    6: "PLANET SILVER MARKET GARDEN WINDOW JACKET VELVET BRIDGE OXYGEN FROZEN PUZZLE CHURCH TICKET SUMMER",
    7: "WELCOME STATION MORNING PICTURE LIBRARY KITCHEN JOURNEY VICTORY QUARTER EXAMPLE BALCONY FACTORY",
    8: "MOUNTAIN KEYBOARD ELEPHANT HOSPITAL SANDWICH JUNCTION UMBRELLA QUESTION VACATION BIRTHDAY FOOTBALL",
}
_DISTINCT = "".join(c for c in string.ascii_uppercase + string.digits if c not in "O0I1")
"""For strings in which nothing tells a nought from the letter."""


def reading_up_to_3(index: int, rng: Random) -> Asked:
    return _read(some_text(index % 3 + 1, rng), rng)


def reading_4_to_6(index: int, rng: Random) -> Asked:
    return _read(some_text(index % 3 + 4, rng), rng)


def reading_7_to_8(index: int, rng: Random) -> Asked:
    return _read(some_text(index % 2 + 7, rng), rng)


def two_lines(index: int, rng: Random) -> Asked:
    """Both lines, the first and the second in turn; words of two to six letters."""
    first, second = (some_text(rng.randint(2, 6), rng, words=0.8) for _ in range(2))
    truth = (f"{first} {second}", first, second)[index % 3]
    return Asked(rng.choice((_BOTH, _FIRST, _SECOND)[index % 3]), truth, (sign((first, second), rng),))


def some_text(length: int, rng: Random, words: float = 0.5) -> str:
    """A word, a word with a digit, a number or a random string; `words` is the share of words."""
    if length in WORDS and rng.random() < words:
        return rng.choice(WORDS[length].split())
    kind = rng.random()
    if kind < 0.3 and length - 1 in WORDS:
        return rng.choice(WORDS[length - 1].split()) + rng.choice("23456789")
    if kind < 0.5 and length > 1:
        return rng.choice("123456789") + "".join(rng.choices(string.digits, k=length - 1))
    return "".join(rng.choices(_DISTINCT, k=length))


def sign(lines: tuple[str, ...], rng: Random, longest: int = 4000) -> Scene:
    """The lines on a plain ground in letters that the model gets at least `LEGIBLE` px high."""
    while True:
        width, height = some_size(rng, longest)
        ground = some_ground(rng, rng.choice(COLOURS), (width, height))
        ink = some_ink(ground, rng)
        cap = max(LEGIBLE_IN_FILE, LEGIBLE * math.exp(rng.uniform(0.03, 1.6)) / served_scale(width, height))
        texts = _set(lines, cap, (width, height), ink, rng) if ink else None
        if texts:
            return scene_on(ground, rng, texts=texts)


def some_ink(ground: Ground, rng: Random) -> Rgb | None:
    """A shade that is easily read on the ground; None where this try found none."""
    papers = [rgb for rgb in (ground.above, ground.below) if rgb]
    ink = shade(rng.choice(COLOURS), rng)
    return ink if all(abs(to_lab(ink)[0] - to_lab(paper)[0]) >= _MIN_LIGHTNESS for paper in papers) else None


def _set(lines: tuple[str, ...], cap: float, size: tuple[int, int], ink: Rgb, rng: Random) -> tuple[Text, ...] | None:
    """The lines below each other somewhere in the picture; None where they do not fit. `cap` is in pixels."""
    width, height = size
    font, tilt, spacing = rng.choice(FONTS), rng.choice((0.0, 0.0, rng.uniform(-4, 4))), rng.choice((0.0, 0.0, 0.12))
    extents = [extent(line, font, cap, spacing) for line in lines]
    pitch = cap * rng.uniform(1.5, 2.2)
    slant = math.sin(math.radians(abs(tilt)))
    wide = max(extents) + cap * (0.8 + slant)
    tall = pitch * (len(lines) - 1) + 1.7 * cap + slant * max(extents)
    if wide > width or tall > height:
        return None
    x, y = rng.uniform(wide / 2, width - wide / 2), rng.uniform(tall / 2, height - tall / 2)
    flush = rng.random() < 0.5  # lines begin below each other, else they are centred
    return tuple(
        Text(
            text=line,
            font=font,
            rgb=ink,
            x=round(x + (extents[i] - max(extents)) / 2 * flush, 2),
            y=round(y + pitch * (i - (len(lines) - 1) / 2), 2),
            cap_height=round(cap + 0.005, 2),
            tilt=round(tilt, 1) if len(lines) == 1 else 0.0,
            spacing=spacing,
        )
        for i, line in enumerate(lines)
    )


def _read(text: str, rng: Random) -> Asked:
    return Asked(rng.choice(READ), text, (sign((text,), rng),))
