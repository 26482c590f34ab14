"""How large a picture is served, and what it costs: transformers' rule, and what a request may ask of it."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import ImageTooSmall
from sightline.images.budget import CellBudget
from sightline.types import ImageRef

ROWS = json.loads((Path(__file__).parent / "smart_resize.json").read_text(encoding="utf-8"))
"""Written by make_reference.py."""

BUDGET = CellBudget(cell=28, min_pixels=16 * 784, max_pixels=128 * 784)


def at_most_200_to_1(width: int, height: int) -> tuple[int, int]:
    """`smart_resize` gives sizes that it would itself refuse; we do not."""
    return min(width, 200 * height), min(height, 200 * width)


def test_a_strip_is_served_at_a_size_that_the_model_s_processor_takes() -> None:
    qwen = CellBudget(28, 56 * 56, 28 * 28 * 1280)
    assert qwen.serve(15920, 80) == (400 * 28, 2 * 28, 800)  # smart_resize: 504 x 2 cells
    assert qwen.serve(400 * 28, 2 * 28) == (400 * 28, 2 * 28, 800)


def test_sizes_are_those_of_transformers() -> None:
    assert len(ROWS) == 200
    refused = 0
    for width, height, cell, low, high, expected in ROWS:
        budget = CellBudget(cell, low, high)
        if expected is None:
            refused += 1
            with pytest.raises(ImageTooSmall, match="200 times"):
                budget.serve(width, height)[:2]
        else:
            assert budget.serve(width, height)[:2] == at_most_200_to_1(*expected), (width, height, budget)
    assert refused > 0


@given(st.integers(1, 16384), st.integers(1, 16384))
def test_every_size_fits_the_grid_and_the_rule_treats_both_sides_alike(width: int, height: int) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    served = BUDGET.serve(width, height)[:2]
    assert BUDGET.serve(height, width)[:2] == served[::-1]
    assert all(side > 0 and side % 28 == 0 for side in served)
    if max(width, height) < 30 * min(width, height):  # longer pictures may exceed it: a side is never under one cell
        assert 16 <= BUDGET.tokens(*served) <= 128


def test_tokens_are_cells() -> None:
    assert BUDGET.tokens(28, 28) == 1
    assert BUDGET.tokens(112, 84) == 12


def ref(**fields: object) -> ImageRef:
    return ImageRef("data:,", "picture", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("detail", ["auto", "high", "original"])
def test_full_details_are_the_whole_budget(detail: str) -> None:
    assert BUDGET.for_picture(ref(detail=detail)) == BUDGET


def test_original_keeps_the_size_where_the_budget_allows() -> None:
    assert BUDGET.for_picture(ref(detail="original")).serve(280, 140)[:2] == (280, 140)


def test_low_detail_is_a_fourth_but_never_under_the_minimum() -> None:
    assert BUDGET.for_picture(ref(detail="low")) == CellBudget(28, 16 * 784, 32 * 784)
    narrow = CellBudget(28, 16 * 784, 32 * 784)
    assert narrow.for_picture(ref(detail="low")) == CellBudget(28, 16 * 784, 16 * 784)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"max_pixels": 64 * 784}, (16, 64)),
        ({"max_pixels": 1}, (16, 16)),
        ({"max_pixels": 10**9}, (16, 128)),
        ({"min_pixels": 64 * 784}, (64, 128)),
        ({"min_pixels": 1}, (16, 128)),
        ({"min_pixels": 10**9}, (128, 128)),
        ({"min_pixels": 100 * 784, "max_pixels": 50 * 784}, (50, 50)),
        ({"detail": "low", "max_pixels": 128 * 784}, (16, 32)),
        ({"detail": "low", "min_pixels": 24 * 784}, (24, 32)),
    ],
)
def test_a_request_narrows_the_budget_and_never_widens_it(asked: dict[str, object], expected: tuple[int, int]) -> None:
    low, high = expected
    assert BUDGET.for_picture(ref(**asked)) == CellBudget(28, low * 784, high * 784)


ranges = st.builds(
    lambda cell, low, more: CellBudget(cell, low * cell**2, (low + more) * cell**2),
    st.sampled_from([14, 28, 32]),
    st.integers(1, 300),
    st.integers(0, 1000),
)
sizes = st.tuples(st.integers(1, 16384), st.integers(1, 16384)).filter(lambda s: max(s) <= 200 * min(s))


@given(ranges, sizes)
def test_no_picture_costs_more_than_the_largest(budget: CellBudget, size: tuple[int, int]) -> None:
    assert budget.serve(*size).tokens <= budget.largest_tokens


@pytest.mark.parametrize(
    ("budget", "size"),
    [
        (CellBudget(28, 784, 16 * 784), (5600, 28)),  # a strip: 56 cells where 16 are the most
        (CellBudget(28, 16 * 784, 16 * 784), (239, 15)),  # enlarged to 15.97 x 1.002 cells, in whole ones 32
    ],
)
def test_what_exceeds_the_pixels_is_counted_in_the_largest(budget: CellBudget, size: tuple[int, int]) -> None:
    served = budget.serve(*size).tokens
    assert budget.max_pixels // 784 < served <= budget.largest_tokens


@given(ranges, sizes, st.integers(1, 1500))
def test_at_most_holds_inside_the_range_and_says_when_it_cannot(
    budget: CellBudget, size: tuple[int, int], tokens: int
) -> None:
    fitted = budget.at_most(tokens)
    if fitted is None:
        # A prime number of tokens is no grid but a strip, so that a few fewer must do.
        assert (tokens - math.isqrt(tokens)) * budget.cell**2 < budget.min_pixels
        return
    served = fitted.serve(*size)
    assert served.tokens <= tokens
    assert served.tokens <= fitted.largest_tokens <= tokens
    # Where whole cells do not allow the range, `smart_resize` itself goes beyond it, and would not leave that as it is.
    in_range = budget.min_pixels <= served.width * served.height <= fitted.max_pixels
    if in_range:
        assert fitted.serve(*served[:2]) == served
        assert budget.serve(*served[:2]) == served  # the model's own processor leaves it as it is


def test_at_most_keeps_the_shape_where_it_can() -> None:
    fitted = BUDGET.at_most(32)
    assert fitted is not None
    assert fitted.serve(2000, 1000) == (8 * 28, 4 * 28, 32)
    assert fitted.serve(5600, 28) == (32 * 28, 28, 32)
    assert BUDGET.at_most(15) is None
    assert BUDGET.at_most(10**6) is BUDGET
