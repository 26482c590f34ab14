"""Files in S3, against a server of its API on this machine: skipped without `moto[server]` and `s3fs`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from sightline.errors import StorageUnavailable
from sightline.jobs.blobs import RemoteBlobs
from sightline.jobs.database import Database
from sightline.jobs.files import Files, Quota
from sightline.jobs.files_sqlite import SqliteIndex
from sightline.jobs.schema import SCHEMA

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """Its server, told by the environment as an operator would."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
    server.stop()


@pytest.fixture
def blobs(s3: Any, request: pytest.FixtureRequest) -> RemoteBlobs:
    import s3fs

    bucket = f"bucket-{abs(hash(request.node.name)):x}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
    return RemoteBlobs(f"s3://{bucket}/some/prefix")


@pytest.fixture
async def files(tmp_path: Path, blobs: RemoteBlobs) -> AsyncIterator[Files]:
    database = Database(tmp_path / "sightline.db", SCHEMA)
    await database.start()
    yield Files(SqliteIndex(database), blobs, Quota(file_bytes=100 * MIB, tenant_bytes=200 * MIB))
    await database.close()


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), MIB):
        yield content[start : start + MIB]


async def keys(blobs: RemoteBlobs) -> list[str]:
    return sorted(await blobs.old_keys(-1e9))


@pytest.mark.parametrize("size", [0, 10, 12 * MIB])
async def test_what_was_sent_comes_back_and_goes(files: Files, blobs: RemoteBlobs, size: int) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    file = await files.create("t", "a", "batch", pieces(content[:size]))
    assert await files.read("t", file.id, 100 * MIB) == content[:size]
    assert await keys(blobs) == [file.blob]
    await files.delete("t", file.id)
    assert await keys(blobs) == []


async def test_an_upload_that_breaks_off_leaves_nothing(files: Files, blobs: RemoteBlobs) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(12 * MIB)  # two parts of an upload in parts are on their way
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await files.create("t", "a", "vision", broken())
    assert await keys(blobs) == []


async def test_what_a_crash_has_left_is_found(
    files: Files, blobs: RemoteBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = await files.create("t", "a", "vision", pieces(b"kept"))
    await blobs.put("0123", pieces(b"orphan"))
    await files.sweep_orphans()
    assert len(await keys(blobs)) == 2
    monkeypatch.setattr("sightline.jobs.files._ORPHAN_AGE_S", -1e9)
    await files.sweep_orphans()
    assert await keys(blobs) == [file.blob]


async def test_a_server_that_is_away_is_told(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    pytest.importorskip("s3fs").S3FileSystem.clear_instance_cache()
    away = RemoteBlobs("s3://away/x")
    with pytest.raises(StorageUnavailable):
        await away.put("a", pieces(b"x"))
    with pytest.raises(StorageUnavailable):
        assert [chunk async for chunk in away.read("a")]
    with pytest.raises(StorageUnavailable):
        await away.delete("a")
