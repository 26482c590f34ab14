"""Files, batches and analyses with their queue in Redis: servers that share it, and what is said while it is away."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import openai

from sightline.config import BatchLimits, FileLimits, ModelConfig, Settings
from tests.api.serving import server_of
from tests.api.test_batches_sdk import ended, line, lines_of, start, upload
from tests.jobs.conftest import redis_session, redis_url  # noqa: F401
from tests.jobs.redis_server import RedisServer, needs_redis

pytestmark = needs_redis


def test_servers_on_two_machines_share_batches_and_files(tmp_path: Path, redis_url: str) -> None:  # noqa: F811
    def settings(name: str, at_once: int) -> Settings:
        return Settings(
            models=(ModelConfig(name="m", engine="fake", options={"step_s": 0.002}),),
            data_dir=str(tmp_path / name),
            files=FileLimits(url=f"file://{tmp_path}/shared"),
            jobs=redis_url,
            batches=BatchLimits(max_concurrent=at_once),
        )

    taking, working = settings("taking", 0), settings("working", 16)
    with (
        server_of(taking) as port,
        server_of(working) as other,
    ):
        one, two = (
            openai.OpenAI(base_url=f"http://127.0.0.1:{at}/v1", api_key="none", max_retries=0) for at in (port, other)
        )
        file_id = upload(one, [line(str(number), f"n {number}") for number in range(60)])
        assert two.files.content(file_id).content == one.files.content(file_id).content
        batch = start(one, file_id)
        over = ended(two, batch.id)
        assert (over.status, over.request_counts.completed) == ("completed", 60)
        told = lines_of(one, over.output_file_id)
        assert {name: one["response"]["body"]["choices"][0]["message"]["content"] for name, one in told.items()} == {
            str(number): f"I see no pictures. You said: n {number}" for number in range(60)
        }
        assert [found.id for found in two.batches.list()] == [batch.id]


def test_while_redis_is_away_what_is_kept_is_a_503_and_chat_goes_on(tmp_path: Path) -> None:
    redis = RedisServer(tmp_path / "redis")
    settings = Settings(models=(ModelConfig(name="m", engine="fake"),), data_dir=str(tmp_path / "data"), jobs=redis.url)
    with (
        server_of(settings) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        _is_away(client)  # from the start on
        redis.start()
        _is_back(client)
        file = _post(client).json()
        redis.kill()
        _is_away(client)
        redis.start()
        _is_back(client)
        assert client.get(f"/v1/files/{file['id']}/content").content == b"x"
        redis.kill()


def _is_away(client: httpx.Client) -> None:
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    began = time.monotonic()
    for reply in (
        client.get("/v1/files"),
        client.get("/v1/batches"),
        _post(client),
    ):
        assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")
        assert reply.json()["error"]["type"] == "server_error"
        assert "127.0.0.1" not in reply.text
    told = client.get("/job/job-x")
    assert (told.status_code, list(told.json()), told.headers["retry-after"]) == (503, ["detail"], "1")
    assert time.monotonic() - began < 2
    assert client.get("/health").status_code == 200
    assert client.post("/v1/chat/completions", json=chat).status_code == 200


def _post(client: httpx.Client) -> httpx.Response:
    return client.post("/v1/files", data={"purpose": "vision"}, files={"file": ("a", b"x")})


def _is_back(client: httpx.Client) -> None:
    deadline = time.monotonic() + 5
    while {client.get("/v1/batches").status_code, client.get("/v1/files").status_code, _post(client).status_code} != {
        200
    }:
        assert time.monotonic() < deadline
        time.sleep(0.02)
