"""A disk or a memory that is full, storage that takes no writes, clocks that are set by an hour:
`python -m tests.jobs.mishaps [--store redis]`.

The disk is a tmpfs of a few megabytes, and so this needs root on Linux; `can_mount` says whether it can be had.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from sightline.jobs import Store
from sightline.jobs.redis import RedisStore
from sightline.jobs.redis_connection import Connection
from sightline.jobs.sqlite import SqliteStore
from tests.jobs.figures import Figure, command
from tests.jobs.kill import Server, StoreName, retrieve, submit, verify
from tests.jobs.queue_contract import DONE, Moved, batch, begun
from tests.jobs.redis_server import RedisServer

PROMISE = "disk full, read-only storage, a clock set by +-1 h: 503 or 507, no crash, nothing accepted is lost"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
MIB = 1024 * 1024


def can_mount() -> bool:
    try:
        with tempfile.TemporaryDirectory() as folder, _small_disk(Path(folder), 1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def measure(folder: Path, store: StoreName, *, lines: int = 300) -> Figure:
    told = [clock_set(folder / "clock", store)]
    if can_mount():
        told.append((disk_full if store == "sqlite" else redis_disk_full)(folder / "full", lines))
        if store == "sqlite":
            told.append(read_only(folder / "read-only"))
    else:
        told.append("a full disk was not tried: it needs root, for a small tmpfs")
    if store == "redis":
        told.append(memory_full(folder / "memory", lines))
    return Figure(18, store, PROMISE, "; ".join(told), met=True)  # whatever is not as promised has raised


# --- clocks -----------------------------------------------------------------------------------------------------------


def clock_set(folder: Path, name: StoreName) -> str:
    """100 items are leased, renewed and done while somebody sets the clock to and fro."""

    async def work(store: Store, clock: Moved) -> None:
        await store.start()
        made = await begun(store, batch(), 100)
        done = 0
        while leases := await store.lease("w", 10, 30):
            for jump in (3600, -7200, 3600):
                clock.jump(jump)
                await store.sweep()
                assert await store.renew(leases, 30) == [], "a lease was lost"
            for lease in leases:
                assert lease.attempt == 1
                done += await store.complete(lease, DONE)
        assert done == (await store.get("t", "batch", made.id)).counts.completed == 100
        await store.close()

    if name == "sqlite":
        clock = Moved()
        asyncio.run(work(SqliteStore(folder, clock=clock), clock))
    else:
        redis = RedisServer(folder / "redis").start()
        try:
            moved = RedisTime()
            asyncio.run(work(RedisStore(Connection(redis.url), folder, clock=moved), moved))
        finally:
            redis.kill()
    return "the clock set 30 times by 1 or 2 h: 100 of 100 items done, each with its first lease"


class RedisTime(Moved):
    """What Redis's TIME would say; what is made of it for leases is queue.lua's own affair."""

    def monotonic(self) -> Any:
        return ""


# --- disks ------------------------------------------------------------------------------------------------------------


def disk_full(folder: Path, lines: int) -> str:
    """Of a server with SQLite."""
    with _small_disk(folder, 12) as disk, _running(Server(disk / "data")) as server:
        ids = [submit(server.client, lines), submit(server.client, 3)]
        file_id = _upload(server, b"x" * 64).json()["id"]
        with _filled(disk):
            codes = _refusals(server, (503, 507))
            _still_answers(server, file_id)
            assert httpx.delete(f"{server.url}/v1/files/{file_id}").status_code == 200, "a deletion makes room"
            with _filled(disk / "again"):
                time.sleep(1.0)  # the batch goes on, into the full disk
        _all_complete(server, ids)
    return (
        f"a full disk in a batch of {lines} lines: {codes}, reads, chat and deletions go on, 2 of 2 batches completed"
    )


def redis_disk_full(folder: Path, lines: int) -> str:
    """Redis ends when it cannot write what it has promised to; nothing that it had promised is gone."""
    with _small_disk(folder, 24) as disk:
        redis = RedisServer(disk / "redis").start()
        try:
            with _running(Server(folder.with_name("data"), jobs=redis.url)) as server:
                ids = [submit(server.client, lines), submit(server.client, 3)]
                with _filled(disk):
                    codes = _until(lambda: _refusals(server, (503, 507)))
                    assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT).status_code == 200
                if redis.process is not None and redis.process.poll() is not None:
                    redis.process = None
                    redis.start()
                _all_complete(server, ids)
        finally:
            redis.kill()
    return f"Redis's disk full in a batch of {lines} lines: {codes}, chat goes on, 2 of 2 batches completed"


def read_only(folder: Path) -> str:
    """A data directory that becomes writable while the server runs."""
    with _small_disk(folder, 12) as disk:
        with _running(Server(disk / "data")) as server:
            kept = submit(server.client, 3)
            _all_complete(server, [kept])
        _remount(disk, "ro")
        with _running(server):
            codes = _refusals(server, (503,))
            assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT).status_code == 200
            _remount(disk, "rw")
            _until(lambda: _all_complete(server, [kept]))
    return f"a read-only data directory: {codes}, chat goes on; writable again, everything is there"


def memory_full(folder: Path, lines: int) -> str:
    from redis import Redis

    redis = RedisServer(folder / "redis").start()
    try:
        with _running(Server(folder / "data", jobs=redis.url)) as server, Redis.from_url(redis.url) as admin:
            ids = [submit(server.client, lines)]
            _until(lambda: _assert(server.client.batches.retrieve(ids[0]).status == "in_progress"))
            file_id = _upload(server, b"x" * 64).json()["id"]
            admin.config_set("maxmemory", 1)
            codes = _refusals(server, (507,))
            _still_answers(server, file_id)
            assert httpx.delete(f"{server.url}/v1/files/{file_id}").status_code == 200
            done = retrieve(server.client, ids[0], time.monotonic() + 5).request_counts.completed
            _until(
                lambda: _assert(
                    server.client.batches.retrieve(ids[0]).request_counts.completed >= min(lines, done + 50)  # type: ignore[union-attr]
                )
            )
            admin.config_set("maxmemory", 0)
            _all_complete(server, ids)
    finally:
        redis.kill()
    return f"Redis's maxmemory reached: {codes}, the lines of the batch go on, 1 of 1 batch completed"


def _assert(holds: bool) -> None:
    assert holds


def _until(holds: Callable[[], Any], within_s: float = 20.0) -> Any:
    deadline = time.monotonic() + within_s
    while True:
        try:
            return holds()
        except (AssertionError, httpx.HTTPError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _upload(server: Server, content: bytes) -> httpx.Response:
    form = {"purpose": "user_data"}
    return httpx.post(f"{server.url}/v1/files", data=form, files={"file": ("a", content)}, timeout=30)


def _refusals(server: Server, allowed: tuple[int, ...]) -> str:
    """What is answered to files and batches that would have to be kept."""
    codes = {_upload(server, os.urandom(MIB)).status_code}
    for _ in range(20):
        reply = httpx.post(
            f"{server.url}/analyze/async", json={"prompt": "x" * 20_000, "image_base64": "iVBORw0KGgo="}, timeout=30
        )
        codes.add(reply.status_code)
    assert codes - {202}, "nothing was refused"
    assert codes <= {202, *allowed}, codes  # what was accepted is kept
    return f"{' and '.join(str(code) for code in sorted(codes - {202}))} for what is new"


def _still_answers(server: Server, file_id: str) -> None:
    for path in ("/health", "/v1/batches", "/v1/files", f"/v1/files/{file_id}/content"):
        assert httpx.get(f"{server.url}{path}", timeout=30).status_code == 200, path
    assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=30).status_code == 200


def _all_complete(server: Server, ids: list[str]) -> None:
    deadline = time.monotonic() + 60
    for batch_id in ids:
        while (over := retrieve(server.client, batch_id, deadline)).status != "completed":
            assert time.monotonic() < deadline, over
            time.sleep(0.05)
        verify(server.client, over, over.request_counts.total)


@contextmanager
def _running(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
        assert server.is_alive, "it crashed"
    finally:
        server.kill()


@contextmanager
def _small_disk(folder: Path, mib: int) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], check=True, capture_output=True
    )
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)


def _remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True, capture_output=True)


@contextmanager
def _filled(disk: Path) -> Iterator[None]:
    file = disk / "filler" if disk.is_dir() else disk
    with file.open("wb", buffering=0) as filler:
        for size in (MIB, 4096, 1):
            with suppress(OSError):
                while True:
                    filler.write(bytes(size))
        yield
    file.unlink()


if __name__ == "__main__":
    command(__doc__ or "", measure)
