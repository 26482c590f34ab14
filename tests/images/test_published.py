"""Vendors' rules: the examples on their own pages, and what every budget promises."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sightline.images.budget import VisionBudget
from sightline.images.published import published_budget

NAMES = ["gpt-4o", "gpt-4o-mini", "o1", "gpt-5", "gpt-4.1-mini", "gpt-5-nano", "o4-mini"]
NAMES += ["claude-sonnet-4-5", "claude-opus-4-7", "gemini-2.5-flash", "gemini-3-pro"]

names = st.sampled_from(NAMES)
sizes = st.tuples(st.integers(2, 8000), st.integers(2, 8000)).filter(lambda s: max(s) <= 200 * min(s))
asked = st.fixed_dictionaries(
    {"detail": st.sampled_from(["auto", "low", "high", "original"])},
    optional={"max_pixels": st.integers(1, 10**7), "min_pixels": st.integers(1, 10**7)},
)


def budget_of(name: str) -> VisionBudget:
    budget = published_budget(name)
    assert budget is not None
    return budget


@pytest.mark.parametrize(
    ("name", "size", "served"),
    [
        ("gpt-4o", (1024, 1024), (768, 768, 765)),  # these two are examples of OpenAI's page
        ("gpt-4o", (2048, 4096), (768, 1536, 1105)),
        ("gpt-4o", (512, 512), (512, 512, 255)),
        ("gpt-4o-mini", (1024, 1024), (768, 768, 2833 + 4 * 5667)),
        ("gpt-5", (1024, 1024), (768, 768, 70 + 4 * 140)),
        ("o1", (100, 100), (100, 100, 225)),
        ("gpt-4.1-mini", (1024, 1024), (1024, 1024, 1659)),  # 1,024 patches, OpenAI's example
        ("gpt-4.1-mini", (1800, 2400), (1056, 1408, 2353)),  # 1,452 patches, OpenAI's example
        ("o4-mini", (32, 33), (32, 33, 4)),
        ("claude-sonnet-4-5", (200, 200), (200, 200, 64)),
        ("claude-sonnet-4-5", (3136, 1568), (1568, 784, 1568)),  # Anthropic's largest size at 1:2
        ("claude-sonnet-4-5", (4000, 4000), (1092, 1092, 1521)),  # and at 1:1
        ("claude-opus-4-7", (5152, 2576), (2576, 1288, 4232)),
        ("gemini-2.5-flash", (384, 384), (384, 384, 258)),
        ("gemini-2.5-flash", (960, 540), (960, 540, 6 * 258)),  # Google's example
        ("gemini-2.5-flash", (6144, 6144), (3072, 3072, 16 * 258)),
        ("gemini-3-pro", (4000, 3000), (4000, 3000, 1120)),
    ],
)
def test_examples_of_the_vendors_pages(name: str, size: tuple[int, int], served: tuple[int, int, int]) -> None:
    assert budget_of(name).serve(*size) == served


@pytest.mark.parametrize(
    ("name", "tokens"), [("gpt-4o", 85), ("gpt-4o-mini", 2833), ("gemini-2.5-pro", 64), ("gemini-3-pro", 280)]
)
def test_low_detail_is_the_vendor_s_own(name: str, tokens: int) -> None:
    assert budget_of(name).narrowed("low").serve(3000, 2000).tokens == tokens


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("gpt-4o-2024-08-06", "gpt-4o"),
        ("openai/gpt-4o", "gpt-4o"),
        ("chatgpt-4o-latest", "gpt-4o"),
        ("claude-sonnet-4-5-20250929", "claude-sonnet-4-5"),
        ("claude-3-5-sonnet-latest", "claude-sonnet-4-5"),
        ("gemini-2.5-flash-preview-05-20", "gemini-2.5-flash"),
    ],
)
def test_versions_of_a_model_cost_the_same(name: str, like: str) -> None:
    assert published_budget(name) == budget_of(like)


@pytest.mark.parametrize("name", ["gpt-5.4", "gpt-6", "claude-opus-9", "gemini-4-argon", "o3-mini", "llama", ""])
def test_a_model_that_no_page_is_about_is_not_guessed(name: str) -> None:
    assert published_budget(name) is None


def test_none_of_them_is_called_verified() -> None:
    assert not any(budget_of(name).verified for name in NAMES)


@given(names, sizes, asked, st.integers(1, 4000))
def test_what_every_budget_promises(name: str, size: tuple[int, int], asked: dict[str, Any], tokens: int) -> None:
    budget = budget_of(name)
    full = budget.serve(*size)
    assert full.tokens <= budget.largest_tokens
    assert full.width <= size[0]
    assert full.height <= size[1]
    narrowed = budget.narrowed(**asked)
    served = narrowed.serve(*size)
    assert served.tokens <= narrowed.largest_tokens <= budget.largest_tokens
    assert served.width * served.height <= max(1, min(full.width * full.height, asked.get("max_pixels", 10**9)))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(narrowed), type=VisionBudget) == narrowed
    fitted = narrowed.at_most(tokens)
    if fitted is None:
        assert narrowed.serve(1, 1).tokens > tokens
    else:
        assert fitted.serve(*size).tokens <= fitted.largest_tokens <= tokens
    assume(max(served[:2]) <= 200 * min(served[:2]))
    assert narrowed.serve(*served[:2]) == served
