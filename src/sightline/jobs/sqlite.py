"""The queue in SQLite: nothing to install. Several servers on one machine may share it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import astuple
from pathlib import Path

from sightline.errors import StorageUnavailable
from sightline.jobs import (
    KEPT_S,
    KEY_KEPT_S,
    MAX_ATTEMPTS,
    TERMINAL,
    Backlog,
    Batch,
    Clock,
    Item,
    Kind,
    Lease,
    LineError,
    Result,
    exhausted,
)
from sightline.jobs import sqlite_steps as steps
from sightline.jobs.database import Database
from sightline.jobs.presence import Presence
from sightline.jobs.schema import SCHEMA


class SqliteStore:
    """A `Store` (the package says what that is)."""

    def __init__(
        self,
        directory: Path,
        *,
        database: Database | None = None,
        kept_s: int = KEPT_S,
        clock: Clock | None = None,
    ) -> None:
        """`database`: one with `SCHEMA` that others use too; it is started and closed here as well."""
        self._kept_s = kept_s
        self._database = database or Database(directory / "sightline.db", SCHEMA)
        self._presence = Presence(directory / "workers")
        self._clock = clock or Clock()

    async def start(self) -> None:
        try:
            self._presence.begin()
        except OSError as error:
            raise StorageUnavailable(
                f"The server cannot write its data directory: {error.strerror}. Name another with --data-dir."
            ) from None
        await self._database.start()

    async def close(self) -> None:
        await self._database.close()
        self._presence.end()

    # --- what clients ask for ---------------------------------------------------------------------------------------

    async def create(
        self, batch: Batch, items: Sequence[Item] = (), *, key: str | None = None, digest: str = ""
    ) -> Batch:
        now = self._clock.wall()

        def work(db: sqlite3.Connection) -> Batch:
            known = None if key is None else steps.find_by_key(db, batch.tenant, batch.kind, key, digest, now)
            if known is not None:
                return known
            place = steps.insert(db, batch)
            if key is not None:
                db.execute(
                    "INSERT OR REPLACE INTO keys (tenant, kind, key, digest, batch, at) VALUES (?, ?, ?, ?, ?, ?)",
                    (batch.tenant, batch.kind, key, digest, place, now),
                )
            if items:
                steps.add(db, place, items)
                steps.begin(db, place, batch.model, now)
            return steps.get(db, place)

        return await self._database.write(work)

    async def find_by_key(self, tenant: str, kind: Kind, key: str, digest: str) -> Batch | None:
        now = self._clock.wall()
        return await self._database.read(lambda db: steps.find_by_key(db, tenant, kind, key, digest, now))

    async def get(self, tenant: str, kind: Kind, batch_id: str) -> Batch:
        return await self._database.read(lambda db: steps.get(db, steps.find(db, tenant, kind, batch_id)))

    async def list(self, tenant: str, kind: Kind, *, limit: int, after: str | None = None) -> Sequence[Batch]:
        def work(db: sqlite3.Connection) -> list[Batch]:
            before = 2**62 if after is None else steps.find(db, tenant, kind, after)
            rows = db.execute(
                "SELECT * FROM batches WHERE tenant = ? AND kind = ? AND place < ? ORDER BY place DESC LIMIT ?",
                (tenant, kind, before, limit),
            )
            return [steps.to_batch(row) for row in rows]

        return await self._database.read(work)

    async def cancel(self, tenant: str, kind: Kind, batch_id: str) -> Batch:
        now = self._clock.wall()

        def work(db: sqlite3.Connection) -> Batch:
            place = steps.find(db, tenant, kind, batch_id)
            batch = steps.get(db, place)
            if batch.status in TERMINAL or batch.ending is not None or batch.status == "cancelling":
                return batch
            steps.enter(db, place, "cancelling", now)
            if batch.status != "validating":
                steps.end(db, place, "cancelled", now)
            return steps.get(db, place)

        return await self._database.write(work)

    async def results(self, batch_id: str) -> AsyncIterator[tuple[Item, Result]]:
        after = -1
        while True:
            page = await self._database.read(lambda db, after=after: steps.results(db, batch_id, after))  # type: ignore[misc]
            for found in page:
                yield found
            if len(page) < steps.PAGE:
                return
            after = page[-1][0].index

    # --- what workers ask for ---------------------------------------------------------------------------------------

    async def add_items(self, batch_id: str, items: Sequence[Item]) -> None:
        def work(db: sqlite3.Connection) -> None:
            if (place := steps.find_not_begun(db, batch_id)) is not None:
                steps.add(db, place, items)

        await self._database.write(work)

    async def begin(self, batch_id: str, *, model: str | None) -> None:
        now = self._clock.wall()

        def work(db: sqlite3.Connection) -> None:
            if (place := steps.find_not_begun(db, batch_id)) is not None:
                steps.begin(db, place, model, now)

        await self._database.write(work)

    async def fail(self, batch_id: str, errors: Sequence[LineError]) -> None:
        now = self._clock.wall()
        told = json.dumps([astuple(error) for error in errors])

        def work(db: sqlite3.Connection) -> None:
            if (place := steps.find_not_begun(db, batch_id)) is not None:
                db.execute("DELETE FROM items WHERE batch = ?", (place,))
                db.execute("UPDATE batches SET errors = ? WHERE place = ?", (told, place))
                steps.enter(db, place, "cancelled" if steps.get(db, place).status == "cancelling" else "failed", now)

        await self._database.write(work)

    async def lease(self, worker: str, limit: int, lease_s: float) -> Sequence[Lease]:
        boot, now = self._clock.boot(), self._clock.monotonic()

        def work(db: sqlite3.Connection) -> list[Lease]:
            taken: list[Lease] = []
            while len(taken) < limit and (row := steps.next_item(db, boot, now)) is not None:
                db.execute(
                    "UPDATE items SET state = 'leased', fence = fence + 1, attempts = attempts + 1, worker = ?,"
                    " boot = ?, at = ? WHERE id = ?",
                    (self._presence.name, boot, now + lease_s, row["id"]),
                )
                taken.append(steps.to_lease(row))
            return taken

        # Asked of the reader first: a worker without work must not make the disk turn.
        if await self._database.read(lambda db: steps.next_batch(db, boot, now)) is None:
            return []
        return await self._database.write(work)

    async def renew(self, leases: Sequence[Lease], lease_s: float) -> Sequence[Lease]:
        boot, until = self._clock.boot(), self._clock.monotonic() + lease_s

        def work(db: sqlite3.Connection) -> list[Lease]:
            set_until = "UPDATE items SET boot = ?, at = ? WHERE id = ? AND fence = ? AND state = 'leased'"
            return [
                lease
                for lease in leases
                if not db.execute(set_until, (boot, until, lease.item.id, lease.fence)).rowcount
            ]

        return await self._database.write(work) if leases else []

    async def complete(self, lease: Lease, result: Result) -> bool:
        now = self._clock.wall()
        return await self._database.write(lambda db: steps.complete(db, lease.item.id, lease.fence, result, now))

    async def give_back(self, lease: Lease, result: Result, delay_s: float, *, tried: bool = True) -> bool:
        boot, at, now = self._clock.boot(), self._clock.monotonic() + delay_s, self._clock.wall()

        def work(db: sqlite3.Connection) -> bool:
            if tried and lease.attempt >= MAX_ATTEMPTS:
                return steps.complete(db, lease.item.id, lease.fence, exhausted(result), now)
            given = db.execute(
                "UPDATE items SET state = 'waiting', fence = fence + 1, attempts = attempts - ?, boot = ?, at = ?"
                " WHERE id = ? AND fence = ? AND state = 'leased'",
                (not tried, boot, at, lease.item.id, lease.fence),
            )
            return given.rowcount == 1

        return await self._database.write(work)

    async def release(self, leases: Sequence[Lease]) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.executemany(
                "UPDATE items SET state = 'waiting', fence = fence + 1, attempts = attempts - 1, at = 0"
                " WHERE id = ? AND fence = ? AND state = 'leased'",
                [(lease.item.id, lease.fence) for lease in leases],
            )

        if leases:
            await self._database.write(work)

    async def sweep(self) -> None:
        boot, monotonic, now = self._clock.boot(), self._clock.monotonic(), self._clock.wall()

        def lost(db: sqlite3.Connection) -> list[sqlite3.Row]:
            rows = db.execute(
                "SELECT id, fence, attempts, worker, boot, at FROM items WHERE state = 'leased'"
            ).fetchall()
            alive = {name: self._presence.is_alive(name) for name in {row["worker"] for row in rows}}
            return [row for row in rows if row["boot"] != boot or row["at"] <= monotonic or not alive[row["worker"]]]

        def overdue(db: sqlite3.Connection) -> list[int]:
            running = "SELECT place FROM batches WHERE ended = 0 AND status = 'in_progress' AND ending IS NULL"
            return [row["place"] for row in db.execute(f"{running} AND expires_at <= ?", (now,))]

        def stale(db: sqlite3.Connection) -> bool:
            keys = "SELECT 1 FROM keys WHERE at <= ? LIMIT 1"
            kept = "SELECT 1 FROM batches WHERE ended_at <= ? LIMIT 1"
            return any(
                db.execute(*found).fetchone() is not None
                for found in ((keys, (now - KEY_KEPT_S,)), (kept, (now - self._kept_s,)))
            )

        def work(db: sqlite3.Connection) -> None:
            for row in lost(db):
                if row["attempts"] >= MAX_ATTEMPTS:
                    steps.complete(db, row["id"], row["fence"], exhausted(Result()), now)
                else:
                    db.execute(
                        "UPDATE items SET state = 'waiting', fence = fence + 1, at = 0 WHERE id = ?", (row["id"],)
                    )
            for place in overdue(db):
                steps.end(db, place, "expired", now)
            db.execute("DELETE FROM keys WHERE at <= ?", (now - KEY_KEPT_S,))
            db.execute("DELETE FROM batches WHERE ended_at <= ?", (now - self._kept_s,))

        if await self._database.read(lambda db: bool(lost(db) or overdue(db) or stale(db))):
            await self._database.write(work)

    async def backlog(self) -> Backlog:
        now = self._clock.wall()

        def work(db: sqlite3.Connection) -> Backlog:
            batches, unfinished, oldest = db.execute(
                "SELECT COUNT(*), SUM(total - completed - failed), MIN(created_at) FROM batches WHERE ended = 0"
            ).fetchone()
            (under_way,) = db.execute("SELECT COUNT(*) FROM items WHERE state = 'leased'").fetchone()
            oldest_s = 0.0 if oldest is None else max(0.0, now - oldest)
            return Backlog(batches, max(0, (unfinished or 0) - under_way), under_way, oldest_s)

        return await self._database.read(work)

    # --- stages -----------------------------------------------------------------------------------------------------

    async def due(self, worker: str, claim_s: float) -> Batch | None:
        boot, now = self._clock.boot(), self._clock.monotonic()
        me = f"{self._presence.name}/{worker}"

        def found(db: sqlite3.Connection) -> sqlite3.Row | None:
            rows = db.execute(
                "SELECT * FROM batches WHERE ended = 0"
                " AND (ending IS NOT NULL OR status IN ('validating', 'cancelling')) ORDER BY place"
            )
            mine: sqlite3.Row | None = None
            for row in rows:
                holder = row["claimed_by"]
                if holder is None or row["claim_boot"] != boot or row["claimed_until"] <= now:
                    return row  # type: ignore[no-any-return]
                if holder == me:
                    mine = mine or row
                elif not self._presence.is_alive(holder.partition("/")[0]):
                    return row  # type: ignore[no-any-return]
            return mine

        def work(db: sqlite3.Connection) -> Batch | None:
            if (row := found(db)) is None:
                return None
            db.execute(
                "UPDATE batches SET claimed_by = ?, claim_boot = ?, claimed_until = ? WHERE place = ?",
                (me, boot, now + claim_s, row["place"]),
            )
            return steps.to_batch(row)

        if await self._database.read(lambda db: found(db) is None):
            return None
        return await self._database.write(work)

    async def finish(self, batch_id: str, *, has_output: bool, has_errors: bool) -> None:
        now = self._clock.wall()

        def work(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT * FROM batches WHERE id = ? AND ended = 0", (batch_id,)).fetchone()
            if row is not None and row["ending"] is not None:
                db.execute(
                    "UPDATE batches SET has_output = ?, has_errors = ? WHERE place = ?",
                    (has_output, has_errors, row["place"]),
                )
                steps.enter(db, row["place"], row["ending"], now)
                db.execute("DELETE FROM items WHERE batch = ?", (row["place"],))  # they are in the files now

        await self._database.write(work)
