"""Writes what transformers' own processors make of our sizes and pictures.

    python -m tests.images.make_reference      (with tests/engines/reference/requirements.txt installed)

`smart_resize.json`: 200 sizes under several budgets. `pixels.npz`: the pictures of `CASES`, resized by the processor
that runs on Pillow, before it rescales and normalises, as uint8 [height, width, 3]. `budgets.json`: for every
family, what its processor does with 200 sizes, and with the sizes at which we serve them.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.images.samples import noise, waves

HERE = Path(__file__).parent
BUDGETS = [(28, 56 * 56, 28 * 28 * 1280), (28, 16 * 784, 128 * 784), (28, 4 * 784, 64 * 784), (32, 65536, 16777216)]
"""(cell, min_pixels, max_pixels): Qwen2-VL's own, peek's, a small one, Qwen3-VL's."""

CASES: dict[str, tuple[Image.Image, tuple[int, int, int]]] = {
    "shrunk": (Image.fromarray(waves(640, 427)), (28, 3136, 12 * 784)),
    "shrunk-noise": (Image.fromarray(noise(301, 222, seed=3)), (28, 3136, 9 * 784)),
    "tall": (Image.fromarray(waves(90, 700, seed=5)), (28, 3136, 12 * 784)),
    "grown": (Image.fromarray(waves(41, 30, seed=8)), (28, 12 * 784, 20 * 784)),
    "as-it-is": (Image.fromarray(noise(84, 56, seed=4)), (28, 784, 20 * 784)),
    "grey": (Image.fromarray(waves(200, 150, seed=2)[..., 0]), (28, 3136, 9 * 784)),
    "palette": (Image.fromarray(waves(200, 150, seed=6)).quantize(64), (28, 3136, 9 * 784)),
}
"""Pictures, and the budgets they are served under."""


def sizes() -> list[tuple[int, int]]:
    """200 sizes (width, height): corners by hand, the rest over four orders of magnitude."""
    corners = [(1, 1), (2, 2), (14, 14), (42, 42), (70, 42), (98, 14), (28, 28), (2, 400), (2, 402), (400, 2)]
    corners += [(10, 2000), (2010, 10), (16384, 16384), (16384, 82), (81, 16384), (4032, 3024), (3024, 4032), (1, 201)]
    rng = random.Random(20261121)
    while len(corners) < 200:
        width = round(2 ** rng.uniform(1, 14))
        corners.append((width, max(1, round(width * 2 ** rng.gauss(0, 1.5)))))
    return corners


def budget_sizes() -> list[tuple[int, int]]:
    """200 sizes (width, height) up to 40 megapixels: corners of the families' rules by hand, the rest at random.

    No side is under 4 pixels: of 1 or 3 rows, transformers believes that they are channels.
    """
    corners = [(4, 4), (4, 800), (800, 4), (336, 336), (337, 337), (384, 384), (672, 336), (1008, 336), (335, 900)]
    corners += [(448, 448), (896, 448), (448, 897), (900, 1200), (1344, 1344), (1267, 1267), (634, 634), (6000, 30)]
    corners += [(896, 896), (1075, 896), (1792, 896), (3584, 896), (5000, 900), (255, 1000), (306, 256), (512, 256)]
    corners += [
        (1024, 1024),
        (1025, 1024),
        (1540, 1540),
        (1541, 1000),
        (364, 364),
        (365, 364),
        (1456, 1456),
        (4096, 21),
    ]
    corners += [
        (512, 512),
        (2048, 1365),
        (2048, 2048),
        (4032, 3024),
        (3024, 4032),
        (1920, 1080),
        (1080, 1920),
        (40, 8000),
    ]
    rng = random.Random(20261122)
    while len(corners) < 200:
        area, ratio = 2 ** rng.uniform(8, 25), 2 ** rng.gauss(0, 1.2)
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if min(width, height) >= 4 and max(width, height) <= 200 * min(width, height):
            corners.append((width, height))
    return corners


def make_smart_resize() -> list[list[Any]]:
    """[width, height, cell, min_pixels, max_pixels, served width and height, or null where it is refused]."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    rows: list[list[Any]] = []
    for index, (width, height) in enumerate(sizes()):
        cell, low, high = BUDGETS[index % len(BUDGETS)]
        try:
            served = smart_resize(height, width, factor=cell, min_pixels=low, max_pixels=high)
        except ValueError:
            rows.append([width, height, cell, low, high, None])
        else:
            rows.append([width, height, cell, low, high, [served[1], served[0]]])
    return rows


def make_budgets() -> dict[str, dict[str, Any]]:
    """By family: our rule, and rows [width, height, first, tokens, served, tokens served].

    `first` is the size [width, height] to which the processor first resizes the picture, or null where it makes nothing
    of it; both counts of tokens are the processor's, `served` is ours.
    """
    from tests.images.reference_processors import families

    made = {}
    chosen = budget_sizes()
    for name, family in families().items():
        tokens = family.tokens(chosen)
        served = [family.budget.serve(*size)[:2] for size in chosen]
        served_tokens = family.tokens(served)
        rows = []
        for size, cost, ours, served_cost in zip(chosen, tokens, served, served_tokens, strict=True):
            first = family.first_size(family.processor, *size)
            rows.append([*size, list(first) if all(first) else None, cost, list(ours), served_cost])
        made[name] = {"budget": msgspec.to_builtins(family.budget), "rows": rows}
    return made


def make_pixels() -> dict[str, npt.NDArray[np.uint8]]:
    """By case."""
    return {name: resize(image, *budget) for name, (image, budget) in CASES.items()}


def resize(image: Image.Image, cell: int, low: int, high: int) -> npt.NDArray[np.uint8]:
    """A picture as the processor resizes it: its patches put together again."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    merge = 2
    patch = cell // merge
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": low, "longest_edge": high},
        patch_size=patch,
        merge_size=merge,
        do_rescale=False,
        do_normalize=False,
    )
    features = processor(images=[image], return_tensors="np")
    _, rows, columns = features["image_grid_thw"][0]
    patches = features["pixel_values"].reshape(
        rows // merge, columns // merge, merge, merge, 3, processor.temporal_patch_size, patch, patch
    )[:, :, :, :, :, 0]
    pixels = patches.transpose(0, 2, 5, 1, 3, 6, 4).reshape(rows * patch, columns * patch, 3)
    assert np.array_equal(pixels, pixels.round())
    return pixels.astype(np.uint8)


def to_json(budgets: dict[str, dict[str, Any]]) -> str:
    """A row a line, so that a change can be read."""
    parts = []
    for name, table in budgets.items():
        rows = ",\n".join(json.dumps(row) for row in table["rows"])
        parts.append(f'"{name}": {{"budget": {json.dumps(table["budget"])}, "rows": [\n{rows}\n]}}')
    return "{" + ",\n".join(parts) + "}\n"


def main() -> None:
    rows = ",\n".join(json.dumps(row) for row in make_smart_resize())
    (HERE / "smart_resize.json").write_text(f"[\n{rows}\n]\n", encoding="utf-8")
    (HERE / "budgets.json").write_text(to_json(make_budgets()), encoding="utf-8")
    np.savez_compressed(HERE / "pixels.npz", allow_pickle=False, **make_pixels())


if __name__ == "__main__":
    main()
