"""SQLite as this server uses it: one file, one thread that writes, another that reads.

What is written is on the disk before anyone is told: WAL with `synchronous=FULL`. Writes that wait for each other share
a transaction and so one `fsync`, each with a savepoint of its own. Several processes may use one file.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from sightline.errors import SightlineError, StorageFull, StorageUnavailable

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]
"""Run in the thread of a connection, inside a transaction; with writes that fail, once more. It closes over values."""

_BUSY_S: Final = 5.0
"""How long another process may write meanwhile."""
_RESERVE_BYTES: Final = 1024 * 1024
_MOST_AT_ONCE: Final = 64
"""Writes in one transaction."""


class Database:
    """Life: made -> `start` -> any number of calls, from any task -> `close`."""

    def __init__(self, path: Path, schema: Sequence[str]) -> None:
        """`schema`: the steps from nothing to what is used now, each a script. A file knows how many it has had."""
        self._path = path
        self._reserve = path.with_name(f"{path.name}-reserve")
        self._schema = schema
        self._writer = _Thread(path, writes=True)
        self._reader = _Thread(path, writes=False)
        self._started = False

    async def start(self) -> None:
        """Makes the file or brings it up to date. Raises `StorageUnavailable`; `StorageFull`."""
        if self._started:
            return
        self._writer.start()
        self._reader.start()
        self._started = True
        await self.write(self._migrate)
        await self.keep_reserve()

    async def close(self) -> None:
        """What was asked for before is done first. Idempotent."""
        if self._started:
            self._started = False
            await asyncio.to_thread(self._reader.close)
            await asyncio.to_thread(self._writer.close)

    async def write(self, work: Work[T], *, makes_room: bool = False) -> T:
        """On the disk when it returns. Raises what `work` raises, and then nothing of it is kept; `StorageUnavailable`,
        `StorageFull`, the latter not where it `makes_room`.

        It is not undone by a cancellation: then it may or may not be done.
        """
        if not makes_room:
            return await self._ask(self._writer, work)
        try:
            return await self._ask(self._writer, work)
        except StorageFull:
            await asyncio.to_thread(self._reserve.unlink, missing_ok=True)
            return await self._ask(self._writer, work)

    async def keep_reserve(self) -> None:
        """Room that is there when nothing else is, for what makes room: also a deletion is written down first."""
        await asyncio.to_thread(_allocate, self._reserve)

    async def read(self, work: Work[T]) -> T:
        """Sees what was written before. Raises as `write`."""
        return await self._ask(self._reader, work)

    async def _ask(self, thread: _Thread, work: Work[T]) -> T:
        if not self._started:
            raise StorageUnavailable(
                "The server keeps nothing now: it is being stopped, or cannot use its data directory, and then its log "
                "says why."
            )
        return await asyncio.wrap_future(thread.ask(work))

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(self._schema):
            raise StorageUnavailable(
                "The data directory was written by a newer version of this server. Use that one, or another directory."
            )
        for script in self._schema[version:]:
            for statement in script.split(";"):
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(self._schema)}")


class _Thread:
    def __init__(self, path: Path, *, writes: bool) -> None:
        self._path = path
        self._writes = writes
        self._asked: queue.SimpleQueue[tuple[Work[Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="sightline-database", daemon=True)
        self._connection: sqlite3.Connection | None = None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join()

    def ask(self, work: Work[T]) -> Future[T]:
        future: Future[T] = Future()
        self._asked.put((work, future))
        return future

    def _run(self) -> None:
        while (first := self._asked.get()) is not None:
            group = [first]
            ends = False
            while len(group) < _MOST_AT_ONCE:
                try:
                    more = self._asked.get_nowait()
                except queue.Empty:
                    break
                if ends := more is None:
                    break
                assert more is not None
                group.append(more)
            self._do(group)
            if ends:
                break
        if self._connection is not None:
            self._connection.close()

    def _do(self, group: list[tuple[Work[Any], Future[Any]]]) -> None:
        group = [(work, future) for work, future in group if future.set_running_or_notify_cancel()]
        if not group:
            return
        try:
            outcomes = self._transaction([work for work, _ in group])
        except Exception:
            # What one of them met may be of its own making: each once more, alone.
            outcomes = [self._alone(work) for work, _ in group]
        for (_, future), outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _alone(self, work: Work[Any]) -> Any:
        try:
            return self._transaction([work])[0]
        except sqlite3.Error as error:
            return _told(error)
        except Exception as error:
            return error

    def _transaction(self, group: list[Work[Any]]) -> list[Any]:
        """What each returned, or the error of ours that it raised."""
        connection = self._connect()
        outcomes: list[Any] = []
        connection.execute("BEGIN IMMEDIATE" if self._writes else "BEGIN")
        try:
            for work in group:
                connection.execute("SAVEPOINT one")
                try:
                    outcomes.append(work(connection))
                except SightlineError as error:
                    connection.execute("ROLLBACK TO one")
                    outcomes.append(error)
                connection.execute("RELEASE one")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return outcomes

    def _connect(self) -> sqlite3.Connection:
        if self._connection is None:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            except OSError:
                raise _unavailable() from None
            connection = sqlite3.connect(self._path, timeout=_BUSY_S, isolation_level=None)
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._connection = connection
        return self._connection


def _allocate(reserve: Path) -> None:
    """Whole or not at all; nothing where it is there."""
    if reserve.exists():
        return
    made = reserve.with_name(f"{reserve.name}.partial")
    try:
        with made.open("wb") as file:
            file.write(bytes(_RESERVE_BYTES))
            file.flush()
            os.fsync(file.fileno())
        made.replace(reserve)
    except OSError:
        with suppress(OSError):
            made.unlink()


def _told(error: sqlite3.Error) -> Exception:
    if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
        return StorageFull("The server's disk is full; nothing was kept. Try again when its operator has made room.")
    if isinstance(error, sqlite3.OperationalError | sqlite3.DatabaseError) and not isinstance(
        error, sqlite3.ProgrammingError | sqlite3.IntegrityError
    ):
        return _unavailable()
    return error


def _unavailable() -> StorageUnavailable:
    return StorageUnavailable(
        "The server cannot read or write its data directory now; nothing was kept. Try again later; its operator may "
        "have to look at the disk."
    )
