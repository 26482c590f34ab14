"""Replicas, machines and ingresses end in the middle of 1,000 mixed requests, and other models and configurations take
the place of what runs, on a real Ray of three nodes, HAProxy in front. All is judged by what clients saw.

What had not begun is answered by another replica; an answer that had begun ends with an error event, never silently.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.timeout(400)]

from tests.cluster import load  # noqa: E402  # it needs Ray
from tests.cluster.balancer import balancing  # noqa: E402
from tests.cluster.real import Cluster, processes  # noqa: E402

REQUESTS = 1000
AT_ONCE = 16
FAKE = {"name": "fake", "engine": "fake", "max_concurrent": 8, "options": {"step_s": 0.02}}
PEEK = {"name": "fake", "engine": "openvino", "source": "peek", "max_concurrent": 8}


def args(*models: dict[str, Any]) -> dict[str, Any]:
    """Models on the nodes that can be lost; an ingress on the one that cannot, and one on one that can."""
    there = {"num_replicas": 4, "ray_actor_options": {"num_cpus": 0.1, "resources": {"work": 1}}}
    edge = {"ray_actor_options": {"num_cpus": 0.1, "resources": {"edge": 1}}}
    return {
        "settings": {"models": list(models)},
        "deployments": {model["name"]: there for model in models},
        "ingress": {"num_replicas": 2, "max_replicas_per_node": 1, **edge},
    }


@pytest.fixture(scope="module")
def cluster(machines: Cluster) -> Cluster:
    machines.deploy(args(FAKE))
    return machines


@pytest.fixture(autouse=True)
def mended(cluster: Cluster) -> Iterator[None]:
    """A test that fails leaves no machine missing for the next."""
    yield
    cluster.mend()


async def test_a_replica_is_killed(cluster: Cluster) -> None:
    async def kill() -> None:
        os.kill(processes("model:fake")[0].pid, signal.SIGKILL)

    outcomes = await load.run(cluster.url, REQUESTS, at_once=AT_ONCE, meanwhile=kill)
    assert outcomes.total() == REQUESTS
    assert set(outcomes) <= {"ok", "error event"}
    assert outcomes["error event"] <= AT_ONCE
    await settled(cluster)


async def test_a_node_without_an_ingress_is_killed(cluster: Cluster) -> None:
    async def kill() -> None:
        await asyncio.to_thread(cluster.kill_node, edge=False)

    outcomes = await load.run(cluster.url, REQUESTS, at_once=AT_ONCE, meanwhile=kill)
    assert outcomes.total() == REQUESTS
    assert set(outcomes) <= {"ok", "error event"}
    assert outcomes["error event"] <= AT_ONCE
    cluster.mend()
    await settled(cluster)


async def test_a_node_with_an_ingress_and_its_proxy_is_killed(cluster: Cluster) -> None:
    """Half of all connections are to its proxy, through a load balancer. They break; OpenAI's client asks again, and
    has no error. Of the others, only what the ingress there had under way fails."""
    await both_proxies_answer(cluster)

    async def kill() -> None:
        await asyncio.to_thread(cluster.kill_node, edge=True)

    async with balancing(lambda: [cluster.port, *(node.port for node in cluster.nodes if node.edge)]) as url:
        kinds = (load.by_sdk, load.streamed, load.by_sdk, load.pictured)
        outcomes = await load.run(url, REQUESTS, at_once=AT_ONCE, meanwhile=kill, kinds=kinds)
    assert outcomes.total() == REQUESTS
    assert {outcome.split()[0] for outcome in outcomes} <= {"ok", "error", "500", "502", "reset"}
    assert REQUESTS - outcomes["ok"] <= AT_ONCE
    cluster.mend()
    await settled(cluster)


async def test_an_ingress_is_killed(cluster: Cluster) -> None:
    """What it had under way fails, told or with its connection; nothing else does, and OpenAI's client tries again."""

    async def kill() -> None:
        os.kill(processes("ingress")[0].pid, signal.SIGKILL)

    kinds = (load.by_sdk, load.streamed)
    outcomes = await load.run(cluster.url, REQUESTS, at_once=AT_ONCE, meanwhile=kill, kinds=kinds)
    assert outcomes.total() == REQUESTS
    assert {outcome.split()[0] for outcome in outcomes} <= {"ok", "500", "502", "reset"}
    assert REQUESTS - outcomes["ok"] <= AT_ONCE
    await settled(cluster)


async def test_a_new_configuration_is_rolled_out(cluster: Cluster) -> None:
    async def deploy() -> None:
        changed = {**FAKE, "options": {"step_s": 0.02, "context_length": 4096}}
        await asyncio.to_thread(cluster.deploy, args(changed))

    outcomes = await load.run(cluster.url, REQUESTS, at_once=AT_ONCE, meanwhile=deploy)
    assert outcomes == {"ok": REQUESTS}


async def test_another_model_is_rolled_out_under_the_name(cluster: Cluster) -> None:
    """On another engine, which wants its pictures in other sizes."""

    async def deploy() -> None:
        await asyncio.to_thread(cluster.deploy, args(PEEK))

    outcomes = await load.run(cluster.url, REQUESTS, at_once=AT_ONCE, meanwhile=deploy, right=any_answer)
    assert outcomes == {"ok": REQUESTS}
    reply = cluster.client.post("/v1/chat/completions", json=load.body("fake", 7)).json()
    assert not load.said_again(reply["choices"][0]["message"]["content"], 7), "the old model still answers"


async def test_a_model_of_another_name_is_rolled_out_beside_it(cluster: Cluster) -> None:
    async def deploy() -> None:
        await asyncio.to_thread(cluster.deploy, args(PEEK, {**FAKE, "name": "next"}))

    outcomes = await load.run(cluster.url, REQUESTS, at_once=AT_ONCE, meanwhile=deploy, right=any_answer)
    assert outcomes == {"ok": REQUESTS}
    reply = cluster.client.post("/v1/chat/completions", json=load.body("next", 7)).json()
    assert load.said_again(reply["choices"][0]["message"]["content"], 7)


def any_answer(text: str, number: int) -> bool:
    """The embedded model may have nothing to say to these words."""
    return True


async def settled(cluster: Cluster) -> None:
    """Returns when as many replicas run as there should be."""
    async with asyncio.timeout(200):
        while not await asyncio.to_thread(cluster.is_whole):
            await asyncio.sleep(0.5)


async def both_proxies_answer(cluster: Cluster) -> None:
    (node,) = (node for node in cluster.nodes if node.edge)
    async with asyncio.timeout(200), load.httpx.AsyncClient(timeout=30) as http:
        for port in (cluster.port, node.port):
            while True:
                try:
                    if (await http.get(f"http://127.0.0.1:{port}/v1/models")).status_code == 200:
                        break
                except load.httpx.HTTPError:
                    pass
                await asyncio.sleep(0.2)
