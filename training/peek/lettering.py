"""Words to read: fonts, lines of text that fit their picture, and where each of their characters stands."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import ImageFont

from training.peek.world import CHARACTERS, MIN_CONTRAST, Line, Scene, contrast, sample_background, sample_ink, shade

FONTS: Final = tuple(sorted(path for path in (Path(__file__).parent / "fonts").iterdir() if path.suffix != ".py"
                            and path.suffix in (".ttf", ".otf")))  # fmt: skip
SMALLEST_CAP_PX: Final = 11.0
"""A little below what must be read."""

_WORDS: Final = """
A I AN AT BE BY DO GO HE IF IN IS IT ME MY NO OF OK ON OR SO TO UP US WE ADD AGE AIR ALL AND ANT ANY ARE ARM ART ASK
BAD BAG BAR BAT BED BEE BIG BIT BOX BOY BUS BUY CAN CAP CAR CAT COW CUP CUT DAY DOG DRY EAR EAT EGG END EYE FAR FAT
FEW FIG FIX FLY FOX FUN GAS GET GUM GUN HAT HEN HER HIM HIS HOT HOW ICE INK JAM JAR JET JOB JOY KEY KID LAW LEG LET
LID LIP LOG LOW MAN MAP MEN MIX MUD NET NEW NOT NOW NUT OAK OIL OLD ONE OUR OUT OWL OWN PAN PEN PET PIE PIG PIN POT
PUT RAT RED ROW RUN SAD SEA SEE SET SHE SIT SIX SKY SON SUN TAX TEA TEN THE TIP TOE TOP TOY TRY TWO USE VAN WAR WAY
WEB WET WHO WHY WIN YES YET YOU ZIP ZOO ABLE AREA AWAY BABY BACK BALL BANK BASE BEAR BIRD BLUE BOAT BODY BOOK BUSY
CAKE CALL CARD CITY CLUB COAT COLD COOK COOL DARK DATA DATE DEEP DESK DOOR DOWN DUCK EAST EASY EXIT FACE FARM FAST
FILE FILM FIRE FISH FIVE FLAG FOOD FOUR FREE FROG GAME GATE GIFT GIRL GOLD GOOD GREY HAND HARD HEAD HELP HERE HIGH
HILL HOME HOPE HOUR IDEA IRON JAZZ JULY JUMP JUNE KEEP KING KITE KIWI LAKE LAMP LAND LEFT LION LOVE MAIL MILK MIND
MOON MUSIC NAME NEWS NEXT NINE NOTE OPEN OVER PAGE PARK PATH PINK PLAN PLAY POST PUSH PULL QUIZ RAIN READ RICE RING
ROAD ROCK ROOM ROSE SALE SALT SAVE SHIP SHOP SHOW SLOW SNOW SOAP SOFT SONG SOUP STAR STOP TAXI TEAM TIME TREE TRUE
VIEW WALK WALL WARM WATER WEST WIND WOOD WORK YEAR ZERO ZONE APPLE BEACH BLACK BREAD BROWN CHAIR CLOCK CLOUD DANCE
DREAM EARTH EIGHT ENTER FIELD FIRST FLOOR FRUIT GLASS GRASS GREEN GREAT HAPPY HEART HELLO HORSE HOTEL HOUSE JUICE
KNIFE LARGE LEMON LIGHT LUCKY MAGIC METAL MONEY MOUSE NIGHT NORTH OCEAN ORANGE PAPER PARTY PEACE PHONE PIANO PILOT
PIZZA PLANT QUEEN QUICK QUIET RADIO RIGHT RIVER ROBOT ROUND SEVEN SHEEP SMALL SMILE SOUTH SPACE SUGAR TABLE THREE
TIGER TODAY TRAIN TRUCK VIDEO VOICE WHITE WORLD YOUNG ZEBRA ANIMAL ANSWER BAKERY BANANA BASKET BOTTLE BRIDGE BUTTER
CAMERA CASTLE CHEESE CHURCH CIRCLE CLOSED COFFEE DOCTOR DRAGON FAMILY FLOWER FOREST FRIEND FUTURE GARDEN GUITAR HAMMER
ISLAND JACKET KITTEN LETTER MARKET MEMORY MIRROR MONKEY NUMBER OFFICE OXYGEN PENCIL PLANET POCKET POLICE RABBIT ROCKET
SCHOOL SILVER SPRING SQUARE STREET SUMMER SUNDAY TICKET TOMATO WINDOW WINTER YELLOW BALLOON BICYCLE CAPTAIN CHICKEN
COUNTRY DIAMOND DOLPHIN FREEDOM JANUARY KITCHEN LIBRARY MACHINE MONSTER MORNING MYSTERY OCTOBER PACKAGE PERFECT
PICTURE PRINTER PUMPKIN RAINBOW STATION TRAFFIC VICTORY WELCOME WEATHER AIRPLANE BASEBALL BIRTHDAY COMPUTER DAUGHTER
DELIVERY DISCOUNT ELEPHANT FEBRUARY HOSPITAL LANGUAGE MAGAZINE MOUNTAIN NOVEMBER PAINTING SANDWICH SHOULDER SQUIRREL
STANDARD SUNSHINE THOUSAND TOMORROW TRIANGLE VACATION
""".split()  # noqa: SIM905 - a wall of words reads better than a wall of quotes
_LENGTHS: Final = (0.06, 0.08, 0.14, 0.17, 0.18, 0.17, 0.1, 0.1)


class Box(NamedTuple):
    """A character and what it covers, in target pixels."""

    character: str
    left: float
    top: float
    right: float
    bottom: float


@lru_cache(4096)
def font_of(font: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS[font], size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _measures(font: int) -> tuple[float, dict[str, float]]:
    """Height of a capital and the advance of each character, for a size of one pixel."""
    large = font_of(font, 200)
    return -large.getbbox("H", anchor="ls")[1] / 200, {c: large.getlength(c) / 200 for c in CHARACTERS + " "}


def em_px(line: Line) -> float:
    """The font size at which capitals of `line` are `cap_px` high."""
    return line.cap_px / _measures(line.font)[0]


def width_of(text: str, font: int, cap_px: float) -> float:
    cap, advances = _measures(font)
    return sum(advances[c] for c in text) * cap_px / cap


def boxes(line: Line) -> list[Box]:
    """Where the characters of `line` stand, ends of a tilted line moved up or down with it."""
    cap, advances = _measures(line.font)
    x = -width_of(line.text, line.font, line.cap_px) / 2
    cosine, sine = math.cos(math.radians(line.tilt)), math.sin(math.radians(line.tilt))
    found = []
    for character in line.text:
        wide = advances[character] * line.cap_px / cap
        middle = x + wide / 2
        centre_x, centre_y = line.x + middle * cosine, line.y - middle * sine
        half = line.cap_px / 2
        found.append(Box(character, centre_x - wide / 2, centre_y - half, centre_x + wide / 2, centre_y + half))
        x += wide
    return found


def sample_word(rng: np.random.Generator, length: int | None = None) -> str:
    """One to eight characters: a word, a random string, a number, or a word with digits."""
    draw = rng.random()
    length = length or 1 + int(rng.choice(8, p=_LENGTHS))
    if draw < 0.3:
        fitting = [word for word in _WORDS if len(word) == length]
        return fitting[int(rng.integers(len(fitting)))]
    if draw < 0.42:
        return "".join(CHARACTERS[26 + i] for i in rng.integers(0, 10, length))
    if draw < 0.52 and length > 2:
        digits = int(rng.integers(1, length - 1))
        fitting = [word for word in _WORDS if len(word) == length - digits]
        if fitting:
            return fitting[int(rng.integers(len(fitting)))] + "".join(str(d) for d in rng.integers(0, 10, digits))
    pool = CHARACTERS[:26] if draw < 0.7 else CHARACTERS
    return "".join(pool[i] for i in rng.integers(0, len(pool), length))


def _paper(rng: np.random.Generator, rows: int, columns: int) -> tuple[Scene, tuple[int, int, int]]:
    """An empty scene and an ink to write on it with; black on white and white on black more often than others."""
    draw = rng.random()
    if draw < 0.35:
        paper, ink = ("white", "black") if draw < 0.27 else ("black", "white")
        return Scene(rows, columns, paper, shade(paper, rng)), shade(ink, rng)
    background, rgb = sample_background(rng)
    while True:
        ink_rgb = sample_ink(rng, rgb)[1]
        if contrast(ink_rgb, rgb) >= MIN_CONTRAST * 1.3:
            return Scene(rows, columns, background, rgb), ink_rgb


def _largest_cap(text: str, font: int, width: float, height: float) -> float:
    """The height of capitals with which `text` just fits."""
    return min(width / width_of(text, font, 1.0), height)


def sample_text(rng: np.random.Generator, rows: int, columns: int, count: int | None = None) -> Scene:
    """One word, or two on two lines, anywhere in the picture and in any size down to what is legible."""
    scene, ink = _paper(rng, rows, columns)
    count = count or 1 + int(rng.random() < 0.33)
    font = int(rng.integers(len(FONTS)))
    width, height = scene.width * 0.94, scene.height * (0.86 if count == 1 else 0.36)
    words = [sample_word(rng) for _ in range(count)]
    while (most := min(_largest_cap(word, font, width, height) for word in words)) < SMALLEST_CAP_PX:
        words = [sample_word(rng, max(1, len(word) - 1)) for word in words]
    least = min(SMALLEST_CAP_PX, most)
    cap = math.exp(rng.uniform(math.log(least), math.log(most)))
    if rng.random() < 0.3:  # people fill their picture
        cap = max(least, most * rng.uniform(0.7, 1.0))
    tilt = float(rng.uniform(-8, 8)) if count == 1 and rng.random() < 0.25 else 0.0
    widths = [width_of(word, font, cap) for word in words]
    gap = cap * rng.uniform(1.5, 2.4)
    tall = cap + (count - 1) * gap
    tilted = abs(math.sin(math.radians(tilt))) * max(widths)
    slack_x = max(0.0, scene.width * 0.95 - max(widths)) / 2
    slack_y = max(0.0, scene.height * 0.96 - tall - tilted) / 2
    if count == 2 and slack_y == 0:
        gap = scene.height * 0.96 - cap
    centred = rng.random() < 0.35
    x = scene.width / 2 + (0.0 if centred else rng.uniform(-slack_x, slack_x))
    y = scene.height / 2 + (0.0 if centred else rng.uniform(-slack_y, slack_y)) - gap * (count - 1) / 2
    aligned = rng.random() < 0.4  # at the left edge, as writing is; else centred on each other
    lines = [
        Line(word, font, cap, ink, x - (max(widths) - wide) / 2 * aligned, y + number * gap, tilt)
        for number, (word, wide) in enumerate(zip(words, widths, strict=True))
    ]
    return replace(scene, lines=tuple(lines))


def sample_characters(rng: np.random.Generator, rows: int, columns: int) -> Scene:
    """A shifted grid full of single characters, or (a third) free lines of random ones: many dense labels."""
    scene, ink = _paper(rng, rows, columns)
    font = int(rng.integers(len(FONTS)))
    if rng.random() < 0.35:
        return replace(scene, lines=tuple(_free_lines(rng, scene, font, ink)))
    step = float(rng.choice((22, 28, 34, 44, 60, 90)))
    several = rng.random() < 0.4
    lines = []
    for top in np.arange(rng.uniform(-step, 0), scene.height - step * 0.8, step):
        for left in np.arange(rng.uniform(-step, 0), scene.width - step * 0.8, step):
            if left < 0 or top < 0 or rng.random() < 0.12:
                continue
            cap = step * rng.uniform(0.5, 0.8)
            character = CHARACTERS[rng.integers(36)]
            rgb = sample_ink(rng, scene.rgb)[1] if several else ink
            font = int(rng.integers(len(FONTS))) if several else font
            slack = (step - cap) / 2
            x, y = left + step / 2 + rng.uniform(-slack, slack) * 0.5, top + step / 2 + rng.uniform(-slack, slack)
            lines.append(Line(character, font, cap, rgb, x, y))
    return replace(scene, lines=tuple(lines))


def _free_lines(rng: np.random.Generator, scene: Scene, font: int, ink: tuple[int, int, int]) -> list[Line]:
    lines = []
    y = rng.uniform(8, 24)
    while True:
        cap = float(rng.uniform(SMALLEST_CAP_PX, 26))
        if y + cap > scene.height:
            return lines
        text = ""
        while width_of(text + "W", font, cap) < scene.width * 0.94 and len(text) < 14:
            text += CHARACTERS[rng.integers(36)]
        if text:
            slack = (scene.width - width_of(text, font, cap)) / 2
            lines.append(Line(text, font, cap, ink, scene.width / 2 + rng.uniform(-slack, slack), y + cap / 2))
        y += cap * rng.uniform(1.4, 2.5)
