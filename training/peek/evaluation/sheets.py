"""A run as pictures: failed cases to look at, accuracy by task."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from training.peek.evaluation.client import Result
from training.peek.evaluation.drawing import Scene
from training.peek.evaluation.files import Picture, upright
from training.peek.evaluation.report import Score, grouped

_INK, _FAINT, _GOOD, _BAD, _PAPER = "#1b1f24", "#8a929b", "#2f7d4f", "#b3362b", "#ffffff"
_CARD_WIDTH, _PICTURE_HEIGHT, _LINE, _LINES = 300, 170, 15, 11
_CARD_HEIGHT = _PICTURE_HEIGHT + _LINE * _LINES + 10


def failures_sheet(results: Sequence[Result], *, columns: int = 6, most: int = 90) -> Image.Image:
    """The first failures of each task in turn, `most` in all: pictures, conversation, what was said, what is true."""
    by_task = grouped([r for r in results if not r.right], lambda r: r.case.task)
    longest = max((len(own) for own in by_task.values()), default=0)
    turns = [own[i] for i in range(longest) for own in by_task.values() if i < len(own)][:most]
    order = {task: place for place, task in enumerate(by_task)}
    return contact_sheet(sorted(turns, key=lambda r: order[r.case.task]), columns=columns)


def contact_sheet(results: Sequence[Result], *, columns: int = 6) -> Image.Image:
    """The cases as a grid of cards."""
    columns = min(columns, max(1, len(results)))
    rows = max(1, math.ceil(len(results) / columns))
    sheet = Image.new("RGB", (columns * _CARD_WIDTH, rows * _CARD_HEIGHT), _PAPER)
    for i, result in enumerate(results):
        _card(sheet, i % columns * _CARD_WIDTH, i // columns * _CARD_HEIGHT, result)
    if not results:
        ImageDraw.Draw(sheet).text((6, 6), "no failures", fill=_GOOD, font=ImageFont.load_default(12))
    return sheet


def _card(sheet: Image.Image, left: int, top: int, result: Result) -> None:
    pen, font, case = ImageDraw.Draw(sheet), ImageFont.load_default(12), result.case
    pen.rectangle((left, top, left + _CARD_WIDTH - 1, top + _CARD_HEIGHT - 1), outline="#e3e6e9")
    share = (_CARD_WIDTH - 12) // max(1, len(case.pictures)) - 4
    for j, picture in enumerate(case.pictures):
        thumbnail = upright(picture)
        thumbnail.thumbnail((share, _PICTURE_HEIGHT - 12))
        x, y = left + 6 + j * (share + 6), top + 6
        sheet.paste(thumbnail, (x, y))
        pen.rectangle((x - 1, y - 1, x + thumbnail.width, y + thumbnail.height), outline=_FAINT)
    said = result.error or " ".join(result.answer.split()) or "(nothing)"
    lines = [(f"{turn.text}  [{turn.answer}]", _FAINT) for turn in case.turns[:-1]]
    lines += [(case.question, _INK), (f"said: {said}", _GOOD if result.right else _BAD)]
    lines += [(f"true: {case.truth}", _GOOD), (f"{case.id}  {'; '.join(map(_file, case.pictures))}", _FAINT)]
    wrapped = [(part, ink) for text, ink in lines for part in _wrapped(text, pen, font)]
    for k, (text, ink) in enumerate(wrapped[:_LINES]):
        pen.text((left + 6, top + _PICTURE_HEIGHT + 2 + _LINE * k), text, fill=ink, font=font)


def _file(picture: Picture) -> str:
    """A picture's size and what its file was like, in a few words."""
    if not isinstance(picture, Scene):
        return picture.file.name
    finish = picture.finish
    words = [f"{picture.width}x{picture.height}", finish.encoding]
    words += [f"flag {finish.orientation}"] * (finish.orientation != 1)
    words += ["blur"] * bool(finish.blur) + ["noise"] * bool(finish.noise)
    return " ".join(words)


def _wrapped(text: str, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """The text in lines as wide as a card, three at most; the last one ends in dots where there is more."""
    lines = [""]
    for word in text.split():
        wider = f"{lines[-1]} {word}".strip()
        if pen.textlength(wider, font) <= _CARD_WIDTH - 14 or not lines[-1]:
            lines[-1] = wider
        else:
            lines.append(word)
    return lines if len(lines) <= 3 else [*lines[:2], f"{lines[2]} ..."]


def accuracy_plot(rows: Sequence[Score]) -> Image.Image:
    """A bar for each task, its 95 % interval as a whisker, its floor as a tick."""
    left, scale, line, top = 140, 5, 30, 40
    plot = Image.new("RGB", (left + 100 * scale + 90, top + line * len(rows) + 30), _PAPER)
    pen, font = ImageDraw.Draw(plot), ImageFont.load_default(13)
    pen.text((left, 12), "right answers, %: bar with 95 % interval; tick = floor", fill=_INK, font=font)
    for percent in range(0, 101, 20):
        x = left + percent * scale
        pen.line((x, top - 4, x, top + line * len(rows)), fill="#e3e6e9")
        pen.text((x - 6, top + line * len(rows) + 6), str(percent), fill=_FAINT, font=font)
    for i, row in enumerate(rows):
        y, end = top + line * i, left + 100 * row.accuracy * scale
        pen.text((8, y + 5), row.task, fill=_INK, font=font)
        ink = "#7f8c99" if row.floor is None else _GOOD if row.passed else _BAD
        pen.rectangle((left, y + 4, end, y + 20), fill=ink)
        low, high = (left + 100 * bound * scale for bound in row.interval)
        pen.line((low, y + 12, high, y + 12), fill=_INK, width=2)
        if row.floor is not None:
            pen.line((left + 100 * row.floor * scale, y, left + 100 * row.floor * scale, y + 24), fill=_INK, width=3)
        pen.text((left + 100 * scale + 12, y + 5), f"{100 * row.accuracy:.1f}", fill=_INK, font=font)
    return plot
