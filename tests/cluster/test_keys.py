"""What a key may ask for, at two ingresses of a real Ray together, and without the meter that they share."""

from __future__ import annotations

import hashlib
import os
import signal
from collections import Counter

import httpx
import pytest

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.timeout(400)]

from tests.cluster import load  # noqa: E402  # it needs Ray
from tests.cluster.real import Cluster, processes  # noqa: E402

FEW, MANY = "few-" + "0" * 40, "many-" + "0" * 40
A_DAY = 12


def key(name: str, secret: str, **limits: int) -> dict[str, object]:
    return {"name": name, "sha256": hashlib.sha256(secret.encode()).hexdigest(), **limits}


@pytest.fixture(scope="module")
def cluster(machines: Cluster) -> Cluster:
    keys = [key("few", FEW, pictures_per_day=A_DAY), key("many", MANY, requests_per_minute=60_000)]
    model = {"name": "fake", "engine": "fake", "max_concurrent": 8, "options": {"step_s": 0.01}}
    edge = {"num_cpus": 0.1, "resources": {"edge": 1}}
    machines.deploy(
        {
            "settings": {"models": [model], "access": {"keys": keys}},
            "deployments": {"fake": {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}}},
            "ingress": {"num_replicas": 2, "max_replicas_per_node": 1, "ray_actor_options": edge},
        }
    )
    return machines


async def test_a_budget_is_counted_once_for_both_ingresses(cluster: Cluster) -> None:
    """However many of them a key is used at: as many pictures are looked at as it may have, and no more."""
    outcomes: Counter[str] = Counter()
    for number in range(2 * A_DAY):
        async with httpx.AsyncClient(base_url=cluster.url, timeout=60, headers={"x-api-key": FEW}) as http:
            outcome = await load.pictured(http, "fake", number, load.said_again)
        outcomes["ok" if outcome == "ok" else outcome[:3]] += 1
    assert len(processes("ingress")) >= 2  # those of the application before may not have ended yet
    # If each counted for itself, none would be refused. On a busy machine the meter is a second late now and then, and
    # an ingress counts for itself that once.
    assert set(outcomes) == {"ok", "429"}
    assert outcomes["429"] >= A_DAY // 2


async def test_nobody_is_refused_when_the_meter_is_killed(cluster: Cluster) -> None:
    async def kill() -> None:
        os.kill(processes("limits")[0].pid, signal.SIGKILL)

    async def keyed(http: httpx.AsyncClient, model: str, number: int, right: load.Right) -> load.Outcome:
        http.headers["x-api-key"] = MANY
        return await load.whole(http, model, number, right)

    outcomes = await load.run(cluster.url, 300, at_once=8, meanwhile=kill, kinds=[keyed])
    assert outcomes == {"ok": 300}
