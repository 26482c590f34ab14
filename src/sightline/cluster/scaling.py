"""How many replicas the work that waits needs. Decided by tokens, because one request may be a hundred of another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

TOKENS_PER_REPLICA = 4096
"""Where `target_outstanding_tokens` does not say."""


def replicas_for(outstanding: float, queued: float, current: int, *, tokens_per_replica: int) -> int:
    """`outstanding`: tokens that requests in replicas may still cost; `queued`: requests that no replica has taken, of
    which nothing is known but that each is like the others. One where anything waits, none where nothing does."""
    if outstanding <= 0 and queued <= 0:
        return 0
    waiting = queued * tokens_per_replica / max(1, current)
    return max(1, math.ceil((outstanding + waiting) / tokens_per_replica))


class ByOutstandingTokens:
    """A policy of Ray Serve's autoscaler, which makes it once, of `policy_kwargs`."""

    def __init__(self, tokens_per_replica: int = TOKENS_PER_REPLICA) -> None:
        self._tokens = tokens_per_replica

    def __call__(self, context: Any) -> tuple[int, Mapping[str, Any]]:
        """`context`: Ray's `AutoscalingContext`. A number of replicas, and state that Ray would keep for us."""
        told = context.aggregated_metrics.get("outstanding_tokens", {})
        wanted = replicas_for(
            sum(told.values()),
            context.total_queued_requests or 0,
            context.current_num_replicas,
            tokens_per_replica=self._tokens,
        )
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return min(max(wanted, least), most), {}
