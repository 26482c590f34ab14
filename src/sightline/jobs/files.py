"""Files that clients send once and refer to by an id; and what batches write.

The bytes are blobs, each content once, with as many holders as there are files of it; what is known of a file is in an
index, in SQLite or, where several machines share it, in Redis. A file is there when both are: first the blob, then the
row. What a crash leaves in between nobody refers to, and `sweep` takes it away.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from sightline.errors import FileTooLarge, ObjectNotFound, QuotaExceeded, StorageFull
from sightline.jobs import Clock
from sightline.jobs.blobs import Blobs

log = logging.getLogger(__name__)

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals", "batch_output"]

BATCH_OUTPUT: Final = "batch_output"
"""The purpose of what batches write: it is not counted with what a tenant keeps."""
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


class Index(Protocol):
    """What is known of files. Every change is whole, and safe when its call returns; all raise `StorageUnavailable` or
    `StorageFull`. `now` is in seconds since 1970: what has expired by then is not there."""

    async def settle(self, place: str) -> None:
        """Told once, at start, where the bytes are. Raises `StorageUnavailable` where others who share the index keep
        them in another place."""
        ...

    async def insert(self, file: File, digest: str, quota: int | None) -> File:
        """With the blob that has the `digest` already, if there is one; the file of that id, if there is one. Raises
        `QuotaExceeded` where the tenant would keep more bytes than `quota`, those of `BATCH_OUTPUT` left out."""
        ...

    async def find(self, tenant: str, file_id: str, now: float) -> File:
        """Raises `ObjectNotFound`."""
        ...

    async def list(
        self, tenant: str, *, purpose: str | None, limit: int, after: str | None, ascending: bool, now: float
    ) -> Sequence[File]:
        """In the order in which they were made. Raises `ObjectNotFound` where there is no file `after`."""
        ...

    async def delete(self, tenant: str, file_id: str, now: float) -> str | None:
        """The blob that nobody holds any more, if there is one. Raises `ObjectNotFound`."""
        ...

    async def expire(self, now: float) -> Sequence[str]:
        """Deletes what has expired: the blobs that nobody holds any more."""
        ...

    async def unknown(self, blobs: Iterable[str]) -> Sequence[str]:
        """Those of the blobs that no file has."""
        ...


def unknown_file(file_id: str) -> ObjectNotFound:
    return ObjectNotFound(f"There is no file {file_id[:128]!r}.")


async def before(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Chunks of which the first has been looked at."""
    yield first
    async for chunk in rest:
        yield chunk


def new_file_id() -> str:
    """`file-` and 128 random bits."""
    return f"file-{os.urandom(16).hex()}"


class Files:
    """Every method takes the tenant who asks, and sees nothing of others: `ObjectNotFound`. All raise
    `StorageUnavailable` or `StorageFull`."""

    def __init__(self, index: Index, blobs: Blobs, quota: Quota, *, clock: Clock | None = None) -> None:
        self._index = index
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
            kept = await self._index.insert(file, counted.digest, quota)
        except (QuotaExceeded, StorageFull):
            await self._blobs.delete(key)
            raise  # with any other error it may be known: `sweep_orphans` tells
        if kept.blob != key:
            await self._blobs.delete(key)
        return kept

    async def get(self, tenant: str, file_id: str) -> File:
        return await self._index.find(tenant, _checked(file_id), self._clock.wall())

    async def list(
        self, tenant: str, *, purpose: str | None = None, limit: int, after: str | None = None, ascending: bool = False
    ) -> Sequence[File]:
        """By when they were made. Raises `ObjectNotFound` where there is no file `after`."""
        after = None if after is None else _checked(after)
        now = self._clock.wall()
        return await self._index.list(tenant, purpose=purpose, limit=limit, after=after, ascending=ascending, now=now)

    def content(self, file: File) -> AsyncIterator[bytes]:
        return self._blobs.read(file.blob)

    async def read(self, tenant: str, file_id: str, max_bytes: int) -> bytes:
        """All of it. Raises `FileTooLarge`."""
        file = await self.get(tenant, file_id)
        if file.bytes > max_bytes:
            raise FileTooLarge(f"The file has {file.bytes} bytes; at most {max_bytes} are taken here.")
        return b"".join([chunk async for chunk in self.content(file)])

    async def delete(self, tenant: str, file_id: str) -> None:
        blob = await self._index.delete(tenant, _checked(file_id), self._clock.wall())
        if blob is not None:
            await self._blobs.delete(blob)

    async def sweep(self) -> None:
        """Takes away what has expired, and what crashes have left. To be called from time to time."""
        for blob in await self._index.expire(self._clock.wall()):
            await self._blobs.delete(blob)

    async def sweep_orphans(self) -> None:
        old = {key.removesuffix(".partial"): key for key in await self._blobs.old_keys(_ORPHAN_AGE_S)}
        for key in await self._index.unknown(old) if old else ():
            log.info("a blob that no file refers to is removed: %s", key)
            await self._blobs.delete(old[key])


def _checked(file_id: str) -> str:
    """Raises `ObjectNotFound` for what no file can be called."""
    if not _ID.fullmatch(file_id):
        raise unknown_file(file_id)
    return file_id


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
