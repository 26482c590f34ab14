"""What it sees, told from the pixels that reached it. Pure."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt

from sightline.types import EngineRequest, Pixels

COLOURS = {
    "black": (0, 0, 0), "white": (255, 255, 255), "gray": (128, 128, 128), "red": (255, 0, 0),
    "green": (0, 160, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0), "orange": (255, 140, 0),
    "purple": (128, 0, 160), "pink": (255, 150, 190), "brown": (130, 75, 30), "cyan": (0, 220, 220),
}  # fmt: skip
"""Names of colours, and the sRGB values they are nearest to."""


def describe(request: EngineRequest, said: str) -> str:
    pictures = [f"{i.width}x{i.height} {_colours(i.pixels)}" for i in request.images]
    if request.response_format.kind == "json_object":
        return json.dumps({"pictures": pictures, "you_said": said}, ensure_ascii=False)
    counted = {0: "no pictures", 1: "1 picture: "}.get(len(pictures), f"{len(pictures)} pictures: ")
    return f"I see {counted}{'; '.join(pictures)}. You said: {said}"


def seen(request: EngineRequest) -> list[str]:
    """The main colours of the pictures, in order."""
    return [_most(_named(image.pixels)) for image in request.images]


_QUARTERS = {"top left": (0, 0), "top right": (0, 1), "bottom left": (1, 0), "bottom right": (1, 1)}


def _colours(pixels: Pixels) -> str:
    """`mostly red (top left white, bottom right blue)`: the most frequent named colour, and where it is not."""
    names = _named(pixels)
    rows, columns = max(1, names.shape[0] // 2), max(1, names.shape[1] // 2)
    whole = _most(names)
    quarters = {
        where: _most(names[-rows:, :] if down else names[:rows, :], right, columns)
        for where, (down, right) in _QUARTERS.items()
    }
    others = ", ".join(f"{where} {colour}" for where, colour in quarters.items() if colour != whole)
    return f"mostly {whole}" + (f" ({others})" if others else "")


def _named(pixels: Pixels, side: int = 64) -> npt.NDArray[np.intp]:
    """The index in `COLOURS` of the nearest colour, on a grid of at most about `side` x `side` of the pixels."""
    steps = [max(1, size // side) for size in pixels.shape[:2]]
    grid = pixels[:: steps[0], :: steps[1]].astype(np.int32)
    distances = ((grid[:, :, None, :] - np.array(list(COLOURS.values()), np.int32)) ** 2).sum(axis=-1)
    nearest: npt.NDArray[np.intp] = distances.argmin(axis=-1)
    return nearest


def _most(names: npt.NDArray[np.intp], right: int = 0, columns: int | None = None) -> str:
    part = names if columns is None else names[:, -columns:] if right else names[:, :columns]
    return list(COLOURS)[int(np.bincount(part.ravel()).argmax())]
