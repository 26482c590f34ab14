"""A real Ray on this machine: the whole way from HTTP to an engine in a replica's child process, and back."""

from __future__ import annotations

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import httpx
import pytest
from PIL import Image

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.anyio, pytest.mark.cluster, pytest.mark.timeout(300)]

from tests.cluster import load  # noqa: E402  # it needs Ray
from tests.cluster.real import Cluster, processes  # noqa: E402

DEADLINE_S = 40.0
"""Of every request: long for a replica to be started on a busy machine."""


@pytest.fixture(scope="module")
def cluster(machines: Cluster) -> Cluster:
    machines.deploy(
        {
            "settings": {
                "models": [
                    {"name": "fake", "engine": "fake", "max_concurrent": 8, "options": {"step_s": 0.01}},
                    {"name": "sleepy", "engine": "fake", "options": {"step_s": 0.01}},
                    {"name": "nowhere", "engine": "fake"},
                    {"name": "only", "engine": "fake", "max_concurrent": 8, "options": {"step_s": 0.02}},
                    {
                        "name": "slow",
                        "engine": "fake",
                        "max_concurrent": 1,
                        "options": {"slots": 1, "step_s": 0.05},
                    },
                ],
                "request_timeout_s": DEADLINE_S,
            },
            "deployments": {
                "nowhere": {
                    "autoscaling_config": {"min_replicas": 0, "max_replicas": 1},
                    "ray_actor_options": {"resources": {"on no machine": 1}},
                },
                "fake": {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.1}},
                "sleepy": {
                    "autoscaling_config": {
                        "min_replicas": 0,
                        "max_replicas": 2,
                        "downscale_delay_s": 1.0,
                        "downscale_to_zero_delay_s": 1.0,
                        "upscale_delay_s": 0.5,
                        "metrics_interval_s": 0.5,
                        "look_back_period_s": 1.0,
                    },
                    "ray_actor_options": {"num_cpus": 0.1},
                },
                "slow": {"ray_actor_options": {"num_cpus": 0.1}},
                "only": {"ray_actor_options": {"num_cpus": 0.1}},
            },
            "ingress": {"ray_actor_options": {"num_cpus": 0.1}},
        }
    )
    return machines


def picture(colour: str) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), colour).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def chat(*content: Any, model: str = "fake", **more: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"model": model, "messages": [{"role": "user", "content": parts}], **more}


def test_a_model_in_a_replica_sees_the_picture(cluster: Cluster) -> None:
    reply = cluster.client.post("/v1/chat/completions", json=chat("hello", picture("red"))).json()
    assert reply["choices"][0]["message"]["content"] == "I see 1 picture: 64x48 mostly red. You said: hello"
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] > 0


def test_other_dialects_and_embeddings(cluster: Cluster) -> None:
    reply = cluster.client.post("/v1/responses", json={"model": "fake", "input": "hello"}).json()
    assert "You said: hello" in reply["output"][0]["content"][0]["text"]
    reply = cluster.client.post("/v1/embeddings", json={"model": "fake", "input": ["a", "b"]}).json()
    assert [len(row["embedding"]) for row in reply["data"]] == [64, 64]
    assert {model["id"] for model in cluster.client.get("/v1/models").json()["data"]} == {
        "fake",
        "sleepy",
        "nowhere",
        "only",
        "slow",
    }


def test_events_come_as_they_are_made(cluster: Cluster) -> None:
    words, arrived = [], []
    body = chat("[[fake: slow 0.2]][[fake: say a b c d]]", stream=True)
    with cluster.client.stream("POST", "/v1/chat/completions", json=body) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {") and (said := json.loads(line[6:])["choices"][0]["delta"].get("content")):
                words.append(said)
                arrived.append(time.monotonic())
    assert words == ["a", " b", " c", " d"]
    assert all(later - sooner > 0.1 for sooner, later in pairwise(arrived)), arrived


def test_an_error_of_the_engine_keeps_its_class_on_the_way(cluster: Cluster) -> None:
    reply = cluster.client.post("/v1/chat/completions", json=chat("word " * 9000))
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    reply = cluster.client.post("/v1/chat/completions", json=chat("[[fake: error 0]]"))
    assert reply.status_code == 500


def test_an_error_after_the_first_word_is_an_event(cluster: Cluster) -> None:
    with cluster.client.stream("POST", "/v1/chat/completions", json=chat("[[fake: error 2]]", stream=True)) as reply:
        lines = [line for line in reply.iter_lines() if line]
    assert reply.status_code == 200
    assert "error" in json.loads(lines[-2 if lines[-1] == "data: [DONE]" else -1].removeprefix("data: "))


def test_who_leaves_frees_the_slot_in_the_replica(cluster: Cluster) -> None:
    """The model has one slot: another answer can only be had when the first, which would take minutes, has ended."""
    with cluster.client.stream(
        "POST",
        "/v1/chat/completions",
        json=chat("[[fake: slow 2]][[fake: say " + "a " * 100 + "]]", model="slow", stream=True),
    ) as reply:
        next(line for line in reply.iter_lines() if "content" in line)
    reply = cluster.client.post("/v1/chat/completions", json=chat("hello", model="slow"), timeout=20)
    assert reply.status_code == 200


def test_both_replicas_work(cluster: Cluster) -> None:
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(lambda n: cluster.client.post("/v1/chat/completions", json=chat(f"{n}")), range(48)))
    assert [r.status_code for r in replies] == [200] * 48
    assert all(f"You said: {n}" in r.json()["choices"][0]["message"]["content"] for n, r in enumerate(replies))


def test_a_picture_goes_where_it_was_seen(cluster: Cluster) -> None:
    colours = [f"#{n:02x}40{255 - n:02x}" for n in range(0, 240, 20)]
    for cached in (False, True):
        replies = [
            cluster.client.post("/v1/chat/completions", json=chat(f"{cached}", picture(colour))).json()
            for colour in colours
        ]
        assert [reply["sightline"]["images"][0]["cached"] for reply in replies] == [cached] * len(colours)


def test_a_model_that_nobody_asks_has_no_replica_and_is_woken(cluster: Cluster) -> None:
    """All that come while it wakes are held, and answered."""
    assert cluster.replicas("model:sleepy") == 0

    def ask(number: int) -> httpx.Response:
        return cluster.client.post("/v1/chat/completions", json=chat(f"{number}", model="sleepy"))

    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(ask, range(12)))
    said = [reply.json()["choices"][0]["message"]["content"] for reply in replies]
    assert all(text.endswith(f"You said: {number}") for number, text in enumerate(said))
    assert cluster.replicas("model:sleepy") >= 1
    deadline = time.monotonic() + 60
    while cluster.replicas("model:sleepy"):
        assert time.monotonic() < deadline, "it is not put to sleep"
        time.sleep(0.2)
    reply = cluster.client.post("/v1/chat/completions", json=chat("again", model="sleepy"))
    assert reply.status_code == 200


async def test_the_only_replica_is_killed_and_so_is_the_next(cluster: Cluster) -> None:
    """Who was told nothing yet waits for the one after, whatever had been computed; nothing else fails."""

    async def kill() -> None:
        for _ in range(2):
            async with httpx.AsyncClient(base_url=cluster.url, timeout=DEADLINE_S) as http:
                asked = {**load.body("only", 0), "stream": True}
                async with http.stream("POST", "/v1/chat/completions", json=asked) as reply:
                    await anext(line async for line in reply.aiter_lines() if "word" in line)  # it is at work
                    for process in processes("model:only"):
                        process.kill()

    outcomes = await load.run(cluster.url, 120, at_once=8, meanwhile=kill, model="only")
    assert outcomes.total() == 120
    assert set(outcomes) <= {"ok", "error event"}
    assert outcomes["error event"] <= 2 * 8


def test_nobody_is_held_longer_than_the_deadline_for_a_model_that_cannot_be_woken(cluster: Cluster) -> None:
    asked, deadline_s = time.monotonic(), 10
    reply = cluster.client.post(
        "/v1/chat/completions",
        json=chat("hello", model="nowhere"),
        headers={"X-Request-Timeout": f"{deadline_s}"},
        timeout=4 * DEADLINE_S,
    )
    assert reply.status_code in (503, 504), reply.text
    assert deadline_s - 1 < time.monotonic() - asked < DEADLINE_S  # the server's own is longer


def test_a_request_id_is_told_once(cluster: Cluster) -> None:
    reply: httpx.Response = cluster.client.get("/v1/models")
    assert len(reply.headers.get_list("x-request-id")) == 1
