"""What is known of files, in the embedded database."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

from sightline.errors import QuotaExceeded
from sightline.jobs.database import Database
from sightline.jobs.files import BATCH_OUTPUT, File, unknown_file


class SqliteIndex:
    """An `Index` (`files.py` says what that is)."""

    def __init__(self, database: Database) -> None:
        """`database`: with `schema.SCHEMA`; whoever gives it starts and closes it."""
        self._database = database

    async def settle(self, place: str) -> None:
        """Nothing: the bytes are beside the database, or where its one owner says."""

    async def insert(self, file: File, digest: str, quota: int | None) -> File:
        return await self._database.write(lambda db: _insert(db, file, digest, quota))

    async def find(self, tenant: str, file_id: str, now: float) -> File:
        return await self._database.read(lambda db: _find(db, tenant, file_id, now))

    async def list(
        self, tenant: str, *, purpose: str | None, limit: int, after: str | None, ascending: bool, now: float
    ) -> Sequence[File]:
        def work(db: sqlite3.Connection) -> Sequence[File]:
            edge = 0 if ascending else 2**62
            if after is not None:
                _find(db, tenant, after, now)
                edge = db.execute("SELECT place FROM files WHERE id = ?", (after,)).fetchone()["place"]
            beyond, order = (">", "ASC") if ascending else ("<", "DESC")
            rows = db.execute(
                f"SELECT * FROM files WHERE tenant = ? AND place {beyond} ? AND (? IS NULL OR purpose = ?)"
                f" AND (expires_at IS NULL OR expires_at > ?) ORDER BY place {order} LIMIT ?",
                (tenant, edge, purpose, purpose, now, limit),
            )
            return [_to_file(row) for row in rows]

        return await self._database.read(work)

    async def delete(self, tenant: str, file_id: str, now: float) -> str | None:
        return await self._database.write(lambda db: _delete(db, _find(db, tenant, file_id, now)), makes_room=True)

    async def expire(self, now: float) -> Sequence[str]:
        def expired(db: sqlite3.Connection) -> Sequence[File]:
            return [_to_file(row) for row in db.execute("SELECT * FROM files WHERE expires_at <= ?", (now,))]

        def work(db: sqlite3.Connection) -> Sequence[str]:
            return [blob for file in expired(db) if (blob := _delete(db, file)) is not None]

        await self._database.keep_reserve()
        return await self._database.write(work, makes_room=True) if await self._database.read(expired) else []

    async def unknown(self, blobs: Iterable[str]) -> Sequence[str]:
        def known(db: sqlite3.Connection) -> frozenset[str]:
            return frozenset(row["key"] for row in db.execute("SELECT key FROM blobs"))

        there = await self._database.read(known)
        return [blob for blob in blobs if blob not in there]


# --- inside a transaction ---------------------------------------------------------------------------------------------


def _insert(db: sqlite3.Connection, file: File, digest: str, quota: int | None) -> File:
    there = db.execute("SELECT * FROM files WHERE id = ?", (file.id,)).fetchone()
    if there is not None:
        return _to_file(there)
    if quota is not None:
        (used,) = db.execute(
            "SELECT coalesce(sum(bytes), 0) FROM files WHERE tenant = ? AND purpose <> ?", (file.tenant, BATCH_OUTPUT)
        ).fetchone()
        if used + file.bytes > quota:
            raise QuotaExceeded(
                f"There is no room for this file: {used} of {quota} bytes are used. Delete files that are not needed.",
                param="file",
            )
    (blob,) = db.execute(
        "INSERT INTO blobs (key, digest, holders) VALUES (?, ?, 1)"
        " ON CONFLICT (digest) DO UPDATE SET holders = holders + 1 RETURNING key",
        (file.blob, digest),
    ).fetchone()
    db.execute(
        "INSERT INTO files (id, tenant, filename, purpose, bytes, created_at, expires_at, blob)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (file.id, file.tenant, file.filename, file.purpose, file.bytes, file.created_at, file.expires_at, blob),
    )
    return _find(db, file.tenant, file.id, 0.0)


def _find(db: sqlite3.Connection, tenant: str, file_id: str, now: float) -> File:
    row = db.execute(
        "SELECT * FROM files WHERE id = ? AND tenant = ? AND (expires_at IS NULL OR expires_at > ?)",
        (file_id, tenant, now),
    ).fetchone()
    if row is None:
        raise unknown_file(file_id)
    return _to_file(row)


def _delete(db: sqlite3.Connection, file: File) -> str | None:
    """The blob that nobody holds any more, if there is one."""
    if not db.execute("DELETE FROM files WHERE id = ?", (file.id,)).rowcount:
        return None
    db.execute("UPDATE blobs SET holders = holders - 1 WHERE key = ?", (file.blob,))
    gone = db.execute("DELETE FROM blobs WHERE key = ? AND holders = 0", (file.blob,)).rowcount
    return file.blob if gone else None


def _to_file(row: sqlite3.Row) -> File:
    return File(
        row["id"],
        row["tenant"],
        row["filename"],
        row["purpose"],
        row["bytes"],
        row["created_at"],
        row["expires_at"],
        row["blob"],
    )
