"""How large each picture is given to the model."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sightline.config import PictureSize
from sightline.errors import ContextLengthExceeded
from sightline.images.budget import CellBudget, PanAndScanBudget, TileBudget, VisionBudget
from sightline.images.plan import Room, picture_budget
from sightline.types import ImageRef

CELL = 784
VISION = CellBudget(28, 4 * CELL, 400 * CELL)
NOBODY = PictureSize()


def range_of(model: PictureSize = NOBODY, everywhere: PictureSize = NOBODY, **asked: Any) -> tuple[int, int]:
    """Fewest and most cells that the area may have."""
    budget = picture_budget(VISION, ImageRef(b"", "p", **asked), model, everywhere)
    assert isinstance(budget, CellBudget)
    return budget.min_pixels // CELL, budget.max_pixels // CELL


@pytest.mark.parametrize(
    ("model", "everywhere", "asked", "cells"),
    [
        ({}, {}, {}, (4, 400)),
        ({}, {}, {"detail": "low"}, (4, 100)),
        # Whose detail counts: the picture's, the model's, the server's.
        ({}, {"detail": "low"}, {}, (4, 100)),
        ({"detail": "low"}, {"detail": "high"}, {}, (4, 100)),
        ({"detail": "low"}, {"detail": "low"}, {"detail": "high"}, (4, 400)),
        ({"detail": "high"}, {"detail": "low"}, {}, (4, 400)),
        # Bounds only narrow.
        ({}, {"max_pixels": 200 * CELL}, {}, (4, 200)),
        ({"max_pixels": 300 * CELL}, {"max_pixels": 200 * CELL}, {}, (4, 200)),
        ({"max_pixels": 100 * CELL}, {"max_pixels": 200 * CELL}, {}, (4, 100)),
        ({"max_pixels": 100 * CELL}, {}, {"max_pixels": 200 * CELL}, (4, 100)),
        ({"max_pixels": 100 * CELL}, {}, {"max_pixels": 50 * CELL}, (4, 50)),
        ({"max_pixels": 100 * CELL}, {}, {"detail": "low"}, (4, 25)),
        ({}, {"min_pixels": 10 * CELL}, {"min_pixels": 5 * CELL}, (10, 400)),
        ({}, {"min_pixels": 10 * CELL}, {"min_pixels": 20 * CELL}, (20, 400)),
        # Outside of what is left: its nearer end.
        ({}, {}, {"max_pixels": 1}, (4, 4)),
        ({}, {}, {"min_pixels": 10**9}, (400, 400)),
        ({"max_pixels": 10**9}, {}, {}, (4, 400)),
        ({"max_pixels": 100 * CELL}, {}, {"min_pixels": 200 * CELL}, (100, 100)),
    ],
)
def test_who_decides(
    model: dict[str, Any], everywhere: dict[str, Any], asked: dict[str, Any], cells: tuple[int, int]
) -> None:
    assert range_of(PictureSize(**model), PictureSize(**everywhere), **asked) == cells


def costs(room: Room, sizes: list[tuple[int, int]], budgets: list[VisionBudget]) -> list[int]:
    return [b.serve(*size).tokens for b, size in zip(room.fit(sizes, budgets), sizes, strict=True)]


SIZES = [(1000, 800), (56, 56), (500, 600), (1000, 800)]
"""At their own: 400, 4, 378, 400 cells at most."""


@pytest.mark.parametrize("context", [1400, 1000, 500, 200, 100, 60])
def test_the_most_that_fits_is_shared_fairly(context: int) -> None:
    room = Room(context=context, text=20, max_tokens=20)
    budgets: list[VisionBudget] = [VISION] * 4
    fitted = room.fit(SIZES, budgets)
    tokens = costs(room, SIZES, budgets)
    assert sum(tokens) <= context - 40
    assert tokens[1] == 4
    assert fitted[1] is VISION  # the small one keeps its own
    assert tokens[0] == tokens[3]
    own = [VISION.serve(*size).tokens for size in SIZES]
    if sum(own) <= context - 40:
        assert fitted == tuple(budgets)
        return
    cap = max(tokens)
    assert all(t >= min(o, cap) * 0.7 for t, o in zip(tokens, own, strict=True))  # to whole cells
    for more in range(cap + 1, max(own)):  # no larger common bound would give them more
        larger = [VISION if o <= more else VISION.at_most(more) for o in own]
        total = sum(b.serve(*size).tokens for b, size in zip(larger, SIZES, strict=True) if b is not None)
        assert total > context - 40 or total <= sum(tokens)


def test_holds_any_is_a_promise() -> None:
    budgets: list[VisionBudget] = [VISION, VISION.narrowed("low")]
    worst = sum(b.largest_tokens for b in budgets)
    assert Room(worst + 50, 20, 30).holds_any(budgets)
    assert not Room(worst + 49, 20, 30).holds_any(budgets)


def test_an_answer_without_a_bound_has_room_kept_but_not_at_the_price_of_the_request() -> None:
    assert Room(8192, 10, None).answer == 256
    assert Room(400, 10, None).answer == 50
    tokens = costs(Room(400, 50, None), [(1000, 1000)], [VISION])
    assert tokens == [289]  # 17 x 17; 300 are left by the text and an answer of 50
    assert costs(Room(50, 44, None), [(1000, 1000)], [VISION]) == [4]  # one token is left, and one was not refused
    with pytest.raises(ContextLengthExceeded, match=r"holds 50 tokens. The text takes 46, and the pictures 4 at"):
        Room(50, 46, None).fit([(1000, 1000)], [VISION])


def test_what_a_client_asks_to_be_large_is_not_made_smaller_than_that() -> None:
    insists = VISION.narrowed(min_pixels=100 * CELL)
    with pytest.raises(ContextLengthExceeded, match="the answer up to 10, and the pictures 100 at") as error:
        Room(120, 15, 10).fit([(500, 500)], [insists])
    assert error.value.param == "messages"
    tokens = costs(Room(150, 15, 10), [(500, 500), (500, 500)], [insists, VISION])
    assert tokens == [100, 25]  # the other one gives way


def test_families_that_come_in_steps() -> None:
    tiles: VisionBudget = TileBudget(edge=448, tile_tokens=256, min_tiles=1, max_tiles=12)
    room = Room(2000, 20, 100)
    (cost,) = costs(room, [(2000, 2000)], [tiles])
    assert cost == 4 * 256 + 256 + 2  # 2 x 2 tiles and the thumbnail
    fixed: VisionBudget = PanAndScanBudget(edge=896, view_tokens=256)
    assert costs(Room(700, 20, 100), [(2000, 2000)] * 2, [fixed] * 2) == [fixed.largest_tokens] * 2
    with pytest.raises(ContextLengthExceeded):
        Room(500, 20, 100).fit([(2000, 2000)] * 2, [fixed] * 2)


def test_64_pictures_take_no_time() -> None:
    """It runs on the event loop."""
    sizes = [(1000 + i, 800) for i in range(64)]
    began = time.process_time()
    Room(8192, 100, 256).fit(sizes, [VISION] * 64)
    assert time.process_time() - began < 0.1
