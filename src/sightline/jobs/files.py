"""Files that clients send once and refer to by an id; and what batches write.

The bytes are blobs, each content once, with as many holders as there are files of it; what is said of a file is in a
table. A file is there when both are: first the blob, then the row. What a crash leaves in between nobody refers to, and
`sweep` takes it away.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sightline.errors import FileTooLarge, ObjectNotFound, QuotaExceeded, SightlineError
from sightline.jobs import Clock
from sightline.jobs.blobs import Blobs
from sightline.jobs.database import Database

log = logging.getLogger(__name__)

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals", "batch_output"]

_ID: Final = re.compile(r"file-[A-Za-z0-9]{22,64}")
_ORPHAN_AGE_S: Final = 86_400.0
"""Of a blob that no row names: it may be that of an upload under way."""
_NAME_CHARACTERS: Final = 512


@dataclass(frozen=True, slots=True)
class File:
    id: str
    tenant: str
    filename: str
    """The client's, to be shown: never a path."""
    purpose: str
    bytes: int
    created_at: int
    """Seconds since 1970."""
    expires_at: int | None
    blob: str


@dataclass(frozen=True, slots=True)
class Quota:
    file_bytes: int
    """Of one file, at most."""
    tenant_bytes: int
    """Of all that a tenant keeps, each file counted in full."""


def new_file_id() -> str:
    """`file-` and 128 random bits."""
    return f"file-{os.urandom(16).hex()}"


class Files:
    """Every method takes the tenant who asks, and sees nothing of others: `ObjectNotFound`. All raise
    `StorageUnavailable` or `StorageFull`."""

    def __init__(self, database: Database, blobs: Blobs, quota: Quota, *, clock: Clock | None = None) -> None:
        self._database = database
        self._blobs = blobs
        self._quota = quota
        self._clock = clock or Clock()

    async def create(
        self,
        tenant: str,
        filename: str,
        purpose: Purpose,
        chunks: AsyncIterator[bytes],
        *,
        kept_s: int | None = None,
        file_id: str | None = None,
        limited: bool = True,
    ) -> File:
        """Safe on the disk when it returns. With a `file_id` that is there, nothing happens and that file is returned.

        Raises `FileTooLarge` and `QuotaExceeded`, unless not `limited`.
        """
        key, now = os.urandom(16).hex(), int(self._clock.wall())
        counted = _Counted(chunks, self._quota.file_bytes if limited else None)
        await self._blobs.put(key, counted.chunks())
        quota = self._quota.tenant_bytes if limited else None
        file = File(
            file_id or new_file_id(),
            tenant,
            "".join(c for c in filename if c.isprintable())[:_NAME_CHARACTERS] or "file",
            purpose,
            counted.bytes,
            now,
            None if kept_s is None else now + kept_s,
            key,
        )
        try:
            kept = await self._database.write(lambda db: _insert(db, file, counted.digest, quota))
        except SightlineError:
            await self._blobs.delete(key)
            raise
        if kept.blob != key:
            await self._blobs.delete(key)
        return kept

    async def get(self, tenant: str, file_id: str) -> File:
        now = self._clock.wall()
        return await self._database.read(lambda db: _find(db, tenant, file_id, now))

    async def list(
        self, tenant: str, *, purpose: str | None = None, limit: int, after: str | None = None, ascending: bool = False
    ) -> Sequence[File]:
        """By when they were made. Raises `ObjectNotFound` where there is no file `after`."""
        now = self._clock.wall()

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

    def content(self, file: File) -> AsyncIterator[bytes]:
        return self._blobs.read(file.blob)

    async def read(self, tenant: str, file_id: str, max_bytes: int) -> bytes:
        """All of it. Raises `FileTooLarge`."""
        file = await self.get(tenant, file_id)
        if file.bytes > max_bytes:
            raise FileTooLarge(f"The file has {file.bytes} bytes; at most {max_bytes} are taken here.")
        return b"".join([chunk async for chunk in self.content(file)])

    async def delete(self, tenant: str, file_id: str) -> None:
        now = self._clock.wall()

        def work(db: sqlite3.Connection) -> str | None:
            return _delete(db, _find(db, tenant, file_id, now))

        if (blob := await self._database.write(work)) is not None:
            await self._blobs.delete(blob)

    async def sweep(self) -> None:
        """Takes away what has expired, and what crashes have left. To be called from time to time."""
        now = self._clock.wall()

        def expired(db: sqlite3.Connection) -> Sequence[File]:
            return [_to_file(row) for row in db.execute("SELECT * FROM files WHERE expires_at <= ?", (now,))]

        def work(db: sqlite3.Connection) -> Sequence[str | None]:
            return [_delete(db, file) for file in expired(db)]

        if await self._database.read(expired):
            for blob in await self._database.write(work):
                if blob is not None:
                    await self._blobs.delete(blob)

    async def sweep_orphans(self) -> None:
        old = {key.removesuffix(".partial"): key for key in await self._blobs.old_keys(_ORPHAN_AGE_S)}

        def known(db: sqlite3.Connection) -> frozenset[str]:
            return frozenset(row["key"] for row in db.execute("SELECT key FROM blobs"))

        if old:
            for key in old.keys() - await self._database.read(known):
                log.info("a blob that no file refers to is removed: %s", key)
                await self._blobs.delete(old[key])


class _Counted:
    """Chunks on their way, counted and hashed."""

    def __init__(self, chunks: AsyncIterator[bytes], most: int | None) -> None:
        self._chunks = chunks
        self._most = most
        self._hash = hashlib.sha256()
        self.bytes = 0

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._chunks:
            self.bytes += len(chunk)
            if self._most is not None and self.bytes > self._most:
                raise FileTooLarge(f"The file is too large: at most {self._most} bytes are kept here.", param="file")
            self._hash.update(chunk)
            yield chunk


# --- inside a transaction ---------------------------------------------------------------------------------------------


def _insert(db: sqlite3.Connection, file: File, digest: str, quota: int | None) -> File:
    there = db.execute("SELECT * FROM files WHERE id = ?", (file.id,)).fetchone()
    if there is not None:
        return _to_file(there)
    if quota is not None:
        (used,) = db.execute("SELECT coalesce(sum(bytes), 0) FROM files WHERE tenant = ?", (file.tenant,)).fetchone()
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
    row = None
    if _ID.fullmatch(file_id):
        row = db.execute(
            "SELECT * FROM files WHERE id = ? AND tenant = ? AND (expires_at IS NULL OR expires_at > ?)",
            (file_id, tenant, now),
        ).fetchone()
    if row is None:
        raise ObjectNotFound(f"There is no file {file_id[:128]!r}.")
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
