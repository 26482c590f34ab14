"""The queue in Redis: the contract of every store, and what is its own: its clock, its keys, its memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sightline.jobs.redis import RedisStore
from sightline.jobs.redis_connection import Connection
from tests.jobs.queue_contract import Moved, StoreContract

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> Moved:
    return Moved()


@pytest.fixture
async def store(tmp_path: Path, clock: Moved, redis_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(Connection(redis_url), tmp_path, clock=clock)
    await store.start()
    yield store
    await store.close()


class TestRedis(StoreContract):
    pass
