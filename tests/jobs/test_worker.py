"""`sightline worker`: who does what a server does not do itself, with an engine of its own or by asking a server."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from redis import Redis

from sightline.api.elsewhere import Elsewhere, _named, _put
from sightline.api.work import Work
from sightline.cli import main
from sightline.config import BatchLimits, ModelConfig, Settings
from sightline.errors import ImageFileNotFound
from sightline.jobs import Item, Lease
from tests.api.serving import server_of, serving
from tests.api.test_batches_sdk import ended
from tests.jobs.kill import Server, Worker, submit
from tests.jobs.redis_server import needs_redis

pytestmark = [pytest.mark.anyio, needs_redis]


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (56, 56), colour).save(file, "PNG")
    return file.getvalue()


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


def item(body: dict[str, Any], tenant: str = "t", endpoint: str = "/v1/chat/completions") -> Lease:
    return Lease(Item(0, "a", json.dumps(body).encode(), "batch_req_1"), "batch_1", tenant, endpoint, 1, 1)


def asking(about: dict[str, Any]) -> dict[str, Any]:
    text = {"type": "text", "text": "what?"}
    return {"model": "m", "messages": [{"role": "user", "content": [about, text]}]}


async def test_a_worker_asks_a_server_and_shows_it_the_pictures_of_the_tenant(tmp_path: Path, redis_url: str) -> None:
    model = ModelConfig(name="m", engine="fake")
    server = Settings(models=(model,), data_dir=str(tmp_path / "server"))
    work = Work(Settings(models=(), jobs=redis_url, data_dir=str(tmp_path / "queue"), batches=BatchLimits()))
    with server_of(server) as port:
        asked = Elsewhere(
            f"http://127.0.0.1:{port}/v1", None, work.read_picture, at_once=4, timeout_s=20, picture_bytes=10**6
        )
        await work.start(asked.execute)
        file = await work.files.create("t", "a.png", "vision", pieces(picture("blue")))
        about = {"type": "image_url", "image_url": {"file_id": file.id, "detail": "low"}}
        answer = await asked.execute(item(asking(about)))
        assert (answer.status_code, answer.began, answer.retryable) == (200, True, False)
        assert b"mostly blue" in answer.body
        foreign = await asked.execute(item(asking(about), tenant="u"))
        assert (foreign.status_code, foreign.retryable) == (400, False)
        assert json.loads(foreign.body)["error"]["code"] == "image_file_not_found"
        wrong = await asked.execute(item({"model": "m", "messages": []}))
        assert (wrong.status_code, wrong.retryable) == (400, False)
        await work.close()
        await asked.close()


async def _no_pictures(file_id: str, tenant: str, max_bytes: int) -> bytes:
    raise ImageFileNotFound("there is none")


async def test_a_server_that_is_away_or_refuses_the_key_is_waited_for() -> None:
    def to(port: int) -> Elsewhere:
        return Elsewhere(
            f"http://127.0.0.1:{port}", "wrong", _no_pictures, at_once=4, timeout_s=20, picture_bytes=10**6
        )

    away = await to(1).execute(item(asking({"type": "text", "text": "x"})))
    assert (away.status_code, away.retryable, away.began) == (503, True, False)

    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
            return
        await send({"type": "http.response.start", "status": 401, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    with serving(refuses) as port:
        refused = await to(port).execute(item(asking({"type": "text", "text": "x"})))
    assert (refused.status_code, refused.retryable, refused.began) == (401, True, False)


@pytest.mark.parametrize(
    ("part", "put"),
    [
        ({"type": "image_url", "image_url": {"file_id": "f", "detail": "low"}}, {"url": "data:", "detail": "low"}),
        ({"type": "image_url", "file_id": "f"}, "data:"),
        ({"type": "image", "file_id": "f"}, "data:"),
        ({"type": "input_image", "file_id": "f", "detail": "low"}, "data:"),
        ({"type": "file", "file": {"file_id": "f"}}, "data:"),
    ],
)
async def test_every_way_to_name_a_file_becomes_the_picture(part: dict[str, Any], put: Any) -> None:
    ((found, file_id),) = _named(asking(part))
    assert (found, file_id) == (part, "f")
    _put(part, "data:")
    assert part["image_url"] == put
    assert part["type"] in ("image_url", "input_image")
    assert "file_id" not in part
    assert "file" not in part
    assert list(_named([{"type": "text", "text": "file_id"}, {"file_id": "f"}])) == []


@pytest.mark.timeout(60)
def test_one_that_is_told_to_end_gives_back_its_lines_at_once(tmp_path: Path, redis_url: str) -> None:
    config = tmp_path / "sightline.yaml"
    config.write_text("models: [{name: m, engine: fake}]\nbatches: {max_concurrent: 0}\n")
    server = Server(tmp_path / "data", config=config, jobs=redis_url)
    hanging, other = (Worker(tmp_path / "data", redis_url, step_s=step_s) for step_s in (1000.0, 0.0))
    with Redis.from_url(redis_url) as redis:
        try:
            server.start()
            batch_id = submit(server.client, 5)
            hanging.start()
            leased = f"sightline:batch::{batch_id}:leased"
            _until(lambda: redis.hlen(leased) == 5)
            began = time.monotonic()
            hanging.kill(signal.SIGTERM)
            assert time.monotonic() - began < 5
            assert redis.hlen(leased) == 0
            assert set(redis.hvals(leased.replace("leased", "attempts"))) == {b"0"}, "as if never tried"
            other.start()
            over = ended(server.client, batch_id)
            assert (over.status, over.request_counts.completed) == ("completed", 5)
        finally:
            for process in (server, hanging, other):
                if process.is_alive:
                    process.kill()


@contextmanager
def telling(tmp_path: Path, redis_url: str, *how: str) -> Iterator[tuple[subprocess.Popen[str], httpx.Client]]:
    """A worker with metrics, and a client of theirs."""
    command = [sys.executable, "-m", "sightline.cli", "worker", "--jobs", redis_url, "--data-dir", str(tmp_path), *how]
    process = subprocess.Popen([*command, "--metrics", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().removeprefix("Metrics: ").strip().removesuffix("/metrics")
        with httpx.Client(base_url=address, timeout=60) as client:
            yield process, client
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("how", [("--engine", "fake"), ("--server", "http://127.0.0.1:1")])
def test_it_tells_its_metrics(tmp_path: Path, redis_url: str, how: tuple[str, ...]) -> None:
    with telling(tmp_path, redis_url, *how) as (process, client):
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Sightline works on")
        assert client.get("/ready").json() == {"status": "ready"}
        told = client.get("/metrics").text
        assert "sightline_jobs_requests_waiting 0.0" in told
        assert ('sightline_model_state{model="fake",state="ready"} 1.0' in told) == (how[0] == "--engine")
        assert client.get("/v1/models").status_code == 404
        assert client.get("/metrics", headers={"Host": "elsewhere.example"}).status_code == 421
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_while_its_model_loads_it_lives_and_is_not_ready(tmp_path: Path, redis_url: str) -> None:
    with telling(tmp_path, redis_url, "--engine", "fake", "--option", "startup_s=1000") as (_, client):
        assert client.get("/health").status_code == 200
        reply = client.get("/ready")
        assert (reply.status_code, reply.json()) == (503, {"status": "not ready"})


def _until(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--jobs redis://HOST:PORT/DB"),
        (["--jobs", "redis://h/0", "--server", "http://h", "--engine", "fake"], "--engine is about an engine"),
        (["--jobs", "redis://h/0", "--engine", "fake", "--concurrency", "0"], "--concurrency is 1 or more"),
        (["--jobs", "redis:/oops", "--engine", "fake"], "jobs must be redis://HOST:PORT/DB"),
        (["--jobs", "postgres://h/0", "--engine", "fake"], "redis://HOST:PORT/DB"),
        (["--jobs", "redis://h/0", "--server", "localhost"], "http://127.0.0.1:8000"),
        (["--jobs", "redis://h/0", "--engine", "fake", "--metrics", "9091"], "--metrics takes HOST:PORT"),
        (["--jobs", "redis://h/0", "--engine", "fake", "--metrics", "192.0.2.1:9091"], "Choose another with --metrics"),
    ],
)
def test_what_is_wrong_with_its_arguments_is_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["worker", "--data-dir", str(tmp_path), *arguments]) == 1
    assert told in capsys.readouterr().err
