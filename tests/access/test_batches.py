"""Batches and analyses that nobody waits for, by the rights and limits of the key that they came with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

from sightline.api.elsewhere import Elsewhere
from sightline.api.inside import execute
from sightline.config import BatchLimits, ModelConfig
from sightline.errors import ImageFileNotFound
from sightline.jobs import Item, Lease
from sightline.jobs.runner import Answer
from tests.access.keyed import Keyed, bearer
from tests.api.serving import serving
from tests.api.standin import Call, get, post

pytestmark = pytest.mark.anyio

MODELS = (ModelConfig(name="own", engine="fake"), ModelConfig(name="foreign", engine="fake"))


def line(number: int, model: str = "own", max_tokens: int = 5) -> dict[str, Any]:
    body = {"model": model, "max_tokens": max_tokens, "messages": [{"role": "user", "content": "hi"}]}
    return {"custom_id": f"c-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


async def upload(app: ASGIApp, secret: str, data: bytes) -> str:
    parts = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    parts += (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n' + data + b"\r\n--b--\r\n"
    )
    headers = {"host": "localhost", "content-type": "multipart/form-data; boundary=b", **bearer(secret)}
    reply = await Call("POST", "/v1/files", parts, headers).run(app)
    assert reply.status == 200, reply.body
    return str(reply.json["id"])


async def submit(app: ASGIApp, secret: str, lines: Sequence[dict[str, Any]]) -> str:
    file = await upload(app, secret, b"\n".join(json.dumps(each).encode() for each in lines))
    body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    reply = await post(app, body, "/v1/batches", **bearer(secret))
    assert reply.status == 200, reply.body
    return str(reply.json["id"])


async def ended(app: ASGIApp, secret: str, batch: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The batch, and its lines by their ids."""
    async with asyncio.timeout(30):
        while True:
            told = (await get(app, f"/v1/batches/{batch}", **bearer(secret))).json
            if told["status"] == "completed":
                break
            await asyncio.sleep(0.05)
    done = []
    for file in filter(None, (told["output_file_id"], told["error_file_id"])):
        content = (await get(app, f"/v1/files/{file}/content", **bearer(secret))).body
        done += [json.loads(each) for each in content.splitlines()]
    return told, sorted(done, key=lambda each: int(each["custom_id"][2:]))


async def test_lines_that_meet_the_rate_wait_and_none_fails(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=MODELS)
    secret = keyed.key(requests_per_minute=60)
    async with keyed.running() as app:
        batch = await submit(app, secret, [line(number) for number in range(60)])  # two requests have been made by now
        told, lines = await ended(app, secret, batch)
        assert told["request_counts"] == {"total": 60, "completed": 60, "failed": 0}
        assert [each["custom_id"] for each in lines] == [f"c-{number}" for number in range(60)]


async def test_over_the_budget_of_the_day_lines_fail_and_say_why(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=MODELS)
    secret = keyed.key(tokens_per_day=60)
    async with keyed.running() as app:
        told, lines = await ended(app, secret, await submit(app, secret, [line(number) for number in range(12)]))
        spent = sum(each["response"]["body"].get("usage", {}).get("total_tokens", 0) for each in lines)
        assert told["request_counts"]["total"] == len(lines) == 12
        assert 51 < spent <= 60, "all that there is, and no more"
        failed = [each["response"] for each in lines if each["response"]["status_code"] != 200]
        assert failed
        assert all(response["status_code"] == 429 for response in failed)
        assert {response["body"]["error"]["code"] for response in failed} == {"insufficient_quota"}


async def test_lines_have_no_more_rights_than_the_key(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=MODELS)
    secret = keyed.key(models=("own",))
    async with keyed.running() as app:
        _, [refused] = await ended(app, secret, await submit(app, secret, [line(0, "foreign")]))
        assert refused["response"]["status_code"] == 403
        assert "may not use the model" in refused["response"]["body"]["error"]["message"]


async def test_lines_of_a_key_that_was_revoked_meanwhile(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=MODELS, settings={"batches": BatchLimits(max_concurrent=0)})
    secret, other = keyed.key("gone", tenant="both"), keyed.key("stays", tenant="both")
    async with keyed.running() as app:
        batch = await submit(app, secret, [line(0)])
    keyed.file.revoke("gone", 1.0)
    keyed.settings = {}
    async with keyed.running() as app:
        _, [refused] = await ended(app, other, batch)
        assert refused["response"]["status_code"] == 401
        assert refused["response"]["body"]["error"]["message"].startswith("The API key was revoked")


async def test_lines_of_before_there_were_keys_are_done(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=MODELS, settings={"batches": BatchLimits(max_concurrent=0)})
    async with keyed.running() as app:
        body = b"\n".join(json.dumps(line(number)).encode() for number in range(2))
        file = await upload(app, "none", body)
        asked = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = (await post(app, asked, "/v1/batches")).json["id"]
    secret = keyed.key(tenant="")
    keyed.settings = {}
    async with keyed.running() as app:
        told, _ = await ended(app, secret, batch)
        assert told["request_counts"] == {"total": 2, "completed": 2, "failed": 0}


async def no_pictures(file_id: str, tenant: str, max_bytes: int) -> bytes:
    raise ImageFileNotFound("there is none")


async def test_a_worker_elsewhere_asks_by_the_rights_of_the_batchs_key(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=MODELS)
    admin, plain = keyed.key("worker", admin=True), keyed.key("plain")
    keyed.key("limited", models=("own",), requests_per_minute=2)
    keyed.key("gone", revoked_at=1)
    ids = {key.name: key.id for key in keyed.file.load()}
    _, app = keyed.make()

    with serving(app) as port:

        async def ask(secret: str, name: str, model: str = "own") -> Answer:
            worker = Elsewhere(
                f"http://127.0.0.1:{port}", secret, no_pictures, at_once=1, timeout_s=20, picture_bytes=1000
            )
            item = Item(0, "c-0", json.dumps(line(0, model)["body"]).encode())
            lease = Lease(item, "batch_1", "t", "/v1/chat/completions", 1, 1, key_id=ids.get(name, ""))
            try:
                return await worker.execute(lease)
            finally:
                await worker.close()

        assert (await ask(admin, "limited")).status_code == 200
        foreign = await ask(admin, "limited", "foreign")
        assert (foreign.status_code, foreign.retryable) == (403, False), "it has a right to it, and the batch has not"
        rate = await ask(admin, "limited")
        assert (rate.status_code, rate.retryable, rate.is_limited) == (429, True, True)
        gone = await ask(admin, "gone")
        assert (gone.status_code, gone.retryable) == (403, False)
        assert b"was revoked" in gone.body
        for secret, name in ((plain, "limited"), ("sl-wrong", "limited"), ("sl-wrong", "")):
            refused = await ask(secret, name)
            assert (refused.retryable, refused.began) == (True, False), "no line is at fault: they wait"


async def test_a_process_without_the_keys_leaves_a_batch_that_came_with_one(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=MODELS)
    async with keyed.running() as app:
        item = Item(0, "c-0", json.dumps(line(0)["body"]).encode())
        for key_id, status in (("", 200), ("key-of-another-file", 503)):
            answer = await execute(app, Lease(item, "batch_1", "t", "/v1/chat/completions", 1, 1, key_id=key_id))
            assert (answer.status_code, answer.began) == (status, status == 200)
