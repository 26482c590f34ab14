"""The reference itself: what make_reference.py wrote, made anew, and full-size pictures against its processor.

Needs transformers (tests/engines/reference/requirements.txt); run by `make test-engines`.
"""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sightline.images.budget import CellBudget
from tests.images.make_reference import BUDGETS, make_pixels, make_smart_resize, resize
from tests.images.samples import decoded, encode, noise, waves
from tests.images.test_budget import at_most_200_to_1

pytest.importorskip("transformers", reason="the reference is not installed; `make test-engines` installs it")
pytestmark = pytest.mark.engine_reference

HERE = Path(__file__).parent


def test_the_committed_sizes_are_the_reference_s() -> None:
    assert make_smart_resize() == json.loads((HERE / "smart_resize.json").read_text(encoding="utf-8"))


def test_the_committed_pixels_are_the_reference_s() -> None:
    with np.load(HERE / "pixels.npz") as committed:
        made = make_pixels()
        assert made.keys() == set(committed)
        for name, pixels in made.items():
            assert np.array_equal(pixels, committed[name]), name


def test_ten_thousand_sizes() -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    rng = random.Random(1)
    for _ in range(10_000):
        width, height = rng.randint(1, 5000), rng.randint(1, 5000)
        cell, low, high = rng.choice(BUDGETS)
        if max(width, height) <= 200 * min(width, height):
            expected = smart_resize(height, width, factor=cell, min_pixels=low, max_pixels=high)
            served = CellBudget(cell, low, high).serve(width, height)[:2]
            assert served == at_most_200_to_1(*expected[::-1]), (width, height)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_pictures_of_every_size(format: str) -> None:
    """At most 1 level of 255 apart on 99.9 % of values, in each of 40 pictures up to 4 megapixels."""
    rng = random.Random(format)
    worst = differ = values = 0.0
    for index in range(40):
        width, height = round(2 ** rng.uniform(4, 11)), round(2 ** rng.uniform(4, 11))
        file = encode((waves if index % 4 else noise)(width, height, seed=index), format)
        budget = BUDGETS[index % 3]
        with Image.open(io.BytesIO(file)) as opened:
            expected = resize(opened.convert("RGB"), *budget)
        _, seen = decoded(file, CellBudget(*budget))
        assert seen.shape == expected.shape
        apart = np.abs(seen.astype(int) - expected)
        worst = max(worst, float((apart > 1).mean()))
        differ, values = differ + float((apart > 0).sum()), values + apart.size
    print(f"{format}: {values:.0f} values, {differ / values:.4%} differ; worst picture {worst:.4%} by more than 1")
    assert worst <= 0.001
