"""Every family's rule against what its own processor did (budgets.json, by make_reference.py), and what all promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.errors import ImageTooSmall
from sightline.images.budget import (
    AnyResBudget,
    CellBudget,
    CropBudget,
    PanAndScanBudget,
    PatchBudget,
    SplitBudget,
    TileBudget,
    VisionBudget,
)
from tests.images.test_budget import at_most_200_to_1

TABLES: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "budgets.json").read_text(encoding="utf-8"))
BUDGETS: dict[str, VisionBudget] = {
    name: msgspec.convert(table["budget"], VisionBudget) for name, table in TABLES.items()
}

budgets = st.sampled_from([budget for budget in BUDGETS.values() if not isinstance(budget, CellBudget)])
"""Of all but Qwen-VL, which alone enlarges small pictures, and whose promises are in test_budget.py."""
sizes = st.builds(
    lambda short, ratio, wide: (int(short * ratio), short) if wide else (short, int(short * ratio)),
    st.integers(7, 4000),  # a grid of 40 tiles cannot have fewer than 40 pixels
    st.one_of(st.sampled_from([1.0, 1.2, 1.5, 4 / 3, 16 / 9, 2.0, 3.0]), st.floats(1, 8), st.floats(1, 200)),
    st.booleans(),
)
asked = st.fixed_dictionaries(
    {"detail": st.sampled_from(["auto", "low", "high", "original"])},
    optional={"max_pixels": st.integers(1, 10**7), "min_pixels": st.integers(1, 10**7)},
)


@pytest.mark.parametrize("name", TABLES)
def test_sizes_and_tokens_are_those_of_the_processor(name: str) -> None:
    budget, rows = BUDGETS[name], TABLES[name]["rows"]
    assert len(rows) == 200
    for width, height, first, tokens, served, served_tokens in rows:
        if isinstance(budget, CellBudget) and max(first) > 200 * min(first):
            first, tokens = list(at_most_200_to_1(*first)), served_tokens
        assert budget.serve(width, height) == (*served, tokens), (width, height)
        assert served_tokens == tokens, (width, height)
        shrinks = first[0] * first[1] < width * height and max(first) <= 200 * min(first)
        shrinks = shrinks and not isinstance(budget, AnyResBudget)
        if shrinks or isinstance(budget, CellBudget | PatchBudget):
            assert served == first, (width, height)


@pytest.mark.parametrize("name", ["llava-next", "llava-onevision"])
def test_padding_that_rounding_would_change_costs_a_few_pixels(name: str) -> None:
    shrunk = [
        (first, served) for width, height, first, _, served, _ in TABLES[name]["rows"] if served != [width, height]
    ]
    assert len(shrunk) > 30
    for first, served in shrunk:
        assert all(0 <= ours - theirs <= 8 for ours, theirs in zip(served, first, strict=True))


@given(budgets, sizes)
def test_a_served_picture_costs_the_same_and_is_served_as_it_is(budget: VisionBudget, size: tuple[int, int]) -> None:
    width, height, tokens = budget.serve(*size)
    assert 0 < tokens == budget.tokens(width, height) <= budget.largest_tokens
    if not isinstance(budget, PatchBudget):  # whose `tokens` are about whole cells only
        assert tokens == budget.tokens(*size)
        assert width * height <= size[0] * size[1]
    assert budget.serve(width, height) == (width, height, tokens)


@given(budgets, sizes, asked)
def test_narrowing_never_widens(budget: VisionBudget, size: tuple[int, int], asked: dict[str, Any]) -> None:
    narrowed = budget.narrowed(**asked)
    assert narrowed.largest_tokens <= budget.largest_tokens
    served = narrowed.serve(*size)
    full = budget.serve(*size)
    assert served.width * served.height <= full.width * full.height
    assert served.tokens <= narrowed.largest_tokens
    # The processor, which knows nothing of what was asked, makes the same of the picture.
    assert served.tokens == budget.tokens(*served[:2])
    assert narrowed.serve(*served[:2]) == served
    assert budget.serve(*served[:2]) == served  # an engine, which has the model's own budget, may insist on it


@given(budgets, sizes, st.integers(1, 9000))
def test_at_most_holds(budget: VisionBudget, size: tuple[int, int], tokens: int) -> None:
    fitted = budget.at_most(tokens)
    if fitted is None:
        assert budget.largest_tokens > tokens
        return
    assert fitted.largest_tokens <= tokens
    served = fitted.serve(*size)
    assert served.tokens <= tokens
    assert served.tokens == budget.tokens(*served[:2])
    assert budget.largest_tokens > tokens or fitted == budget
    assert budget.serve(*served[:2]) == served


@given(st.sampled_from(sorted(BUDGETS)).map(BUDGETS.__getitem__), asked)
def test_budgets_travel(budget: VisionBudget, asked: dict[str, Any]) -> None:
    narrowed = budget.narrowed(**asked)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(narrowed), type=VisionBudget) == narrowed


@pytest.mark.parametrize("name", BUDGETS)
def test_strips_are_refused_by_every_family(name: str) -> None:
    with pytest.raises(ImageTooSmall, match="200 times"):
        BUDGETS[name].serve(2010, 10)


@pytest.mark.parametrize("name", BUDGETS)
def test_the_largest_is_reached(name: str) -> None:
    """A bound that no picture comes near would refuse pictures that fit."""
    budget = BUDGETS[name]
    dearest = max(budget.serve(short * 97, long * 97).tokens for short in range(1, 50) for long in range(1, 50))
    assert 0.97 * budget.largest_tokens <= dearest <= budget.largest_tokens


@pytest.mark.parametrize(
    ("budget", "tokens", "largest"),
    [
        (PatchBudget(16, 1024), 100, 100),
        (TileBudget(448, 256), 1300, 256 * 5 + 2),
        (TileBudget(448, 256), 600, 256 + 2),
        (PanAndScanBudget(896, 256, 4), 800, 768),
        (PanAndScanBudget(896, 256, 4), 600, 256),
        (BUDGETS["llava-next"], 2000, 1176 + 576 + 24),
        (CropBudget(576, 336), 576, 576),
    ],
)
def test_at_most_is_as_large_as_the_rule_allows(budget: VisionBudget, tokens: int, largest: int) -> None:
    fitted = budget.at_most(tokens)
    assert fitted is not None
    assert fitted.largest_tokens == largest


@pytest.mark.parametrize(
    ("budget", "tokens"),
    [
        (PatchBudget(16, 1024), 1),
        (TileBudget(448, 256), 257),
        (PanAndScanBudget(896, 256, 4), 255),
        (BUDGETS["llava-next"], 1000),
        (CropBudget(576, 336), 575),
        (SplitBudget(2048, 512, 64), 1000),
    ],
)
def test_at_most_says_when_no_picture_fits(budget: VisionBudget, tokens: int) -> None:
    assert budget.at_most(tokens) is None


def test_fewer_tiles_are_a_shape_that_the_processor_cuts_into_fewer() -> None:
    internvl = TileBudget(448, 256)
    assert internvl.serve(3000, 4000) == (1344, 1792, 256 * 13 + 2)
    narrow = internvl.narrowed("low")  # three tiles and a thumbnail; 3:4 is nearest to 1:1 and 1:2, which it fills more
    assert narrow.serve(3000, 4000) == (448, 896, 256 * 3 + 2)
    assert internvl.tokens(448, 896) == 256 * 3 + 2


def test_pan_and_scan_is_told_off_by_a_square() -> None:
    gemma = PanAndScanBudget(896, 256, 4)
    assert gemma.serve(4000, 2000) == (1792, 896, 768)
    assert gemma.narrowed("low").serve(4000, 2000) == (896, 896, 256)
    assert gemma.narrowed("low").serve(600, 300) == (424, 424, 256)
