"""The queue in Redis: the contract of every store, and what is its own: clock, keys, memory, and being away."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.asyncio.connection import AbstractConnection

from sightline.errors import InvalidRequest, StorageFull, StorageUnavailable
from sightline.jobs import KEPT_S, Clock, Item
from sightline.jobs.blobs import LocalBlobs
from sightline.jobs.files import Files, Quota
from sightline.jobs.files_redis import RedisIndex
from sightline.jobs.redis import RedisStore
from sightline.jobs.redis_connection import Connection, describe
from tests.jobs.queue_contract import DONE, Moved, StoreContract, batch, begun, items, names, told
from tests.jobs.redis_server import RedisServer, needs_redis

pytestmark = [pytest.mark.anyio, needs_redis]

COUNTERS = {b"sightline:place", b"sightline:fence", b"sightline:clock", b"sightline:workers"}
"""Keys that stay when there is nothing to know: of a fixed size, or as many as there are workers."""


@pytest.fixture
def clock() -> Moved:
    return Moved()


@pytest.fixture
async def store(tmp_path: Path, clock: Moved, redis_url: str) -> AsyncIterator[RedisStore]:
    store = RedisStore(Connection(redis_url), tmp_path, clock=clock)
    await store.start()
    yield store
    await store.close()


@pytest.fixture
def redis(redis_url: str) -> Any:
    with Redis.from_url(redis_url) as redis:
        yield redis
        redis.config_set("maxmemory", 0)
        redis.config_set("min-replicas-to-write", 0)


class TestRedis(StoreContract):
    pass


@dataclass(frozen=True, slots=True)
class WallOnly(Moved):
    """Redis's time, moved by a test; the clock of leases is then the one in queue.lua."""

    def monotonic(self) -> Any:
        return ""


async def test_a_clock_that_is_set_by_an_hour_moves_no_lease(tmp_path: Path, redis_url: str) -> None:
    clock = WallOnly()
    store, other = (RedisStore(Connection(redis_url), tmp_path / name, clock=clock) for name in "ab")
    await store.start()
    await other.start()
    made = await begun(store, batch(), 3)
    await store.sweep()
    leases = await store.lease("w", 1, 30)
    for jump in (3600, -7200, 3600):
        clock.jump(jump)
        await other.sweep()
        await store.sweep()
        assert await store.renew(leases, 30) == []
    for _ in range(4):  # it is silent for as long as a worker may be
        clock.jump(1)
        await other.sweep()
    assert names(await other.lease("v", 9, 30)) == ["c-1", "c-2"]
    for _ in range(2):
        clock.jump(1)
        await other.sweep()
    assert names(await other.lease("v", 9, 30)) == ["c-0"], "its worker is gone"
    assert (await other.get("t", "batch", made.id)).counts.total == 3
    await store.close()
    await other.close()


async def test_another_process_goes_on_at_once_where_one_of_this_machine_was_killed(
    tmp_path: Path, clock: Moved, redis_url: str
) -> None:
    killed, other = (RedisStore(Connection(redis_url), tmp_path, clock=clock) for _ in "ab")
    await killed.start()
    await other.start()
    await begun(killed, batch(), 3)
    await killed.lease("w", 2, 30)
    await other.sweep()
    assert names(await other.lease("v", 1, 30)) == ["c-2"], "the others are in good hands"
    await killed.close()  # as the kernel does: its lock is let go, its leases stand
    await other.sweep()
    leases = await other.lease("v", 9, 30)
    assert names(leases) == ["c-0", "c-1"]
    assert {lease.attempt for lease in leases} == {2}
    await other.close()


async def test_leases_whose_reply_was_lost_are_no_try(
    store: RedisStore, clock: Moved, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(self: Connection, *args: Any, **options: Any) -> Any:
        await run(self, *args, **options)
        raise StorageUnavailable("The answer was lost.")

    run = Connection.run
    made = await begun(store, batch(), 5)
    (known,) = await store.lease("w", 1, 30)
    with monkeypatch.context() as patch:
        patch.setattr(Connection, "run", lost)
        with pytest.raises(StorageUnavailable):
            await store.lease("w", 2, 30)
    leases = await store.lease("w", 9, 30)
    assert names(leases) == ["c-1", "c-2", "c-3", "c-4"]
    assert {lease.attempt for lease in leases} == {1}
    for lease in (known, *leases):
        assert await store.complete(lease, DONE)
    assert (await store.get("t", "batch", made.id)).counts.completed == 5


async def test_nothing_is_kept_for_ever(store: RedisStore, clock: Moved, redis: Any) -> None:
    tenant = "some:body/&"
    made = await begun(store, batch(tenant=tenant), 3)
    assert {key.split(b":")[2] for key in redis.keys("sightline:batch*")} == {b"some%3Abody%2F%26"}
    for lease in await store.lease("w", 2, 30):
        await store.complete(lease, DONE)
    (lease,) = await store.lease("w", 1, 30)
    await store.give_back(lease, DONE, 1000)
    job = batch("job", tenant=tenant, kind="analysis")
    await store.create(job, [Item(0, "", b"{}")], key="k", digest="d")
    await store.cancel(tenant, "batch", made.id)
    await store.finish(made.id, has_output=True, has_errors=True)
    await store.cancel(tenant, "analysis", job.id)
    base = f"sightline:batch:some%3Abody%2F%26:{made.id}".encode()
    assert redis.keys(base + b"*") == [base], "its lines are in the files"
    clock.pass_(KEPT_S)
    await store.sweep()
    await store.lease("w", 1, 30)
    left = set(redis.keys("*")) - COUNTERS
    assert left == {b"sightline:key:some%3Abody%2F%26:analysis:k"}
    assert 86_000 < redis.ttl(left.pop()) <= 86_400
    assert await store.list(tenant, "batch", limit=9) == []


async def test_full_memory_refuses_what_is_new_and_ends_what_was_accepted(
    store: RedisStore, clock: Moved, redis: Any, tmp_path: Path
) -> None:
    connection = Connection(f"redis://127.0.0.1:{redis.connection_pool.connection_kwargs['port']}/0")
    index = RedisIndex(connection)
    await index.settle("here")
    files = Files(index, LocalBlobs(tmp_path / "files"), Quota(10**6, 10**9))

    async def content() -> AsyncIterator[bytes]:
        yield b"x"

    file = await files.create("t", "a", "vision", content())
    made = await begun(store, batch(), 3)
    await store.create(batch("waits"))
    leases = await store.lease("w", 1, 30)
    redis.config_set("maxmemory", 1)
    with pytest.raises(StorageFull):
        await store.create(batch("b"))
    with pytest.raises(StorageFull):
        await store.create(batch("c", kind="analysis"), [Item(0, "", b"{}")], key="k", digest="d")
    with pytest.raises(StorageFull):
        await store.add_items("batch_waits", items(1))
    with pytest.raises(StorageFull):
        await files.create("t", "b", "vision", content())
    await files.delete("t", file.id)
    await store.sweep()
    assert await store.renew(leases, 30) == []
    assert await store.complete(leases[0], DONE)
    for lease in await store.lease("w", 9, 30):
        assert await store.complete(lease, DONE)
    assert len(await told(store, made.id)) == 3
    assert await store.due("w", 30) is not None
    await store.finish(made.id, has_output=True, has_errors=False)
    assert (await store.get("t", "batch", made.id)).status == "completed"
    await store.cancel("t", "batch", "batch_waits")
    redis.config_set("maxmemory", 0)
    assert (await store.create(batch("b"))).id == "batch_b"
    assert [one.id for one in await store.list("t", "batch", limit=9)] == ["batch_b", "batch_waits", made.id]
    await connection.close()


async def test_a_redis_that_takes_no_writes_is_told(store: RedisStore, redis: Any) -> None:
    made = await begun(store, batch())
    redis.config_set("min-replicas-to-write", 1)
    with pytest.raises(StorageUnavailable):
        await store.create(batch("b"))
    assert (await store.get("t", "batch", made.id)).status == "in_progress", "it can still be read"
    redis.config_set("min-replicas-to-write", 0)
    await store.create(batch("b"))


async def test_one_that_would_throw_jobs_away_is_refused(redis_url: str, redis: Any) -> None:
    redis.config_set("maxmemory", 10**9)
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(StorageUnavailable, match="noeviction"):
            await Connection(redis_url).start()
    finally:
        redis.config_set("maxmemory-policy", "noeviction")


async def test_what_is_not_safe_is_told_at_the_start(
    redis_url: str, redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await Connection(redis_url).start()
    assert not caplog.records
    redis.config_set("appendfsync", "everysec")
    try:
        await Connection(redis_url).start()
    finally:
        redis.config_set("appendfsync", "always")
    assert "appendfsync always" in caplog.text


async def test_a_redis_that_is_away_is_told_within_a_second_and_has_everything_when_it_is_back(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis").start()
    store = RedisStore(Connection(server.url), tmp_path)
    await store.start()
    try:
        made = await store.create(batch(), key="k", digest="d")
        await store.create(batch("b"))
        server.kill()
        await _is_told(store)
        server.start()
        assert (await store.create(batch("c"), key="k", digest="d")).id == made.id
        assert [one.id for one in await store.list("t", "batch", limit=9)] == ["batch_b", made.id]
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        await _is_told(store)
        server.process.send_signal(signal.SIGCONT)
        assert (await store.get("t", "batch", made.id)).id == made.id
    finally:
        await store.close()
        server.kill()


async def _is_told(store: RedisStore) -> None:
    began = time.monotonic()
    ends = await asyncio.gather(
        *(store.get("t", "batch", "batch_a") for _ in range(50)), store.create(batch("x")), return_exceptions=True
    )
    assert time.monotonic() - began < 1.0
    assert {type(end) for end in ends} == {StorageUnavailable}


async def test_a_connection_that_is_found_closed_is_made_anew_also_in_uvloops_words(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = 2

    async def send(self: Any, *args: Any, **options: Any) -> None:
        nonlocal closed
        if closed:
            closed -= 1
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True reading=False 0x55>")
        await send_packed_command(self, *args, **options)

    send_packed_command = AbstractConnection.send_packed_command
    connection = Connection(redis_url)
    await connection.start()
    monkeypatch.setattr(AbstractConnection, "send_packed_command", send)
    with pytest.raises(StorageUnavailable):
        await connection.call("GET", "x")
    closed = 1
    assert await connection.call("GET", "x") is None
    await connection.close()


async def test_a_password_is_asked_for_and_never_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = RedisServer(tmp_path / "redis", "--requirepass", "s3cret-word").start()
    try:
        right = f"redis://:s3cret-word@127.0.0.1:{server.port}/0"
        connection = Connection(right)
        await connection.start()
        await connection.close()
        wrong = Connection(f"redis://:s3cret-wrong@127.0.0.1:{server.port}/0")
        with pytest.raises(StorageUnavailable) as refused:
            await wrong.start()
        await wrong.close()
        assert "s3cret" not in refused.value.message + caplog.text
        assert describe(right) == f"redis://127.0.0.1:{server.port}/0"
    finally:
        server.kill()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A key, and what it has signed for this machine itself."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost -addext"
    files = ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*made.split(), "subjectAltName=IP:127.0.0.1", *files], check=True, capture_output=True)
    return key, certificate


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
async def test_with_tls_only_a_redis_whose_certificate_is_known_is_asked(tmp_path: Path) -> None:
    key, certificate = make_certificate(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    tls = ("--tls-cert-file", str(certificate), "--tls-key-file", str(key), "--tls-auth-clients", "no")
    server = RedisServer(tmp_path / "redis", "--tls-port", str(port), *tls).start()
    try:
        known = Connection(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}")
        await known.start()
        await known.close()
        unknown = Connection(f"rediss://127.0.0.1:{port}/0")
        with pytest.raises(StorageUnavailable):
            await unknown.start()
        await unknown.close()
    finally:
        server.kill()


@pytest.mark.parametrize("url", ["http://127.0.0.1", "redis://h:port/0", "redis"])
def test_an_address_that_is_none_is_told(url: str) -> None:
    with pytest.raises(InvalidRequest, match="redis://HOST:PORT/DB"):
        Connection(url)


async def test_files_that_others_have_elsewhere_are_told_of(redis_url: str, tmp_path: Path, clock: Clock) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"x"

    connection = Connection(redis_url)
    here, there = RedisIndex(connection), RedisIndex(connection)
    await here.settle("s3://bucket")
    await there.settle("directory of another machine")  # nobody has kept anything yet
    with pytest.raises(StorageUnavailable, match=r"files\.url"):
        await Files(here, LocalBlobs(tmp_path), Quota(10, 10)).create("t", "a", "vision", content())
    await Files(there, LocalBlobs(tmp_path), Quota(10, 10)).create("t", "a", "vision", content())
    with pytest.raises(StorageUnavailable, match=r"files\.url"):
        await here.settle("s3://bucket")
    await connection.close()
