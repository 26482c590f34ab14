"""Where batches wait and files are known, put together from the settings: embedded in SQLite, or in Redis."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from sightline.config import Settings
from sightline.errors import StorageUnavailable
from sightline.jobs import Store
from sightline.jobs.blobs import Blobs, LocalBlobs, RemoteBlobs
from sightline.jobs.database import Database
from sightline.jobs.files import Files, Index, Quota
from sightline.jobs.files_redis import RedisIndex
from sightline.jobs.files_sqlite import SqliteIndex
from sightline.jobs.presence import name_of
from sightline.jobs.redis import RedisStore
from sightline.jobs.redis_bell import Bell
from sightline.jobs.redis_connection import Connection, describe
from sightline.jobs.schema import SCHEMA
from sightline.jobs.sqlite import SqliteStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Backend:
    """Life: made, which touches nothing -> `start` -> `close`, also of one whose `start` has failed, and again."""

    store: Store
    files: Files
    bell: Bell | None
    """By which another machine wakes this one; None: whoever has work looks by itself."""
    where: str
    """For people."""
    place: FilesPlace
    index: Index

    async def start(self) -> None:
        """Raises `StorageUnavailable`, `StorageFull`."""
        await self.store.start()
        await self.index.settle(await asyncio.to_thread(self.place.name))
        if self.bell is not None and self.place.is_of_this_machine:
            log.warning(
                "The bytes of files are kept in %s, where only servers and workers of this machine find them. For "
                "several machines set files.url to a place that all of them reach, such as s3://bucket/prefix.",
                self.place.directory,
            )

    async def close(self) -> None:
        await self.store.close()


@dataclass(frozen=True, slots=True)
class FilesPlace:
    """Where the bytes of files are."""

    url: str | None
    """None: `directory`."""
    directory: Path
    is_of_this_machine: bool

    def name(self) -> str:
        """The same for all who see the same files. Raises `StorageUnavailable`."""
        try:
            return name_of(self.directory) if self.url is None else self.url
        except OSError:
            raise StorageUnavailable("The server cannot write the directory of its files.") from None

    def blobs(self) -> Blobs:
        """Raises `InvalidRequest` for a kind of storage that cannot be had here."""
        return LocalBlobs(self.directory / "files") if self.url is None else RemoteBlobs(self.url)


def files_place(url: str | None, data_dir: Path) -> FilesPlace:
    """`file:///mnt/shared` is a directory as any other, synced before anybody is told."""
    if url is not None and url.startswith("file://"):
        return FilesPlace(None, Path(urlsplit(url).path), is_of_this_machine=False)
    return FilesPlace(url, data_dir, is_of_this_machine=url is None)


def backend(settings: Settings, directory: Path) -> Backend:
    """Raises `InvalidRequest` for a `jobs` or `files.url` that cannot be had here."""
    quota = Quota(settings.files.max_bytes, settings.files.max_tenant_bytes)
    place = files_place(settings.files.url, directory)
    kept_s = settings.batches.kept_s
    if settings.jobs is None:
        database = Database(directory / "sightline.db", SCHEMA)
        store: Store = SqliteStore(directory, database=database, kept_s=kept_s)
        index: Index = SqliteIndex(database)
        bell, where = None, str(directory)
    else:
        connection, bell = Connection(settings.jobs), Bell(settings.jobs)
        store = RedisStore(connection, directory, kept_s=kept_s, bell=bell)
        index = RedisIndex(connection)
        where = describe(settings.jobs)
    return Backend(store, Files(index, place.blobs(), quota), bell, where, place, index)
