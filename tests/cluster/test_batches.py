"""Batches of a cluster: taken and told of by every replica of the ingress, kept in Redis, done by workers elsewhere."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from PIL import Image
from redis import Redis

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

from tests.cluster.real import Cluster  # noqa: E402  # it needs Ray
from tests.jobs.kill import TERMINAL, Worker  # noqa: E402
from tests.jobs.redis_server import RedisServer, needs_redis  # noqa: E402

_PATIENCE_S = 240.0
COLOURS = ("red", "blue", "white")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.stop()


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def upload(client: openai.OpenAI, colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (56, 56), colour).save(file, "PNG")
    return client.files.create(file=(f"{colour}.png", file.getvalue()), purpose="vision").id


def to_lines(pictures: list[str], total: int) -> bytes:
    def line(number: int) -> dict[str, object]:
        shown = {"type": "image_url", "image_url": {"file_id": pictures[number % len(pictures)]}}
        content = [shown, {"type": "text", "text": f"number {number}"}]
        body = {"model": "m", "messages": [{"role": "user", "content": content}]}
        return {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}

    return "\n".join(json.dumps(line(number)) for number in range(total)).encode()


@needs_redis
def test_a_batch_of_the_ingress_is_done_by_workers_one_of_which_is_killed(
    machines: Cluster, tmp_path: Path, redis: RedisServer
) -> None:
    """One worker asks the cluster, the other has an engine of its own. The first is killed with lines in hand."""
    total, data = 90, tmp_path / "data"
    settings = {
        "models": [{"name": "m", "engine": "fake", "options": {"step_s": 0.05}}],
        "jobs": redis.url,
        "files": {"url": data.as_uri()},
        "data_dir": str(data),
        "batches": {"max_concurrent": 0},
    }
    actor = {"ray_actor_options": {"num_cpus": 0.1}}
    with Redis.from_url(redis.url) as queue:
        machines.deploy({"settings": settings, "deployments": {"m": actor}, "ingress": {"num_replicas": 2, **actor}})
        asking = Worker(data, redis.url, server=machines.url)
        hosting = Worker(data, redis.url, step_s=0.05)
        client = openai.OpenAI(base_url=f"{machines.url}/v1", api_key="none", timeout=60)
        try:
            pictures = [upload(client, colour) for colour in COLOURS]
            file = client.files.create(file=("in.jsonl", to_lines(pictures, total)), purpose="batch")
            batch = client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            results = f"sightline:batch::{batch.id}:results"
            assert client.batches.retrieve(batch.id).request_counts.completed == 0, "the ingress itself does no lines"
            asking.start()
            until(lambda: queue.hlen(results), "the worker does nothing")
            asking.kill()
            done = queue.hlen(results)
            assert done < total
            hosting.start()
            asking.start()
            until(lambda: client.batches.retrieve(batch.id).status in TERMINAL, "it does not end")
            over = client.batches.retrieve(batch.id)
            assert (over.status, over.request_counts.completed) == ("completed", total), over
            assert over.output_file_id is not None
            told = [json.loads(line) for line in client.files.content(over.output_file_id).text.splitlines()]
        finally:
            for worker in (asking, hosting):
                if worker.is_alive:
                    worker.kill()
    said = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in told}
    assert len(told) == len(said) == total, "a line is lost, or there twice"
    for number in range(total):
        colour = COLOURS[number % 3]
        assert said[f"r-{number}"] == f"I see 1 picture: 56x56 mostly {colour}. You said: number {number}"
