"""No part of any key in what a server writes down or answers: logs, metrics, errors, traces' names."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from sightline import logs
from sightline.access.keys import new_secret
from sightline.config import ModelConfig
from tests.access.keyed import Keyed, bearer
from tests.api.standin import JSON_HEADERS, Call, chat, get, post

pytestmark = pytest.mark.anyio


def parts(secret: str) -> list[bytes]:
    """Every six characters of a key that stand together."""
    return [secret[start : start + 6].encode() for start in range(3, len(secret) - 5)]


async def test_no_part_of_a_key_is_written_anywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keyed = Keyed(tmp_path, models=(ModelConfig(name="m", engine="fake"),))
    right, admin = keyed.key("right", requests_per_minute=3), keyed.key("admin", admin=True)
    revoked, wrong = keyed.key("revoked", revoked_at=1), new_secret()
    said: list[bytes] = []
    caplog.set_level(logging.DEBUG)
    async with keyed.running() as app:
        for secret in (right, admin, revoked, wrong):
            for headers in (bearer(secret), {"x-api-key": secret}):
                for path in ("/v1/models", "/nothing", "/metrics", "/admin/keys", "/admin/status"):
                    reply = await get(app, path, **headers)
                    said.append(repr(reply.headers).encode() + reply.body)
                for body in (chat(max_tokens=2), chat(model="nothing"), b"{", chat(n=0)):
                    reply = await post(app, body, **headers)
                    said.append(repr(reply.headers).encode() + reply.body)
        # where nobody expects one
        for call in (
            Call("GET", f"/v1/models/{right}", b"", {**JSON_HEADERS, **bearer(admin)}),
            Call("GET", "/v1/models", b"", {**JSON_HEADERS, **bearer(admin)}, query=f"key={right}"),
            Call("GET", "/v1/models", b"", {**JSON_HEADERS, "authorization": f"Token {right}"}),
        ):
            await call.run(app)
        said.append((await get(app, "/metrics", **bearer(admin))).body)
    lines = [logs.Formatter(kind).format(record) for record in caplog.records for kind in ("json", "human")]
    written = "\n".join(lines).encode()
    assert b"/v1/chat/completions" in written, "the requests were logged"
    assert b"key-" in written, "by the ids of their keys"
    everything = written + b"".join(said)
    for secret in (right, admin, revoked, wrong):
        assert not [part for part in parts(secret) if part in everything]
