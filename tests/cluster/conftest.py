"""Tests of a real Ray are marked; the others here need none."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Ray's library reads these once, when it is imported; a token it has by default.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")  # as `sightline cluster up` has it
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # On a busy machine, Ray's own processes are neither to starve nor to be given up before they have come up.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_worker_register_timeout_seconds", "180")
    os.environ.setdefault("RAY_agent_register_timeout_ms", "180000")
    for limit in ("PROXY_READY_CHECK", "PROXY_HEALTH_CHECK", "HAPROXY_STARTUP"):
        os.environ.setdefault(f"RAY_SERVE_{limit}_TIMEOUT_S", "60")
    # A third of what Ray gives proxies to learn that an ingress is to end: less time, and harder to do without loss.
    os.environ.setdefault("RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", "10")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start a Ray of their own come before those that share one: two at once are too much for two cores."""
    items.sort(key=lambda item: "machines" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def machines() -> Iterator[Any]:
    """A `real.Cluster` of three nodes, the same for all tests; each module deploys there what it is about."""
    pytest.importorskip("ray")
    from tests.cluster.real import Cluster

    with Cluster(nodes=3) as cluster:
        yield cluster
