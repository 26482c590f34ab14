from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.engines.sampler import (
    MIN_LOGPROB,
    Logits,
    Sampler,
    distribution,
    logprobs,
    only,
    pick,
    uniform_at,
)
from sightline.types import SamplingParams

SOME = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))


def sampler(prompt: tuple[int, ...] = (), ends: frozenset[int] = frozenset(), **params: Any) -> Sampler:
    return Sampler(SamplingParams(**params), prompt, ends, 4)


def tokens(s: Sampler, logits: Logits, count: int) -> list[int]:
    return [s.next_token(logits) for _ in range(count)]


def test_greedy_takes_the_likeliest() -> None:
    assert tokens(sampler(temperature=0.0), np.array([0, 3, 1, 2], np.float32), 3) == [1, 1, 1]


def test_frequencies_are_the_distribution() -> None:
    """4,000 draws: within four standard deviations of what is wanted."""
    drawn = np.bincount(tokens(sampler(seed=1), SOME, 4000), minlength=4) / 4000
    wanted = np.exp(SOME)
    assert (np.abs(drawn - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 4000)).all(), drawn


def test_a_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    first, again, other, unseeded = (tokens(sampler(seed=s), SOME, 50) for s in (7, 7, 8, None))
    assert first == again
    assert first != other
    assert first != unseeded


def test_draws_belong_to_seed_and_position_only() -> None:
    numbers = {(seed, p): uniform_at(seed, p) for seed in (0, 1, 2**64 - 1) for p in (0, 1, 1000)}
    assert len(set(numbers.values())) == len(numbers)
    assert all(0.0 <= n < 1.0 for n in numbers.values())
    assert uniform_at(1, 1000) == numbers[1, 1000]


def test_negative_and_huge_seeds_are_seeds() -> None:
    assert len({tuple(tokens(sampler(seed=s), SOME, 30)) for s in (-1, 1, 2**63, -(2**63))}) >= 3


def test_temperature_sharpens() -> None:
    half = distribution(SOME, SamplingParams(temperature=0.5))
    assert half == pytest.approx(np.array([0.25, 0.0625, 0.0225, 0.01]) / 0.345, rel=1e-5)
    assert distribution(SOME, SamplingParams(temperature=1e-9))[0] == 1.0


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"top_k": 1}, 1), ({"top_k": 3}, 3), ({"top_k": 9}, 4),
        ({"top_p": 0.0}, 1), ({"top_p": 0.49}, 1), ({"top_p": 0.6}, 2), ({"top_p": 0.8}, 3), ({"top_p": 0.95}, 4),
        ({"min_p": 0.4}, 2), ({"min_p": 0.25}, 3), ({"min_p": 1.0}, 1),
        ({"min_p": 0.25, "top_k": 2}, 2), ({"top_k": 2, "top_p": 0.6}, 1),
    ],
)  # fmt: skip
def test_filters_keep_the_likeliest(params: dict[str, Any], kept: int) -> None:
    left = distribution(SOME, SamplingParams(**params))
    assert (left > 0).sum() == kept
    assert left[:kept] == pytest.approx(np.exp(SOME)[:kept] / np.exp(SOME)[:kept].sum(), rel=1e-5)


def test_top_p_of_a_large_vocabulary_equals_its_definition() -> None:
    rng = np.random.default_rng(0)
    for spread in (0.1, 1.0, 8.0):  # flat: more than the first candidates are needed
        logits = (rng.standard_normal(5000) * spread).astype(np.float32)
        left = distribution(logits, SamplingParams(top_p=0.9))
        probabilities = np.sort(distribution(logits, SamplingParams()))[::-1]
        assert (left > 0).sum() == int((probabilities.cumsum() < 0.9).sum()) + 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20).filter(lambda w: sum(w) > 1e-6), st.floats(0, 1))
def test_pick_never_takes_what_was_filtered_out(weights: list[float], uniform: float) -> None:
    probabilities = np.array(weights) / sum(weights)
    assert probabilities[pick(probabilities, uniform)] > 0


def test_pick_is_the_inverse_of_the_cumulative_distribution() -> None:
    p = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    assert [pick(p, u) for u in (0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999, 1.0)] == [1, 1, 3, 3, 4, 4, 4]


def test_penalties() -> None:
    level = np.array([2.0, 2.0, -2.0, 1.9], np.float32)
    assert tokens(sampler(temperature=0.0, presence_penalty=0.2), level, 4) == [0, 1, 3, 0]
    assert tokens(sampler(temperature=0.0, frequency_penalty=0.06), level, 5) == [0, 1, 0, 1, 3]
    # Repetition also counts the prompt, presence and frequency do not; negative logits are made more negative.
    assert tokens(sampler((0, 1), temperature=0.0, repetition_penalty=1.2), level, 1) == [3]
    assert tokens(sampler((0, 1), temperature=0.0, presence_penalty=2.0), level, 1) == [0]
    low = np.array([-1.0, -1.1, -9, -9], np.float32)
    assert tokens(sampler((0,), temperature=0.0, repetition_penalty=1.5), low, 1) == [1]


def test_bias_adds_and_forbids() -> None:
    assert tokens(sampler(temperature=0.0, logit_bias={2: 100.0}), SOME, 1) == [2]
    assert 0 not in tokens(sampler(seed=3, logit_bias={0: -100.0}), SOME, 100)


def test_the_end_does_not_come_before_min_tokens() -> None:
    assert tokens(sampler(ends=frozenset({0}), temperature=0.0, min_tokens=2), SOME, 3) == [1, 1, 0]


def test_the_logits_are_left_alone() -> None:
    before = SOME.copy()
    s = sampler((1,), frozenset({0}), min_tokens=1, repetition_penalty=2.0, presence_penalty=1.0, logit_bias={3: 2.0})
    tokens(s, SOME, 2)
    assert (before == SOME).all()


def test_logprobs_are_those_of_the_model() -> None:
    told = logprobs(SOME, 2, 3)
    assert told.chosen == pytest.approx(math.log(0.15), abs=1e-6)
    assert told.top_ids == (0, 1, 2)
    assert told.top == pytest.approx([math.log(p) for p in (0.5, 0.25, 0.15)], abs=1e-6)
    assert logprobs(SOME, 0, 0).top == ()
    assert len(logprobs(SOME, 0, 20).top) == 4


def test_what_is_impossible_has_a_floor() -> None:
    told = logprobs(np.array([0.0, -np.inf, -1e30, 0.0], np.float32), 1, 4)
    assert told.chosen == MIN_LOGPROB
    assert min(told.top) == MIN_LOGPROB


def test_only_what_is_allowed_comes_however_it_is_sampled() -> None:
    allowed = np.array([False, False, True, True])
    bound = only(allowed, SOME)
    assert np.isfinite(SOME).all(), "the logits are left alone"
    ways: list[dict[str, Any]] = [
        {"temperature": 0.0}, {"temperature": 2.0}, {"top_p": 0.05}, {"top_k": 1}, {"min_p": 0.9},
        {"repetition_penalty": 2.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
        {"logit_bias": {0: 100.0, 2: -100.0}},
    ]  # fmt: skip
    for way in ways:
        assert set(tokens(sampler(**{"seed": 3, **way}), bound, 50)) <= {2, 3}, way
    drawn = np.bincount(tokens(sampler(seed=1), bound, 4000), minlength=4) / 4000
    assert drawn[2] == pytest.approx(0.6, abs=0.03)  # 0.15 of 0.25


def test_the_end_comes_before_min_tokens_where_nothing_else_may() -> None:
    only_the_end = only(np.array([False, True, False, False]), SOME)
    assert tokens(sampler(ends=frozenset({1}), min_tokens=9), only_the_end, 2) == [1, 1]


def test_log_probabilities_are_of_what_could_come() -> None:
    told = logprobs(only(np.array([False, False, True, True]), SOME), 2, 4)
    assert told.top_ids == (2, 3)
    assert told.chosen == pytest.approx(math.log(0.6))
    assert sum(math.exp(value) for value in told.top) == pytest.approx(1.0)
