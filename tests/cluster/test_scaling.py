"""How many replicas outstanding tokens need."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sightline.cluster.scaling import TOKENS_PER_REPLICA, ByOutstandingTokens, replicas_for


@pytest.mark.parametrize(
    ("outstanding", "queued", "current", "wanted"),
    [
        (0, 0, 3, 0),  # nothing to do: none
        (1, 0, 0, 1),
        (0, 1, 0, 1),  # somebody waits, and there is none
        (1000, 0, 1, 1),
        (1001, 0, 1, 2),
        (8000, 0, 1, 8),
        (2000, 4, 2, 4),
    ],
)
def test_replicas_for(outstanding: float, queued: float, current: int, wanted: int) -> None:
    assert replicas_for(outstanding, queued, current, tokens_per_replica=1000) == wanted


@pytest.mark.parametrize(("tokens", "wanted"), [(0, 1), (2 * TOKENS_PER_REPLICA, 2), (99 * TOKENS_PER_REPLICA, 5)])
def test_the_policy_stays_within_what_it_is_given(tokens: float, wanted: int) -> None:
    context = SimpleNamespace(
        aggregated_metrics={"outstanding_tokens": {"a": tokens / 2, "b": tokens / 2}},
        total_queued_requests=0,
        current_num_replicas=2,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=5,
    )
    assert ByOutstandingTokens()(context) == (wanted, {})


@pytest.mark.parametrize(("target", "wanted"), [(100, 10), (500, 2), (1000, 1)])
def test_what_one_replica_is_to_have_is_the_operators_to_say(target: int, wanted: int) -> None:
    context = SimpleNamespace(
        aggregated_metrics={"outstanding_tokens": {"a": 1000}},
        total_queued_requests=0,
        current_num_replicas=2,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=50,
    )
    assert ByOutstandingTokens(tokens_per_replica=target)(context) == (wanted, {})


def test_before_any_replica_has_told_what_it_does() -> None:
    context = SimpleNamespace(
        aggregated_metrics={},
        total_queued_requests=3,
        current_num_replicas=0,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=5,
    )
    assert ByOutstandingTokens()(context) == (3, {})
