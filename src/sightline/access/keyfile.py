"""Where keys are kept, and what they have used: one SQLite file that its owner alone may read.

Everything here is quick and blocks: commands call it as it stands, a server from a thread. A server looks once a second
whether there is something new, so a key that is revoked is refused within about that time.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from sightline.access.keys import Key
from sightline.access.limits import DAY_S, Used
from sightline.config import KeyLimits
from sightline.errors import InvalidRequest, ObjectNotFound, StorageUnavailable

_VERSION: Final = 1
_SCHEMA: Final = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    digest BLOB NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    models TEXT NOT NULL,
    admin INTEGER NOT NULL,
    limits TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER
);
CREATE TABLE used (
    key TEXT NOT NULL,
    day INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    tokens INTEGER NOT NULL,
    pictures INTEGER NOT NULL,
    PRIMARY KEY (key, day)
) WITHOUT ROWID
"""
_BUSY_S: Final = 5.0
_DAYS_KEPT: Final = 92

Usage = Mapping[tuple[str, int], Used]
"""By the key's id and the day (since 1970, UTC)."""


class KeyFile:
    """One connection a call: nothing is held between them, and any thread may call."""

    def __init__(self, path: Path) -> None:
        """Touches no disk."""
        self.path = path

    def load(self) -> list[Key]:
        """Every key, oldest first, the revoked too; none where there is no file. Raises `StorageUnavailable`."""
        if not self.path.exists():
            return []
        with self._connected() as db:
            return [_to_key(row) for row in db.execute("SELECT * FROM keys ORDER BY created_at, rowid")]

    def create(self, key: Key) -> None:
        """Raises `InvalidRequest` where a key that is valid has the name; `StorageUnavailable`."""
        with self._connected(make=True) as db:
            taken = db.execute("SELECT 1 FROM keys WHERE name = ? AND revoked_at IS NULL", (key.name,)).fetchone()
            if taken is not None:
                raise InvalidRequest(
                    f"There is a key named {key.name} already. Revoke it first (sightline keys revoke), or choose "
                    "another name.",
                    param="name",
                )
            row = (
                key.id, key.name, key.digest, key.tenant, msgspec.json.encode(key.models).decode(), key.admin,
                msgspec.json.encode(key.limits).decode(), key.created_at, key.expires_at, key.revoked_at,
            )  # fmt: skip
            db.execute(f"INSERT INTO keys VALUES ({', '.join('?' * len(row))})", row)

    def revoke(self, key: str, now: float) -> Key:
        """By its id, or by its name where one valid key has it. Idempotent. Raises `ObjectNotFound`;
        `StorageUnavailable`."""
        found = [k for k in self.load() if key == k.id or (key == k.name and k.revoked_at is None)]
        if not found:
            raise ObjectNotFound(f"There is no key {key[:64]!r}. sightline keys list shows them.")
        with self._connected() as db:
            db.execute("UPDATE keys SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", (int(now), found[0].id))
        return next(k for k in self.load() if k.id == found[0].id)

    def used(self, day: int) -> dict[str, Used]:
        """By the keys' ids. Raises `StorageUnavailable`."""
        if not self.path.exists():
            return {}
        with self._connected() as db:
            return {row["key"]: _to_used(row) for row in db.execute("SELECT * FROM used WHERE day = ?", (day,))}

    def add(self, usage: Usage) -> dict[tuple[str, int], Used]:
        """Keeps what was used on top of what is kept; all of it then. Raises `StorageUnavailable`."""
        kept = {}
        with self._connected(make=True) as db:
            for (key, day), used in usage.items():
                row = db.execute(
                    "INSERT INTO used VALUES (?, ?, ?, ?, ?) ON CONFLICT (key, day) DO UPDATE SET"
                    " requests = requests + excluded.requests, tokens = tokens + excluded.tokens,"
                    " pictures = pictures + excluded.pictures RETURNING *",
                    (key, day, used.requests, used.tokens, used.pictures),
                ).fetchone()
                kept[key, day] = _to_used(row)
            oldest = max((day for _, day in usage), default=0) - _DAYS_KEPT
            db.execute("DELETE FROM used WHERE day < ?", (oldest,))
        return kept

    def stamp(self) -> Sequence[int]:
        """Another where something has changed since; () where there is no file. One system call."""
        try:
            stat = os.stat(self.path)
        except OSError:
            return ()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    @contextlib.contextmanager
    def _connected(self, *, make: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction, on the disk at its end. With `make`, the file is made where it is not."""
        try:
            if make:
                self._make()
            db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
            with contextlib.closing(db):
                db.row_factory = sqlite3.Row
                db.execute("BEGIN IMMEDIATE" if make else "BEGIN")
                self._migrate(db)
                yield db
                db.execute("COMMIT")
        except (sqlite3.Error, OSError) as error:
            raise StorageUnavailable(f"The file of keys cannot be used: {self.path}: {error}.") from None

    def _make(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    def _migrate(self, db: sqlite3.Connection) -> None:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise StorageUnavailable(f"{self.path} was written by a newer version of Sightline. Use that one.")
        if version == 0:
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_VERSION}")


def today() -> int:
    """Days since 1970, UTC."""
    return int(time.time() // DAY_S)


def _to_key(row: sqlite3.Row) -> Key:
    return Key(
        id=row["id"],
        name=row["name"],
        digest=row["digest"],
        tenant=row["tenant"],
        models=tuple(msgspec.json.decode(row["models"])),
        admin=bool(row["admin"]),
        limits=msgspec.json.decode(row["limits"], type=KeyLimits),
        created_at=row["created_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )


def _to_used(row: sqlite3.Row) -> Used:
    return Used(row["requests"], row["tokens"], row["pictures"])
