"""Files: bytes kept once, counted by tenant, gone when they are to be; on a disk and on what fsspec reaches."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sightline.errors import (
    FileTooLarge,
    InvalidRequest,
    ObjectNotFound,
    QuotaExceeded,
    StorageFull,
    StorageUnavailable,
)
from sightline.jobs.blobs import Blobs, LocalBlobs, RemoteBlobs
from sightline.jobs.database import Database
from sightline.jobs.files import File, Files, Index, Quota
from sightline.jobs.files_redis import RedisIndex
from sightline.jobs.files_sqlite import SqliteIndex
from sightline.jobs.redis_connection import Connection
from sightline.jobs.schema import SCHEMA
from tests.jobs.queue_contract import Moved

pytestmark = pytest.mark.anyio


async def pieces(content: bytes, size: int = 3) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.fixture(params=["local", "fsspec-local", "fsspec-memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "local":
        return LocalBlobs(tmp_path / "files")
    pytest.importorskip("fsspec")
    return RemoteBlobs(f"file://{tmp_path}/files" if request.param == "fsspec-local" else f"memory://{tmp_path}")


@pytest.fixture
def clock() -> Moved:
    return Moved()


@pytest.fixture(params=["sqlite", "redis"])
async def index(request: pytest.FixtureRequest, tmp_path: Path, blobs: Blobs) -> AsyncIterator[Index]:
    if request.param == "sqlite":
        database = Database(tmp_path / "sightline.db", SCHEMA)
        await database.start()
        yield SqliteIndex(database)
        await database.close()
        return
    if not isinstance(blobs, LocalBlobs):
        pytest.skip("what is known of files does not know where they are")
    connection = Connection(request.getfixturevalue("redis_url"))
    index = RedisIndex(connection)
    await index.settle("here")
    yield index
    await connection.close()


@pytest.fixture
def files(index: Index, blobs: Blobs, clock: Moved) -> Files:
    return Files(index, blobs, Quota(file_bytes=100, tenant_bytes=250), clock=clock)


async def keep(files: Files, content: bytes, tenant: str = "t", name: str = "a.png", kept_s: int | None = None) -> File:
    return await files.create(tenant, name, "vision", pieces(content), kept_s=kept_s)


async def keys(blobs: Blobs) -> list[str]:
    return sorted(await blobs.old_keys(-1e9))


async def test_what_was_sent_comes_back(files: Files, clock: Moved) -> None:
    content = bytes(range(100))
    file = await keep(files, content, name="../../etc/pass\r\nwd\x00")
    assert (file.bytes, file.created_at, file.expires_at) == (100, 1_000_000, None)
    assert file.filename == "../../etc/passwd", "data, and harmless in a header or a log"
    assert len(file.id) == len("file-") + 32
    assert await files.get("t", file.id) == file
    assert b"".join([chunk async for chunk in files.content(file)]) == content
    assert await files.read("t", file.id, 100) == content
    with pytest.raises(FileTooLarge):
        await files.read("t", file.id, 99)
    empty = await keep(files, b"")
    assert await files.read("t", empty.id, 0) == b""


async def test_one_content_is_kept_once_until_nobody_holds_it(files: Files, blobs: Blobs) -> None:
    first, second, other = await keep(files, b"same"), await keep(files, b"same", "u"), await keep(files, b"other")
    assert first.id != second.id
    assert first.blob == second.blob
    assert len(await keys(blobs)) == 2
    await files.delete("t", first.id)
    assert await files.read("u", second.id, 9) == b"same"
    await files.delete("u", second.id)
    assert await keys(blobs) == [other.blob]
    again = await keep(files, b"same")
    assert await files.read("t", again.id, 9) == b"same"


async def test_nobody_sees_what_is_anothers(files: Files) -> None:
    file = await keep(files, b"secret")
    for wrong in (
        file.id,
        "t:" + file.id,
        "file-" + "0" * 32,
        "../" + file.id,
        file.id + "\x00",
        "file-%",
        "",
        "x" * 10_000,
    ):
        with pytest.raises(ObjectNotFound):
            await files.get("u", wrong)
        with pytest.raises(ObjectNotFound):
            await files.delete("u", wrong)
        with pytest.raises(ObjectNotFound):
            await files.list("u", limit=9, after=wrong)
    assert await files.list("u", limit=9) == []
    assert await files.read("t", file.id, 9) == b"secret"


async def test_limits_are_those_of_a_file_and_of_a_tenant(files: Files, blobs: Blobs) -> None:
    with pytest.raises(FileTooLarge):
        await keep(files, b"x" * 101)
    await keep(files, b"x" * 100)
    await keep(files, b"x" * 100)
    with pytest.raises(QuotaExceeded):
        await keep(files, b"x" * 51)
    last = await keep(files, b"y" * 50)
    await keep(files, b"x" * 100, "u")
    assert len(await keys(blobs)) == 2, "nothing is left of what was refused"
    await files.delete("t", last.id)
    await files.create("t", "out", "batch_output", pieces(b"o" * 100), limited=False)
    await keep(files, b"z" * 50)


async def test_they_end_when_they_are_to(files: Files, blobs: Blobs, clock: Moved) -> None:
    file, stays = await keep(files, b"a", kept_s=3600), await keep(files, b"b")
    clock.pass_(3599)
    await files.sweep()
    assert (await files.get("t", file.id)).expires_at == 1_003_600
    clock.pass_(1)
    with pytest.raises(ObjectNotFound):
        await files.get("t", file.id)
    assert [one.id for one in await files.list("t", limit=9)] == [stays.id]
    await files.sweep()
    assert await keys(blobs) == [stays.blob]


async def test_lists(files: Files) -> None:
    made = [await keep(files, bytes([n])) for n in range(4)]
    other = await files.create("t", "a", "batch", pieces(b"x"))
    ids = [file.id for file in made]
    assert [file.id for file in await files.list("t", limit=2)] == [other.id, ids[3]]
    assert [file.id for file in await files.list("t", purpose="vision", limit=2, after=ids[3])] == [ids[2], ids[1]]
    assert [file.id for file in await files.list("t", limit=2, after=ids[1], ascending=True)] == [ids[2], ids[3]]


async def test_writing_the_same_file_again_makes_no_other(files: Files, blobs: Blobs) -> None:
    reserved = "file-" + "a" * 32
    for content in (b"first", b"second"):
        file = await files.create("t", "out", "batch_output", pieces(content), file_id=reserved, limited=False)
        assert file.id == reserved
    assert await files.read("t", reserved, 9) == b"first"
    assert await keys(blobs) == [file.blob]


async def test_an_upload_that_breaks_off_leaves_nothing(files: Files, blobs: Blobs) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await files.create("t", "a", "vision", broken())
    assert await files.list("t", limit=9) == []
    if isinstance(blobs, LocalBlobs):
        assert await keys(blobs) == []


async def test_a_file_that_may_have_been_kept_keeps_its_bytes(
    files: Files, index: Index, blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lost(file: File, digest: str, quota: int | None) -> File:
        await insert(file, digest, quota)
        raise StorageUnavailable("The answer was lost.")

    insert = index.insert
    monkeypatch.setattr(index, "insert", lost)
    with pytest.raises(StorageUnavailable):
        await keep(files, b"content")
    monkeypatch.undo()
    again = await keep(files, b"content")
    assert await files.read("t", again.id, 9) == b"content", "also for whoever has the same content"


async def test_what_a_crash_has_left_is_found(files: Files, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    file = await keep(files, b"kept")
    await blobs.put("0123", pieces(b"orphan"))
    await files.sweep_orphans()
    assert len(await keys(blobs)) == 2, "it may be an upload under way"
    monkeypatch.setattr("sightline.jobs.files._ORPHAN_AGE_S", -1e9)
    await files.sweep_orphans()
    assert await keys(blobs) == [file.blob]


@pytest.mark.parametrize(("number", "told"), [(errno.ENOSPC, StorageFull), (errno.EROFS, StorageUnavailable)])
async def test_a_disk_that_is_full_or_read_only_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, told: type[Exception]
) -> None:
    def full(_: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr("os.fsync", full)
    blobs = LocalBlobs(tmp_path)
    with pytest.raises(told):
        await blobs.put("a", pieces(b"x"))
    assert await keys(blobs) == []


async def test_a_kind_of_storage_that_cannot_be_had_is_told() -> None:
    with pytest.raises(InvalidRequest, match="s3"):
        RemoteBlobs("nosuch://bucket/x")
