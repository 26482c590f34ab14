"""Replicas, machines and the ingress end in the middle of 1,000 requests, on a real Ray of three nodes.

What had not begun is answered by another replica; an answer that had begun ends with an error event, never silently.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.timeout(400)]

from tests.cluster import load  # noqa: E402  # it needs Ray
from tests.cluster.real import Cluster  # noqa: E402

REQUESTS = 1000
AT_ONCE = 16


def args(**changes: Any) -> dict[str, Any]:
    """Models on the nodes that can be lost, the ingress on the one that cannot."""
    options = {"step_s": 0.02, **changes}
    return {
        "settings": {"models": [{"name": "fake", "engine": "fake", "max_concurrent": 8, "options": options}]},
        "deployments": {"fake": {"num_replicas": 4, "ray_actor_options": {"num_cpus": 0.1, "resources": {"work": 1}}}},
        "ingress": {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1, "resources": {"head": 1}}},
    }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(nodes=3) as cluster:
        cluster.deploy(args())
        yield cluster


def replicas(name: str) -> list[psutil.Process]:
    """Processes of a deployment's replicas."""
    title = f"ray::ServeReplica:sightline:{name}"
    return [process for process in psutil.process_iter() if " ".join(_cmdline(process)).startswith(title)]


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


async def test_a_replica_is_killed(cluster: Cluster) -> None:
    async def kill() -> None:
        os.kill(replicas("model:fake")[0].pid, signal.SIGKILL)

    outcomes = await load.run(cluster.url, REQUESTS, at_once=AT_ONCE, meanwhile=kill)
    assert outcomes.total() == REQUESTS
    assert set(outcomes) <= {"ok", "error event"}
    assert outcomes["error event"] <= AT_ONCE
    await settled(cluster)


async def test_a_node_is_killed(cluster: Cluster) -> None:
    async def kill() -> None:
        await asyncio.to_thread(cluster.kill_node, 0)

    outcomes = await load.run(cluster.url, REQUESTS, at_once=AT_ONCE, meanwhile=kill)
    assert outcomes.total() == REQUESTS
    assert set(outcomes) <= {"ok", "error event"}
    assert outcomes["error event"] <= AT_ONCE
    cluster.add_node()
    await settled(cluster)


async def test_an_ingress_is_killed(cluster: Cluster) -> None:
    """What it had under way fails, told or with its connection; nothing else does, and OpenAI's client tries again."""

    async def kill() -> None:
        os.kill(replicas("ingress")[0].pid, signal.SIGKILL)

    kinds = (load.by_sdk, load.streamed)
    outcomes = await load.run(cluster.url, REQUESTS, at_once=AT_ONCE, meanwhile=kill, kinds=kinds)
    assert outcomes.total() == REQUESTS
    assert {outcome.split()[0] for outcome in outcomes} <= {"ok", "500", "reset"}
    assert REQUESTS - outcomes["ok"] <= AT_ONCE
    await settled(cluster)


async def test_a_new_configuration_is_rolled_out(cluster: Cluster) -> None:
    async def deploy() -> None:
        await asyncio.to_thread(cluster.deploy, args(context_length=4096))

    outcomes = await load.run(cluster.url, REQUESTS, at_once=AT_ONCE, meanwhile=deploy)
    assert outcomes == {"ok": REQUESTS}


async def settled(cluster: Cluster) -> None:
    """Returns when as many replicas run as there should be."""
    async with asyncio.timeout(90):
        while not await asyncio.to_thread(cluster.is_whole):
            await asyncio.sleep(0.5)
