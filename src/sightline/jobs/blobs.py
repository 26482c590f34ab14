"""Where the bytes of files are: on the local disk, or anywhere that fsspec reaches (`s3://bucket/prefix`)."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from sightline.errors import InvalidRequest, SightlineError, StorageFull, StorageUnavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK_BYTES: Final = 1024 * 1024
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Blobs(Protocol):
    """Bytes by keys that are never used twice. Methods raise `StorageUnavailable` or `StorageFull`."""

    async def put(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Safe when it returns. Nothing is left of one that failed, but perhaps until the next `keys` says so."""
        ...

    def read(self, key: str) -> AsyncIterator[bytes]: ...

    async def delete(self, key: str) -> None:
        """Nothing where there is nothing."""
        ...

    async def old_keys(self, age_s: float) -> Iterable[str]:
        """All that have been there for so long, whole or in part."""
        ...


class LocalBlobs:
    """Files in a directory; only a whole one has its name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def put(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        path = self._directory / key
        partial = path.with_name(f"{key}.partial")
        try:
            file = await _off_loop(lambda: _create(partial))
            try:
                async for chunk in chunks:
                    await _off_loop(lambda chunk=chunk: file.write(chunk))  # type: ignore[misc]
                await _off_loop(lambda: _settle(file, path))
            finally:
                with suppress(OSError):  # of a disk that is full: what counts has been told by then
                    file.close()
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise

    async def read(self, key: str) -> AsyncIterator[bytes]:
        file = await _off_loop(lambda: (self._directory / key).open("rb", buffering=0))
        try:
            while chunk := await _off_loop(lambda: file.read(CHUNK_BYTES)):
                yield chunk
        finally:
            file.close()

    async def delete(self, key: str) -> None:
        await _off_loop(lambda: (self._directory / key).unlink(missing_ok=True))

    async def old_keys(self, age_s: float) -> Iterable[str]:
        def found() -> list[str]:
            before = time.time() - age_s
            if not self._directory.is_dir():
                return []
            return [entry.name for entry in os.scandir(self._directory) if entry.stat().st_mtime <= before]

        return await _off_loop(found)


class RemoteBlobs:
    """What fsspec calls a filesystem. Its calls block, so each is made in a thread; an upload is whole or not there
    when it has ended."""

    def __init__(self, url: str) -> None:
        """Raises `InvalidRequest` where the URL's kind of storage cannot be had."""
        try:
            import fsspec  # type: ignore[import-untyped, unused-ignore]

            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError):
            scheme = url.partition(":")[0]
            raise InvalidRequest(
                f"Files cannot be kept at a URL of the kind {scheme}: here. For s3: install 'sightline[s3]'.",
                param="files.url",
            ) from None

    def _at(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"

    async def put(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        path = self._at(key)
        await _asked(lambda: self._fs.makedirs(self._root, exist_ok=True))
        file = await _asked(lambda: self._fs.open(path, "wb"))
        try:
            async for chunk in chunks:
                await _asked(lambda chunk=chunk: file.write(chunk))  # type: ignore[misc]
            await _asked(file.close)
        except BaseException:
            await _asked(lambda: _abandon(file))
            await self.delete(key)
            raise

    async def read(self, key: str) -> AsyncIterator[bytes]:
        file = await _asked(lambda: self._fs.open(self._at(key), "rb"))
        try:
            while chunk := await _asked(lambda: file.read(CHUNK_BYTES)):
                yield chunk
        finally:
            file.close()

    async def delete(self, key: str) -> None:
        def gone() -> None:
            with suppress(FileNotFoundError):
                self._fs.rm_file(self._at(key))

        await _asked(gone)

    async def old_keys(self, age_s: float) -> Iterable[str]:
        def found() -> list[str]:
            before = time.time() - age_s
            if not self._fs.exists(self._root):
                return []
            entries: list[dict[str, Any]] = self._fs.ls(self._root, detail=True)
            return [entry["name"].rpartition("/")[2] for entry in entries if _changed(entry) <= before]

        return await _asked(found)


def _abandon(file: Any) -> None:
    """Ends an upload without making an object of it where the storage can do that, or else with one to be deleted."""
    with suppress(Exception):
        file.discard()
        file.closed = True  # else it would be uploaded when it is collected
        return
    with suppress(Exception):
        file.close()


def _changed(entry: dict[str, Any]) -> float:
    """When, by whatever name the storage has for it; one that does not say is taken for new."""
    at = entry.get("LastModified") or entry.get("mtime") or entry.get("created")
    if at is None:
        return float("inf")
    return float(at) if isinstance(at, int | float) else float(at.timestamp())


def _create(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb")


def _settle(file: Any, path: Path) -> None:
    """On the disk under its own name: first the bytes, then the name."""
    file.flush()
    os.fsync(file.fileno())
    os.replace(file.name if isinstance(file.name, str) else path.with_name(f"{path.name}.partial"), path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


async def _asked(work: Callable[[], T]) -> T:
    """Of what speaks to another machine, by libraries with errors of their own."""
    try:
        return await _off_loop(work)
    except SightlineError:
        raise
    except Exception as error:
        log.warning("files cannot be reached: %s", type(error).__name__)
        raise StorageUnavailable("The server cannot reach where its files are now. Try again later.") from None


async def _off_loop(work: Callable[[], T]) -> T:
    try:
        return await asyncio.to_thread(work)
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(
                "The server's storage is full; nothing was kept. Try again when its operator has made room."
            ) from None
        raise StorageUnavailable("The server cannot read or write its files now. Try again later.") from None
