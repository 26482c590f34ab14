"""Every family's rule against its processor itself: tokens, prompts and pixels (Qwen-VL's: test_image_reference.py).

Needs transformers (tests/engines/reference/requirements.txt); run by `make test-engines`.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from sightline.images.checkpoint import read_budget
from tests.images.samples import waves

pytest.importorskip("transformers", reason="the reference is not installed; `make test-engines` installs it")
pytestmark = pytest.mark.engine_reference

from tests.images.make_reference import make_budgets, to_json  # noqa: E402
from tests.images.reference_processors import Family, families  # noqa: E402

FAMILIES = families()
SMALL = [(7, 9), (40, 30), (300, 200), (336, 336), (500, 375), (640, 480), (900, 300), (260, 1040), (1200, 800)]
SMALL += [(1000, 700), (700, 1000), (1400, 500)]
FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


def random_sizes(seed: int, count: int, megapixels: float) -> list[tuple[int, int]]:
    """At least 8 pixels on each side, at most 40 to 1 in shape."""
    rng = random.Random(seed)
    sizes = []
    for _ in range(count):
        area, ratio = 2 ** rng.uniform(9, math.log2(megapixels * 1e6)), 2 ** rng.uniform(-3, 3)
        sizes.append((max(8, round(math.sqrt(area * ratio))), max(8, round(math.sqrt(area / ratio)))))
    return sizes


def test_the_committed_tables_are_the_reference_s() -> None:
    committed = (Path(__file__).parent / "budgets.json").read_text(encoding="utf-8")
    assert json.loads(to_json(make_budgets())) == json.loads(committed)


@pytest.mark.parametrize("name", FAMILIES)
def test_two_thousand_sizes(name: str) -> None:
    """What we count is what the processor counts, for the picture and for what is served of it."""
    family = FAMILIES[name]
    sizes = random_sizes(1, 2000, megapixels=20)
    served = [family.budget.serve(*size) for size in sizes]
    assert [tokens for *_, tokens in served] == family.tokens(sizes)
    assert [tokens for *_, tokens in served] == family.tokens([(width, height) for width, height, _ in served])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("asked", [{"detail": "low"}, {"max_pixels": 300_000}], ids=["low", "max_pixels"])
def test_narrowed_sizes(name: str, asked: dict[str, object]) -> None:
    """The processor knows nothing of what was asked: what is served must make it count what we said."""
    family = FAMILIES[name]
    narrowed = family.budget.narrowed(**asked)
    served = [narrowed.serve(*size) for size in random_sizes(2, 500, megapixels=20)]
    assert [tokens for *_, tokens in served] == family.tokens([(width, height) for width, height, _ in served])
    assert max(tokens for *_, tokens in served) <= narrowed.largest_tokens


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts(name: str) -> None:
    """The tokens in the `input_ids` that the processor makes of a picture, and of the picture as served."""
    family = FAMILIES[name]
    for width, height in SMALL:
        served_width, served_height, tokens = family.budget.serve(width, height)
        assert family.expanded(Image.new("RGB", (width, height))) == tokens, (width, height)
        assert family.expanded(Image.new("RGB", (served_width, served_height))) == tokens, (width, height)


@pytest.mark.parametrize("name", FAMILIES)
def test_budgets_are_read_from_what_the_processor_saves(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    saved = family.processor.to_dict()
    saved["image_processor"] = family.processor.image_processor.to_dict()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family.model_type.replace("pixtral", "mistral3")}))
    (tmp_path / "processor_config.json").write_text(json.dumps(saved, default=dict))
    assert read_budget(tmp_path, pan_and_scan=name == "gemma3-pan-and-scan") == family.budget


def seen(family: Family, size: tuple[int, int]) -> tuple[list[npt.NDArray[np.uint8]], list[npt.NDArray[np.uint8]]]:
    """The views that the model gets of a picture of this size, and of the picture as served."""
    picture = Image.fromarray(waves(*size, seed=sum(size)))
    served = family.budget.serve(*size)[:2]
    assert served != size, "this picture is not shrunk"
    smaller = picture.resize(served, FILTERS[family.budget.resample])
    views, again = family.pixels(picture), family.pixels(smaller)
    assert [view.shape for view in views] == [view.shape for view in again]
    return views, again


LARGE = [(3000, 2250), (1900, 2700), (3100, 1100)]


@pytest.mark.parametrize("size", LARGE, ids=str)
@pytest.mark.parametrize(
    "name", ["pixtral", "mistral3", "pixtral-odd", "llava", "gemma3", "idefics3", "smolvlm", "idefics3-one"]
)
def test_every_pixel_is_the_same(name: str, size: tuple[int, int]) -> None:
    """The processor's first resize has become the identity, and all that follows is the same."""
    for view, again in zip(*seen(FAMILIES[name], size), strict=True):
        assert np.array_equal(view, again)


@pytest.mark.parametrize("size", LARGE, ids=str)
@pytest.mark.parametrize(("name", "whole"), [("llava-next", 0), ("llava-onevision", 0), ("internvl", -1)])
def test_tiles_are_the_same_and_the_whole_is_resized_twice(name: str, whole: int, size: tuple[int, int]) -> None:
    views, again = seen(FAMILIES[name], size)
    assert apart(views.pop(whole), again.pop(whole)) <= 1.0
    assert len(views) > 1
    assert all(np.array_equal(view, tile) for view, tile in zip(views, again, strict=True))


@pytest.mark.parametrize("size", [(3000, 1100), (1100, 3300)], ids=str)
def test_pieces_of_pan_and_scan_are_nearly_the_same(size: tuple[int, int]) -> None:
    """They are cut after the resize and not before, so that filters reach over the cuts."""
    views, again = seen(FAMILIES["gemma3-pan-and-scan"], size)
    assert len(views) > 2
    assert all(apart(view, piece) <= 1.0 for view, piece in zip(views, again, strict=True))


def apart(view: npt.NDArray[np.uint8], again: npt.NDArray[np.uint8]) -> float:
    """Mean difference in levels of 255."""
    difference = float(np.abs(view.astype(float) - again).mean())
    print(f"{difference:.3f} levels apart")
    return difference
