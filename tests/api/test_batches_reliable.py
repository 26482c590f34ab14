"""What a batch's client is promised when things go wrong: killed servers, ended days, full and broken disks."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from sightline.api.work import Work
from sightline.config import ModelConfig, Settings
from sightline.testing.subject import patience
from tests.api.serving import server_of
from tests.api.test_batches_sdk import ended, line, lines_of, start, upload
from tests.jobs.kill import Server


@pytest.mark.timeout(120)
def test_a_hundred_posts_with_one_key_make_one_batch_that_outlives_the_server(tmp_path: Path) -> None:
    server = Server(tmp_path)
    server.start()
    try:
        file_id = upload(server.client, [line("a", "hi")])
        key = {"extra_headers": {"Idempotency-Key": "k"}}
        with ThreadPoolExecutor(20) as pool:
            made = list(pool.map(lambda _: start(server.client, file_id, **key).id, range(100)))
        assert len(set(made)) == 1
        server.kill()
        server.start()
        assert start(server.client, file_id, **key).id == made[0]
        assert len(server.client.batches.list().data) == 1
        with pytest.raises(openai.UnprocessableEntityError):
            start(server.client, file_id, metadata={"a": "b"}, **key)
        assert ended(server.client, made[0]).status == "completed"
    finally:
        server.kill(signal.SIGTERM)


def test_a_server_that_is_told_to_end_gives_back_its_lines(tmp_path: Path) -> None:
    def settings(script: str) -> Settings:
        model = ModelConfig(name="m", engine="fake", options={"script": script})
        return Settings(models=(model,), data_dir=str(tmp_path))

    def client(port: int) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)

    hanging, quick = settings("[[fake: hang]]"), settings("[[fake: say done]]")
    with server_of(hanging) as port:
        batch = start(client(port), upload(client(port), [line(str(n), "say it") for n in range(5)]))
        deadline = time.monotonic() + 20
        while client(port).batches.retrieve(batch.id).status != "in_progress":
            assert time.monotonic() < deadline
    with server_of(quick) as port:
        over = ended(client(port), batch.id)
        assert (over.status, over.request_counts.completed) == ("completed", 5)


def test_a_directory_that_cannot_be_written_stops_no_chat(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    settings = Settings(models=(ModelConfig(name="m", engine="fake"),), data_dir=str(tmp_path / "file" / "data"))
    with server_of(settings) as port:
        url = f"http://127.0.0.1:{port}"
        chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        assert httpx.post(f"{url}/v1/chat/completions", json=chat).status_code == 200
        for reply in (
            httpx.get(f"{url}/v1/files"),
            httpx.get(f"{url}/v1/batches"),
            httpx.post(f"{url}/v1/files", data={"purpose": "batch"}, files={"file": ("a", b"x")}),
            httpx.get(f"{url}/job/job-x"),
        ):
            assert reply.status_code == 503
            assert reply.headers["retry-after"] == "1"
            assert str(tmp_path) not in reply.text


@pytest.mark.anyio
async def test_such_a_directory_is_told_of_once_and_used_when_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sightline.api.work._AGAIN_S", 0.0)
    caplog.set_level(logging.INFO, "sightline.api.work")
    in_the_way = tmp_path / "file"
    in_the_way.write_text("in the way")
    work = Work(Settings(models=(), data_dir=str(in_the_way / "data")))
    begin, tries, ready = work._backend.start, 0, asyncio.Event()

    async def start_counted(_: Any) -> None:
        nonlocal tries
        tries += 1
        if tries == 5:
            in_the_way.unlink()
        await begin()
        ready.set()

    async def execute(*_: Any) -> Any:
        raise AssertionError("nothing is asked")

    monkeypatch.setattr(type(work._backend), "start", start_counted)
    await work.start(execute)
    try:
        await asyncio.wait_for(ready.wait(), 20 * patience())
        assert list(await work.files.list("anyone", limit=1)) == []
    finally:
        await work.close()
    assert tries >= 5
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert "Not a directory" in caplog.text
    assert "--data-dir" in caplog.text


def test_servers_on_one_directory_share_a_batch(tmp_path: Path) -> None:
    settings = Settings(
        models=(ModelConfig(name="m", engine="fake", options={"step_s": 0.002}),), data_dir=str(tmp_path)
    )
    with (
        server_of(settings) as port,
        server_of(settings) as other,
    ):
        one, two = (
            openai.OpenAI(base_url=f"http://127.0.0.1:{at}/v1", api_key="none", max_retries=0) for at in (port, other)
        )
        batch = start(one, upload(one, [line(str(number), f"n {number}") for number in range(120)]))
        over = ended(two, batch.id)
        assert (over.status, over.request_counts.completed) == ("completed", 120)
        told = lines_of(two, over.output_file_id)
        assert {name: one["response"]["body"]["choices"][0]["message"]["content"] for name, one in told.items()} == {
            str(number): f"I see no pictures. You said: n {number}" for number in range(120)
        }
