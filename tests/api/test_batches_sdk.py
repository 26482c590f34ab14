"""Files and batches as OpenAI's own SDK speaks of them, against a server with the fake engine."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from sightline.config import FileLimits, ModelConfig, Settings
from tests.api.serving import sdk, server_of


def png(colour: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (56, 56), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    settings = Settings(
        models=(ModelConfig(name="m", engine="fake", aliases=("other",)),),
        data_dir=str(tmp_path_factory.mktemp("data")),
        files=FileLimits(max_bytes=1_000_000, max_tenant_bytes=4_000_000),
    )
    with server_of(settings) as port:
        yield sdk(port)


def line(custom_id: str, content: Any, url: str = "/v1/chat/completions", **body: Any) -> dict[str, Any]:
    chat = {"model": "m", "messages": [{"role": "user", "content": content}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": chat}


def upload(client: openai.OpenAI, lines: list[dict[str, Any]] | bytes) -> str:
    content = lines if isinstance(lines, bytes) else "\n".join(map(json.dumps, lines)).encode()
    return client.files.create(file=("in.jsonl", content), purpose="batch").id


def start(client: openai.OpenAI, file_id: str, endpoint: Any = "/v1/chat/completions", **more: Any) -> Any:
    return client.batches.create(input_file_id=file_id, endpoint=endpoint, completion_window="24h", **more)


def ended(client: openai.OpenAI, batch_id: str) -> Any:
    deadline = time.monotonic() + 20
    while (batch := client.batches.retrieve(batch_id)).status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)
    return batch


def lines_of(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    found = [json.loads(text) for text in client.files.content(file_id).text.splitlines()]
    assert len({one["custom_id"] for one in found}) == len(found)
    return {one["custom_id"]: one for one in found}


def test_a_batch_about_pictures_from_its_file_to_its_answers(client: openai.OpenAI) -> None:
    red = client.files.create(file=("red.png", png("red")), purpose="vision")
    blue = base64.b64encode(png("blue")).decode()
    hi = {"type": "text", "text": "hi"}
    by_id = [{"type": "image_url", "image_url": {"file_id": red.id}}, hi]
    by_url = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{blue}"}}, hi]
    wrong = [{"type": "image_url", "image_url": {"file_id": "file-" + "0" * 32}}]
    lines = [line("a", by_id), line("b", by_url), line("c", wrong), line("d", "hello", temperature=9)]
    file_id = upload(client, lines)
    batch = start(client, file_id, metadata={"night": "ly"})
    assert (batch.object, batch.status, batch.metadata) == ("batch", "validating", {"night": "ly"})
    assert batch.expires_at == batch.created_at + 86_400
    batch = ended(client, batch.id)
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (4, 2, 2)
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at
    answers, failures = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    told = {key: one["response"]["body"]["choices"][0]["message"]["content"] for key, one in answers.items()}
    assert told == {
        name: f"I see 1 picture: 56x56 mostly {colour}. You said: hi" for name, colour in (("a", "red"), ("b", "blue"))
    }
    assert answers["a"]["error"] is None
    assert answers["a"]["response"]["status_code"] == 200
    assert answers["a"]["response"]["request_id"].startswith("req_")
    assert failures["c"]["response"]["body"]["error"]["code"] == "image_file_not_found"
    assert failures["d"]["response"]["status_code"] == 400
    assert failures["d"]["response"]["body"]["error"]["param"] == "temperature"
    usage = [one["response"]["body"]["usage"]["total_tokens"] for one in answers.values()]
    assert batch.to_dict()["usage"]["total_tokens"] == sum(usage)
    assert batch.to_dict()["model"] == "m"
    kept = client.files.retrieve(batch.output_file_id)
    assert (kept.purpose, kept.bytes) == ("batch_output", len(client.files.content(kept.id).content))


def test_the_other_endpoints(client: openai.OpenAI) -> None:
    body = {"model": "m", "input": "hello"}
    for endpoint in ("/v1/responses", "/v1/embeddings"):
        line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": body}
        batch = ended(client, start(client, upload(client, [line]), endpoint).id)
        (answer,) = lines_of(client, batch.output_file_id).values()
        assert answer["response"]["body"]["object"] == ("response" if "responses" in endpoint else "list")
        assert batch.to_dict()["usage"]["input_tokens"] > 0


def test_a_file_with_wrong_lines_fails_with_each_of_them(client: openai.OpenAI) -> None:
    good = json.dumps(line("a", "x"))
    wrong = [
        (good, "duplicate_custom_id"), ("{", "invalid_json_line"), ("[]", "invalid_json_line"),
        (json.dumps(line("b", "x", url="/v1/embeddings")), "invalid_url"),
        (json.dumps(line("c", "x", model="other")), "mismatched_model"),
        (json.dumps(line("d", "x", stream=True)), "unsupported_parameter"),
        (json.dumps({**line("e", "x"), "method": "GET"}), "invalid_method"),
        (json.dumps({**line("f", "x"), "body": 5}), "invalid_request_body"),
    ]  # fmt: skip
    content = "\n".join([good, *(text for text, _ in wrong)]).encode()
    batch = ended(client, start(client, upload(client, content)).id)
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.output_file_id is batch.error_file_id is None
    assert [(error.line, error.code) for error in batch.errors.data] == [
        (number, code) for number, (_, code) in enumerate(wrong, 2)
    ]
    (empty,) = ended(client, start(client, upload(client, b"\n \n")).id).errors.data
    assert (empty.code, empty.line) == ("empty_file", None)


def test_what_is_done_is_kept_when_a_batch_is_cancelled(client: openai.OpenAI) -> None:
    quick = [line(f"q{n}", "hi") for n in range(3)]
    hanging = [line(f"h{n}", "[[fake: hang]]") for n in range(20)]
    batch = start(client, upload(client, [*quick, *hanging]))
    deadline = time.monotonic() + 20
    while client.batches.retrieve(batch.id).request_counts.completed < 3:  # type: ignore[union-attr]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    so_far = client.get(f"/batches/{batch.id}/results", cast_to=httpx.Response).text.splitlines()
    assert {json.loads(text)["custom_id"] for text in so_far} == {one["custom_id"] for one in quick}
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(client, batch.id)
    all_of_it = client.get(f"/batches/{batch.id}/results", cast_to=httpx.Response).text.splitlines()
    assert len(all_of_it) == 23
    assert set(so_far) < set(all_of_it)
    assert batch.status == "cancelled"
    assert batch.cancelled_at >= batch.cancelling_at
    answers, failures = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    assert set(answers) == {one["custom_id"] for one in quick}
    assert {key: one["error"]["code"] for key, one in failures.items()} == {
        one["custom_id"]: "batch_cancelled" for one in hanging
    }
    assert all(one["response"] is None for one in failures.values())
    again = client.batches.cancel(batch.id)
    assert (again.status, again.cancelled_at) == ("cancelled", batch.cancelled_at)
    answer = client.chat.completions.create(model="m", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content, "the slots are free again"


def test_lists_in_pages(client: openai.OpenAI) -> None:
    ids = [start(client, upload(client, [line("a", "x")])).id for _ in range(3)]
    first = client.batches.list(limit=2)
    assert [batch.id for batch in first.data] == ids[:0:-1]
    assert first.has_more
    assert client.batches.list(limit=2, after=ids[1]).data[0].id == ids[0]
    with pytest.raises(openai.BadRequestError, match="after"):
        client.batches.list(after="batch_nobody")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_nobody")


def test_files_by_the_sdk(client: openai.OpenAI) -> None:
    content = b"\x00\xff" * 5000
    file = client.files.create(
        file=("../../etc/passwd", content), purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert (file.object, file.bytes, file.status) == ("file", 10_000, "processed")
    assert file.expires_at == file.created_at + 3600
    assert client.files.content(file.id).content == content
    assert file.id in [found.id for found in client.files.list(purpose="user_data")]
    assert file.id not in [found.id for found in client.files.list(purpose="vision")]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)
    with pytest.raises(openai.APIStatusError) as large:
        client.files.create(file=("a", b"x" * 1_000_001), purpose="user_data")
    assert large.value.status_code == 413


def test_one_key_is_one_batch(client: openai.OpenAI) -> None:
    file_id = upload(client, [line("a", "x")])
    key = {"extra_headers": {"Idempotency-Key": "k-1"}}
    made = [start(client, file_id, **key).id for _ in range(3)]
    assert len(set(made)) == 1
    with pytest.raises(openai.UnprocessableEntityError) as other:
        start(client, file_id, metadata={"x": "y"}, **key)
    assert other.value.code == "idempotency_key_reused"


def test_the_store_of_this_server_is_in_its_directory_alone(tmp_path: Path) -> None:
    settings = Settings(models=(ModelConfig(name="m", engine="fake"),), data_dir=str(tmp_path / "data"))
    with server_of(settings) as port:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        client.files.create(file=("a.png", png("red")), purpose="vision")
        client.files.create(file=("b.png", png("red")), purpose="vision")
        assert len(list((tmp_path / "data" / "files").iterdir())) == 1, "one content, one blob"
    assert not list((tmp_path / "data" / "workers").iterdir())
