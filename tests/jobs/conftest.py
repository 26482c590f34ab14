"""One Redis for the tests of a session; each test finds it empty."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.jobs.redis_server import BINARY, WHY_NOT, RedisServer


@pytest.fixture(scope="session")
def redis_session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    if BINARY is None:
        pytest.skip(WHY_NOT)
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    yield server
    server.stop()


@pytest.fixture
def redis_url(redis_session: RedisServer) -> str:
    from redis import Redis

    with Redis.from_url(redis_session.url) as redis:
        redis.flushall()
    return redis_session.url
