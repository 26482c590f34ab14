"""What is known of files, in Redis: every server and worker knows the same ones. `files.lua` has what must be whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import msgspec

from sightline.errors import QuotaExceeded, StorageUnavailable
from sightline.jobs.files import BATCH_OUTPUT, File, unknown_file
from sightline.jobs.redis_connection import PREFIX, Connection, Text, encode

_PAGE: Final = 500


class RedisIndex:
    """An `Index` (`files.py` says what that is)."""

    def __init__(self, connection: Connection) -> None:
        """`connection`: whoever gives it starts and closes it."""
        self._connection = connection
        self._place = ""

    async def _run(self, step: str, *args: Text, adds: bool = False) -> Any:
        return await self._connection.run("files", step, *args, makes_room=not adds)

    async def settle(self, place: str) -> None:
        self._place = place
        if await self._run("settle", place) is not None:
            raise _elsewhere()

    async def insert(self, file: File, digest: str, quota: int | None) -> File:
        if not self._place:
            raise StorageUnavailable("The server cannot reach its queue yet; nothing was kept. Try again soon.")
        rest = msgspec.json.encode({**asdict(file), "blob": ""})
        reply = await self._run(
            "insert",
            self._place,
            *(encode(file.tenant), file.id, digest, "" if quota is None else quota, int(file.purpose != BATCH_OUTPUT)),
            *(file.blob, file.bytes, file.purpose, "" if file.expires_at is None else file.expires_at, rest),
            adds=True,
        )
        if reply == b"elsewhere":
            raise _elsewhere()
        if isinstance(reply, int):
            raise QuotaExceeded(
                f"There is no room for this file: {reply} of {quota} bytes are used. Delete files that are not needed.",
                param="file",
            )
        return _to_file(*reply)

    async def find(self, tenant: str, file_id: str, now: float) -> File:
        blob, rest = await self._connection.call("HMGET", _key(tenant, file_id), "blob", "rest")
        file = None if blob is None else _to_file(blob, rest)
        if file is None or not _is_there(file, now):
            raise unknown_file(file_id)
        return file

    async def list(
        self, tenant: str, *, purpose: str | None, limit: int, after: str | None, ascending: bool, now: float
    ) -> Sequence[File]:
        listed = f"{PREFIX}files:{encode(tenant)}" + ("" if purpose is None else f":{encode(purpose)}")
        edge: Text = "-inf" if ascending else "+inf"
        if after is not None:
            await self.find(tenant, after, now)
            edge = await self._after(tenant, after)
        found: list[File] = []
        while len(found) < limit:
            ends = (edge, "+inf") if ascending else (edge, "-inf")
            order = () if ascending else ("REV",)
            ids = await self._connection.call("ZRANGE", listed, *ends, "BYSCORE", *order, "LIMIT", 0, _PAGE)
            if not ids:
                break
            keys = [_key(tenant, file_id.decode()) for file_id in ids]
            rows = await self._connection.calls([("HMGET", key, "blob", "rest") for key in keys])
            files = [_to_file(blob, rest) for blob, rest in rows if blob is not None]
            found += [file for file in files if _is_there(file, now)]
            if len(ids) < _PAGE or len(found) >= limit:
                break
            edge = await self._after(tenant, ids[-1].decode())
        return found[:limit]

    async def _after(self, tenant: str, file_id: str) -> Text:
        place = await self._connection.call("HGET", _key(tenant, file_id), "place")
        if place is None:  # deleted meanwhile
            raise unknown_file(file_id)
        return f"({int(place)}"

    async def delete(self, tenant: str, file_id: str, now: float) -> str | None:
        await self.find(tenant, file_id, now)
        there, blob = await self._run("delete", encode(tenant), file_id)
        if not there:
            raise unknown_file(file_id)
        return None if blob is None else str(blob.decode())

    async def expire(self, now: float) -> Sequence[str]:
        return [blob.decode() for blob in await self._run("expire", now)]

    async def unknown(self, blobs: Iterable[str]) -> Sequence[str]:
        asked = list(blobs)
        holders: list[Any] = []
        for start in range(0, len(asked), _PAGE):
            part = asked[start : start + _PAGE]
            holders += await self._connection.call("HMGET", f"{PREFIX}holders", *part)
        return [blob for blob, held in zip(asked, holders, strict=True) if held is None]


def _elsewhere() -> StorageUnavailable:
    return StorageUnavailable(
        "The files of this queue are kept elsewhere, where other servers that use it have them: what one keeps in its "
        "own directory no other can read. Set the same files.url (s3://bucket/prefix, or "
        "file:///a/directory/that/all/of/them/share) for all servers and workers."
    )


def _key(tenant: str, file_id: str) -> str:
    return f"{PREFIX}file:{encode(tenant)}:{file_id}"


def _is_there(file: File, now: float) -> bool:
    return file.expires_at is None or file.expires_at > now


def _to_file(blob: bytes, rest: bytes) -> File:
    return replace(msgspec.json.decode(rest, type=File), blob=blob.decode())
