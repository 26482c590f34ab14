"""Requests about files that are no longer there, or whose bytes are not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.types import ASGIApp

from tests.access.keyed import Keyed, bearer
from tests.access.test_batches import line, upload
from tests.api.standin import Call, get, post

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[ASGIApp, str, Path]]:
    keyed = Keyed(tmp_path_factory.mktemp("data"))
    secret = keyed.key()
    async with keyed.running() as app:
        yield app, secret, keyed.directory


async def test_a_batch_is_known_by_its_key_also_when_its_input_is_gone(server: tuple[ASGIApp, str, Path]) -> None:
    app, secret, _ = server
    file = await upload(app, secret, json.dumps(line(0)).encode())
    body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}

    async def ask(**more: str) -> tuple[int, str]:
        reply = await post(app, {**body, **more}, "/v1/batches", idempotency_key="k", **bearer(secret))
        return reply.status, reply.json.get("id") or reply.json["error"]["code"]

    made = await ask()
    await Call("DELETE", f"/v1/files/{file}", b"", {"host": "localhost", **bearer(secret)}).run(app)
    assert await ask() == made, "its client did not hear the first answer, and asks again"
    assert await ask(input_file_id="file-other") == (422, "idempotency_key_reused")


async def test_content_that_cannot_be_read_has_a_true_status(server: tuple[ASGIApp, str, Path]) -> None:
    app, secret, directory = server
    file, empty = await upload(app, secret, b"here"), await upload(app, secret, b"")
    for known, content in ((file, b"here"), (empty, b"")):
        reply = await get(app, f"/v1/files/{known}/content", **bearer(secret))
        assert (reply.status, reply.body, reply.headers["content-length"]) == (200, content, str(len(content)))
    (blob,) = (each for each in (directory / "files").iterdir() if each.read_bytes() == b"here")
    blob.unlink()
    reply = await get(app, f"/v1/files/{file}/content", **bearer(secret))
    assert (reply.status, reply.json["error"]["type"]) == (503, "server_error")
