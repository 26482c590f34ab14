"""What RQ does for the queue in Redis: it wakes, it carries an id as JSON, and nothing that it carries is ever run."""

from __future__ import annotations

import asyncio
import json
import pickle
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import Queue

from sightline.jobs.redis import RedisStore
from sightline.jobs.redis_bell import QUEUES, Bell
from sightline.jobs.redis_connection import Connection
from tests.jobs.queue_contract import batch, begun
from tests.jobs.redis_server import needs_redis

pytestmark = [pytest.mark.anyio, needs_redis]


@pytest.fixture
async def bell(redis_url: str) -> AsyncIterator[Bell]:
    bell = Bell(redis_url)
    yield bell
    await bell.close()


@pytest.fixture
def redis(redis_url: str) -> Any:
    with Redis.from_url(redis_url) as redis:
        yield redis


async def jobs(redis: Any, count: int) -> list[dict[bytes, bytes]]:
    """Of RQ's, once there are so many."""
    async with asyncio.timeout(10):
        while len(keys := redis.keys("rq:job:*")) < count:
            await asyncio.sleep(0.005)
    return [redis.hgetall(key) for key in keys]


async def test_who_waits_is_woken_by_what_is_new(bell: Bell, redis_url: str, tmp_path: Path) -> None:
    store = RedisStore(Connection(redis_url), tmp_path, bell=Bell(redis_url))
    await store.start()
    listening = asyncio.create_task(bell.listen())
    await begun(store, batch())
    assert await listening
    assert not await bell.listen(), "once"
    await store.close()


async def test_it_carries_an_id_as_json_and_expires(bell: Bell, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("dumps", "loads", "dump", "load", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, never)
    bell.ring("analysis", "job-1")
    (job,) = await jobs(redis, 1)
    assert json.loads(zlib.decompress(job[b"data"])) == ["sightline.jobs.redis_bell.look", None, ["job-1"], {}]
    assert all(not value.startswith(b"\x80") for value in job.values()), "no pickle in any field"
    (key,) = redis.keys("rq:job:*")
    assert 0 < redis.ttl(key) <= 60 or job[b"ttl"] == b"60"
    assert await bell.listen()
    assert redis.keys("rq:job:*") == []


async def test_what_another_puts_there_is_thrown_away_and_not_run(bell: Bell, redis: Any, tmp_path: Path) -> None:
    file = tmp_path / "was-run"
    Queue(QUEUES["batch"], connection=redis).enqueue(open, str(file), "w")  # pickled: RQ's default
    await bell.listen()
    assert not file.exists()
    assert redis.llen(f"rq:queue:{QUEUES['batch']}") == 0


async def test_who_is_let_go_says_nothing(
    bell: Bell, redis: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.jobs.redis_bell._AGAIN_S", 0.0)
    listening = asyncio.create_task(bell.listen())
    async with asyncio.timeout(10):
        while not any(client["cmd"] == "blpop" for client in redis.client_list()):
            await asyncio.sleep(0.005)
    await bell.close()
    await listening
    assert not caplog.records


async def test_a_thousand_rings_are_not_kept(bell: Bell, redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.jobs.redis_bell._MOST", 3)
    for number in range(9):
        bell._enqueue("batch", str(number))
    assert len(await jobs(redis, 3)) == 3


async def test_while_redis_is_away_nobody_is_woken_and_nothing_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.jobs.redis_bell._AGAIN_S", 0.0)
    bell = Bell("redis://127.0.0.1:1/0")
    bell.ring("batch", "x")
    assert not await bell.listen()
    await bell.close()
