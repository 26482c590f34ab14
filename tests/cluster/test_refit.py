"""Pictures that come to another model than the one that they were made ready for."""

from __future__ import annotations

import numpy as np

from sightline.cluster import parcels
from sightline.cluster.refit import refit, rule_of
from sightline.images.cells import CellBudget
from sightline.types import EngineRequest, Image, Message, Text


def picture(width: int, height: int, colour: tuple[int, int, int] = (255, 0, 0)) -> Image:
    pixels = np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()
    return Image(pixels, "sha256:0", 4 * width, 4 * height, "image/png", 9)


def asked(*pictures: Image) -> EngineRequest:
    return EngineRequest("r", "m", (Message("user", (Text("a"), *pictures, Text("b"))),))


def test_every_picture_has_a_size_that_the_other_model_takes_and_its_place() -> None:
    budget = CellBudget(cell=28, min_pixels=56 * 56, max_pixels=280 * 280)
    fits, not_yet = picture(56, 84), picture(300, 200, (0, 0, 255))
    request = refit(asked(fits, not_yet), budget)
    assert request.images[0] is fits
    width, height, _ = budget.serve(300, 200)
    assert request.images[1].pixels.shape == (height, width, 3)
    assert request.images[1].pixels[5, 5].tolist() == [0, 0, 255]
    assert (request.images[1].width, request.images[1].height) == (1200, 800)
    assert [part.text for part in request.messages[0].content if isinstance(part, Text)] == ["a", "b"]


def test_what_stands_for_a_size_takes_no_memory() -> None:
    budget = CellBudget(cell=28, min_pixels=56 * 56, max_pixels=280 * 280)
    counted = parcels.to_count(parcels.from_count(asked(picture(300, 200))))
    (image,) = refit(counted, budget).images
    assert image.pixels.strides == (0, 0, 0)
    assert (image.served_width, image.served_height) == budget.serve(300, 200)[:2]


def test_a_model_without_eyes_is_left_to_refuse() -> None:
    request = asked(picture(300, 200))
    assert refit(request, None) is request


def test_rules_are_told_apart() -> None:
    small, large = (CellBudget(cell=28, min_pixels=56 * 56, max_pixels=n * 28 * 28) for n in (100, 200))
    assert len({rule_of(small), rule_of(large), rule_of(None)}) == 3
    assert rule_of(small) == rule_of(CellBudget(cell=28, min_pixels=56 * 56, max_pixels=100 * 28 * 28))
