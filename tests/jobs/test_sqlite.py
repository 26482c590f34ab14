"""The queue in SQLite: the contract of every store, and what is its own: files, processes, disks that are full."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sightline.errors import StorageFull, StorageUnavailable
from sightline.jobs.database import Database
from sightline.jobs.schema import SCHEMA
from sightline.jobs.sqlite import SqliteStore
from tests.jobs.queue_contract import DONE, Moved, StoreContract, batch, begun, names, told

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock() -> Moved:
    return Moved()


@pytest.fixture
async def store(tmp_path: Path, clock: Moved) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path, clock=clock)
    await store.start()
    yield store
    await store.close()


class TestSqlite(StoreContract):
    pass


async def test_another_process_goes_on_at_once_where_one_was_killed(tmp_path: Path, clock: Moved) -> None:
    killed, other = SqliteStore(tmp_path, clock=clock), SqliteStore(tmp_path, clock=clock)
    await killed.start()
    await other.start()
    made = await begun(killed, batch(), 3)
    await killed.lease("w", 2, 30)
    await other.sweep()
    assert names(await other.lease("v", 1, 30)) == ["c-2"], "the others are in good hands"
    await killed.close()  # as the kernel does: its lock is let go, its leases stand
    await other.sweep()
    leases = await other.lease("v", 9, 30)
    assert names(leases) == ["c-0", "c-1"]
    assert {lease.attempt for lease in leases} == {2}
    assert (await other.get("t", "batch", made.id)).counts.total == 3
    await other.close()


async def test_a_machine_that_was_started_anew_knows_no_lease_of_before(store: SqliteStore, clock: Moved) -> None:
    await begun(store, batch(), 1)
    await store.lease("w", 1, 30)
    clock.hands[1:] = [1.0, 1.0]
    await store.sweep()
    assert names(await store.lease("w", 1, 30)) == ["c-0"]


async def test_a_full_disk_loses_nothing_that_was_accepted(tmp_path: Path, clock: Moved) -> None:
    database = Database(tmp_path / "sightline.db", SCHEMA)
    store = SqliteStore(tmp_path, database=database, clock=clock)
    await store.start()
    made = await begun(store, batch(), 2)
    (lease,) = await store.lease("w", 1, 30)

    def fill(db: sqlite3.Connection) -> int:
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
        return int(pages)

    await database.write(fill)
    with pytest.raises(StorageFull):
        await store.create(batch("b", metadata={"k": "x" * 500_000}))
    await database.write(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
    assert [one.id for one in await store.list("t", "batch", limit=9)] == [made.id]
    assert await store.complete(lease, DONE)
    assert await told(store, made.id) == [("c-0", "200")]
    await store.close()


async def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageUnavailable):
        await SqliteStore(tmp_path / "file").start()
    (tmp_path / "sightline.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StorageUnavailable):
        await SqliteStore(tmp_path).start()


async def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "sightline.db") as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StorageUnavailable, match="newer version"):
        await SqliteStore(tmp_path).start()


async def test_writes_that_come_together_fail_alone(tmp_path: Path) -> None:
    database = Database(tmp_path / "sightline.db", ("CREATE TABLE t (x INTEGER PRIMARY KEY)",))
    await database.start()

    async def put(x: int) -> int:
        return await database.write(lambda db: db.execute("INSERT INTO t VALUES (?)", (x,)).rowcount)

    ended = await asyncio.gather(*(put(x) for x in (1, 2, 2, 3)), return_exceptions=True)
    assert [one if isinstance(one, int) else type(one) for one in ended] == [1, 1, sqlite3.IntegrityError, 1]
    assert await database.read(lambda db: [row["x"] for row in db.execute("SELECT x FROM t")]) == [1, 2, 3]
    await database.close()
    with pytest.raises(StorageUnavailable):
        await database.write(lambda db: None)
