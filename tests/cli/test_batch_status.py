"""`sightline batch status`: what it prints, and that it waits for the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from sightline.cli import main
from sightline.config import ModelConfig, Settings
from tests.api.serving import server_of
from tests.api.test_batches_sdk import line, start, upload


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data: Path = tmp_path_factory.mktemp("data")
    settings = Settings(models=(ModelConfig(name="m", engine="fake"),), data_dir=str(data))
    with server_of(settings) as port:
        yield f"http://127.0.0.1:{port}/v1"


def test_it_is_watched_until_it_has_ended(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    file_id = upload(client, [line("a", "hi"), line("b", "[[fake: slow 0.05]] hi"), line("c", "hi", temperature=9)])
    batch = start(client, file_id)
    assert main(["batch", "status", batch.id, "--watch", "--url", url]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "completed: 3 requests, 2 answered, 1 failed"
    over = client.batches.retrieve(batch.id)
    assert rest == [f"output file: {over.output_file_id}", f"error file: {over.error_file_id}"]


def test_what_is_wrong_is_told(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    batch = start(client, upload(client, b"{\n"))
    assert main(["batch", "status", batch.id, "--watch", "--url", url]) == 1
    told = capsys.readouterr().out
    assert told.startswith("failed: 0 requests")
    assert "line 1: This line is not valid JSON: input data was truncated." in told
    assert "(invalid_json_line)" in told
    assert main(["batch", "status", "batch_nobody", "--url", url]) == 1
    assert "There is no batch" in capsys.readouterr().err
