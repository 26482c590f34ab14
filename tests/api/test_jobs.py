"""Analyses that nobody waits for, and pictures by `file_id` in every dialect: through the application."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sightline.config import ModelConfig, Settings
from tests.api.serving import server_of
from tests.api.test_batches_sdk import png

BLUE = base64.b64encode(png("blue")).decode()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    settings = Settings(models=(ModelConfig(name="m", engine="fake"),), data_dir=str(tmp_path_factory.mktemp("data")))
    with (
        server_of(settings) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        yield client


def state(client: httpx.Client, job_id: str) -> Any:
    deadline = time.monotonic() + 20
    while (told := client.get(f"/job/{job_id}").json()) == {"status": "pending"}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return told


def test_an_analysis_that_nobody_waits_for(client: httpx.Client) -> None:
    reply = client.post("/analyze/async", json={"prompt": "hi", "image_base64": BLUE})
    assert reply.status_code == 202
    assert list(reply.json()) == ["job_id"]
    job_id = reply.json()["job_id"]
    assert state(client, job_id) == {
        "status": "complete", "result": {"result": "I see 1 picture: 56x56 mostly blue. You said: hi"}
    }  # fmt: skip
    unknown = client.get("/job/job-nobody")
    assert (unknown.status_code, list(unknown.json())) == (404, ["detail"])


def test_one_that_fails_tells_why(client: httpx.Client) -> None:
    broken = base64.b64encode(png("red")[:60]).decode()
    told = state(client, client.post("/analyze/async", json={"prompt": "hi", "image_base64": broken}).json()["job_id"])
    assert told["status"] == "failed"
    assert "image_base64" in told["error"]
    at_once = client.post("/analyze/async", json={"prompt": "", "image_base64": BLUE})
    assert (at_once.status_code, "prompt" in at_once.json()["detail"]) == (400, True)
    nobody = {"prompt": "hi", "image_base64": BLUE, "model": "nobody"}
    for path in ("/analyze", "/analyze/async"):
        reply = client.post(path, json=nobody)
        assert (reply.status_code, "nobody" in reply.json()["detail"]) == (404, True)


def test_one_key_is_one_job(client: httpx.Client) -> None:
    body = {"prompt": "hi", "image_base64": BLUE}
    jobs = {
        client.post("/analyze/async", json=body, headers={"Idempotency-Key": "k"}).json()["job_id"] for _ in range(3)
    }
    assert len(jobs) == 1
    other = client.post("/analyze/async", json={**body, "prompt": "ho"}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 422
    assert client.post("/analyze/async", json=body, headers={"Idempotency-Key": "a b"}).status_code == 400


CHAT = {"model": "m", "max_tokens": 40}
DIALECTS = {
    "image_url": ("/v1/chat/completions", {"type": "image_url", "image_url": {"file_id": "ID"}}, "image_url.file_id"),
    "part": ("/v1/chat/completions", {"type": "image_url", "file_id": "ID"}, "file_id"),
    "file": ("/v1/chat/completions", {"type": "file", "file": {"file_id": "ID"}}, "file.file_id"),
    "ovms": ("/v3/chat/completions", {"type": "image_url", "image_url": {"file_id": "ID"}}, "image_url.file_id"),
    "messages": ("/v1/messages", {"type": "image", "source": {"type": "file", "file_id": "ID"}}, "source.file_id"),
    "responses": ("/v1/responses", {"type": "input_image", "file_id": "ID"}, "file_id"),
}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_picture_by_its_file_id_in_every_dialect(client: httpx.Client, dialect: str) -> None:
    file = client.post("/v1/files", data={"purpose": "vision"}, files={"file": ("a.png", png("green"))}).json()
    path, part, place = DIALECTS[dialect]

    def ask(file_id: str) -> httpx.Response:
        named = json.loads(json.dumps(part).replace('"ID"', json.dumps(file_id)))
        turns = [{"role": "user", "content": [named]}]
        body = {"model": "m", "input": turns} if dialect == "responses" else {**CHAT, "messages": turns}
        return client.post(path, json=body)

    assert "56x56 mostly green" in ask(file["id"]).text
    unknown = ask("file-" + "0" * 32)
    assert unknown.status_code == 400
    assert place in unknown.text
    assert ask("../../etc/passwd").status_code == 400
    if dialect not in ("messages", "ovms"):
        assert unknown.json()["error"]["code"] == "image_file_not_found"


def test_a_conversation_goes_on_from_a_picture_by_its_file_id(client: httpx.Client) -> None:
    file = client.post("/v1/files", data={"purpose": "vision"}, files={"file": ("a.png", png("red"))}).json()
    turn = {"role": "user", "content": [{"type": "input_image", "file_id": file["id"]}]}
    first = client.post("/v1/responses", json={"model": "m", "input": [turn]}).json()
    after = {"model": "m", "input": "and now?", "previous_response_id": first["id"]}
    assert "mostly red" in client.post("/v1/responses", json=after).text
    listed = client.get(f"/v1/responses/{first['id']}/input_items").json()["data"]
    assert listed[0]["content"][0]["file_id"] == file["id"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "nonsense"}, "purpose"),
        ({}, "purpose"),
        ({"purpose": "batch", "expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"purpose": "batch", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"purpose": "batch", "expires_after[anchor]": "x", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        (
            {"purpose": "batch", "expires_after[anchor]": "created_at", "expires_after[seconds]": "5"},
            "expires_after[seconds]",
        ),
    ],
)
def test_what_is_wrong_with_a_form_is_told(client: httpx.Client, fields: dict[str, str], param: str) -> None:
    reply = client.post("/v1/files", data=fields, files={"file": ("a", b"x")})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == param
    assert param in reply.json()["error"]["message"]


def test_a_picture_of_no_bytes_is_not_kept(client: httpx.Client) -> None:
    reply = client.post("/v1/files", data={"purpose": "vision"}, files={"file": ("a.png", b"")})
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "file", "empty_image_file")
    assert "0 bytes" in error["message"]
    kept = client.get("/v1/files", params={"purpose": "vision"}).json()["data"]
    assert "a.png" not in [file["filename"] for file in kept if not file["bytes"]]


def test_a_files_content_is_given_out_as_no_page(client: httpx.Client) -> None:
    page = b"<script>alert(1)</script>"
    file = client.post("/v1/files", data={"purpose": "user_data"}, files={"file": ("a.html", page)}).json()
    assert "expires_at" not in file, "an integer or nothing, in OpenAI's schema"
    reply = client.get(f"/v1/files/{file['id']}/content")
    assert reply.content == page
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-disposition"].startswith("attachment")
    assert reply.headers["content-type"] == "application/octet-stream"
    listed = client.get("/v1/files", params={"limit": "1", "order": "asc"}).json()
    assert (len(listed["data"]), listed["has_more"], listed["first_id"]) == (1, True, listed["data"][0]["id"])
    assert client.get("/v1/files", params={"limit": "0"}).status_code == 400
    assert client.get("/v1/files", params={"after": "../x"}).status_code == 400
    for path in ("/v1/files/%2e%2e%2fetc", "/v1/files/file-%00", "/v1/files/..%2f..%2f/content"):
        assert client.get(path).status_code in (400, 404)
