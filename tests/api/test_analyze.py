"""The simple service: a prompt and a picture, a text back."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from PIL import Image as PILImage
from starlette.types import ASGIApp

from sightline import metrics
from sightline.api.analyze import default_model, to_num_bytes
from sightline.api.app import create_app
from sightline.config import ModelConfig, OptimizedPictures, Settings
from sightline.errors import Overloaded, UnsupportedFeature
from sightline.models import ModelStatus
from sightline.service import Service
from sightline.types import ImageRef
from tests.api.standin import FINISH, INFO, PREPARED, Call, Reply, ScriptedService, app_of, get, post, say

pytestmark = pytest.mark.anyio

SETTINGS = Settings(
    models=(ModelConfig(name="fake", engine="fake", max_concurrent=4, max_queue=4),),
    optimized=OptimizedPictures(max_side=512),
)


def file_of(width: int, height: int, colour: str, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    PILImage.new("RGB", (width, height), colour).save(file, kind)
    return file.getvalue()


def base64_of(*picture: Any) -> str:
    return base64.b64encode(file_of(*picture)).decode()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def running(settings: Settings = SETTINGS) -> AsyncIterator[ASGIApp]:
    """The application on the real service and the fake engine, which tells what it sees."""
    service = Service(settings)
    await service.start()
    try:
        yield create_app(service, settings)
    finally:
        await service.close()


def body(**fields: Any) -> dict[str, Any]:
    return {"prompt": "What is this?", "image_base64": base64_of(64, 48, "red"), **fields}


# --- what is answered ------------------------------------------------------------------------------------------------


async def test_the_model_sees_the_picture() -> None:
    async with running() as app:
        bare = await post(app, body(), "/analyze")
        assert bare.status == 200
        assert set(bare.json) == {"result"}
        assert "1 picture: 64x48 mostly red" in bare.json["result"]
        assert bare.json["result"].endswith("What is this?")
        assert bare.headers["x-sightline-engine"] == "fake"
        uri = f"data:image/jpeg;base64,{base64_of(640, 32, 'blue')}"
        assert (
            "640x32 mostly blue" in (await post(app, body(image_base64=uri, model="fake"), "/analyze")).json["result"]
        )


async def test_the_model_sees_the_smaller_jpeg() -> None:
    async with running() as app:
        large = await post(app, body(image_base64=base64_of(2000, 1000, "green")), "/analyze/optimized")
        assert large.status == 200
        assert "512x256 mostly green" in large.json["result"], "the picture that was served, not the one that was sent"
        served = large.json["served"]
        assert (served["width"], served["height"]) == (512, 256)
        assert 500 < served["bytes"] < 20_000
        small = await post(app, body(), "/analyze/optimized")
        assert (small.json["served"]["width"], small.json["served"]["height"]) == (64, 48), "never enlarged"


# --- a file in a form ------------------------------------------------------------------------------------------------


async def upload(
    app: ASGIApp, fields: dict[str, str], file: bytes | None, query: str = "", *, name: str = "file"
) -> Reply:
    files = {} if file is None else {name: ("../../etc/passwd", file, "text/html")}
    parts: Any = {key: (None, value) for key, value in fields.items()} | files
    sent = httpx2.Request("POST", "http://localhost", files=parts or {"": ""})
    headers = {"host": "localhost", "content-type": sent.headers["content-type"]}
    return await Call("POST", "/analyze/upload", sent.read(), headers, query=query).run(app)


async def test_a_file_is_seen_with_its_prompt_in_the_form_or_the_query() -> None:
    file = file_of(64, 48, "red", "WEBP")
    async with running() as app:
        for fields, query in (
            ({"prompt": "What is this?"}, ""),
            ({}, "prompt=What+is%20this%3F"),
            ({"model": "fake"}, "prompt=What%20is%20this%3F"),
            ({"prompt": "What is this?"}, "model=fake&other=1"),
        ):
            reply = await upload(app, fields, file, query)
            assert reply.status == 200, reply.body
            assert "64x48 mostly red" in reply.json["result"]
            assert reply.json["result"].endswith("What is this?")
        damaged = await upload(app, {"prompt": "?"}, file[:60])
        assert (damaged.status, damaged.json["detail"][:6]) == (400, "file: ")


@pytest.mark.parametrize(
    ("fields", "query", "name", "said"),
    [
        ({}, "", "file", "'prompt'"),
        ({"prompt": ""}, "", "file", "'prompt'"),
        ({}, "prompt=", "file", "'prompt'"),
        ({"prompt": "a"}, "prompt=a", "file", "'prompt': it was sent twice"),
        ({}, "prompt=a&prompt=b", "file", "'prompt': it was sent twice"),
        ({"prompt": "a", "model": ""}, "", "file", "'model'"),
        ({"prompt": "a"}, "", "picture", "'file'"),
        ({"prompt": "a", "file": "b"}, "", "", "'file'"),
    ],
)
async def test_what_is_wrong_with_a_form_is_named(fields: dict[str, str], query: str, name: str, said: str) -> None:
    service = ScriptedService()
    reply = await upload(app_of(service), fields, file_of(8, 8, "red") if name else None, query, name=name)
    assert (reply.status, set(reply.json)) == (400, {"detail"})
    assert said in reply.json["detail"]
    assert not service.requests


async def test_an_upload_is_a_form() -> None:
    reply = await post(app_of(ScriptedService()), body(), "/analyze/upload")
    assert (reply.status, set(reply.json)) == (415, {"detail"})


async def test_answers_are_greedy() -> None:
    service = ScriptedService()
    reply = await post(app_of(service), body(), "/analyze")
    assert reply.json == {"result": "A cat"}
    (request,) = service.requests
    assert request.sampling.temperature == 0
    assert [type(part).__name__ for part in request.messages[0].content] == ["ImageRef", "Text"]


# --- which model -----------------------------------------------------------------------------------------------------

SEES = ModelStatus("sees", "ready", "scripted", 1, INFO)
BLIND = ModelStatus("blind", "ready", "scripted", 1, replace(INFO, vision=None))
EMBEDS = ModelStatus("embeds", "ready", "scripted", 1, replace(INFO, work=frozenset({"embeddings"})))
LOADS = ModelStatus("loads", "loading", "scripted", 1, None)
FAILED = ModelStatus("failed", "failed", "scripted", 1, None)


@pytest.mark.parametrize(
    ("statuses", "chosen"),
    [
        ((BLIND, EMBEDS, SEES), "sees"),
        ((LOADS, SEES), "loads"),
        ((FAILED, BLIND, SEES), "sees"),
        ((BLIND, FAILED), "failed"),
    ],
)
def test_the_first_model_that_sees_is_asked(statuses: tuple[ModelStatus, ...], chosen: str) -> None:
    assert default_model(statuses) == chosen


async def test_without_a_model_that_sees_it_says_so() -> None:
    with pytest.raises(UnsupportedFeature):
        default_model([BLIND])
    reply = await post(app_of(ScriptedService(statuses=(BLIND,))), body(), "/analyze")
    assert (reply.status, reply.json["detail"]) == (
        400,
        "No model here can see pictures. GET /v1/models lists what is served.",
    )


# --- what is refused -------------------------------------------------------------------------------------------------


ROUTES = ["/analyze", "/analyze/optimized"]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"image_base64": None}, "image_base64"),
        ({"image_base64": ["a"]}, "image_base64"),
        ({"image_base64": ""}, "image_base64"),
        ({"image_base64": "/etc/passwd"}, "opens no paths"),
        ({"image_base64": "file:///a.png"}, "opens no paths"),
        ({"image_base64": "https://127.0.0.1/a.png"}, "no URL is opened"),
        ({"model": ""}, "model"),
    ],
)
async def test_a_field_at_fault_is_named(path: str, fields: dict[str, Any], said: str) -> None:
    service = ScriptedService()
    reply = await post(app_of(service), body(**fields), path)
    assert (reply.status, set(reply.json)) == (400, {"detail"})
    assert said in reply.json["detail"]
    assert not service.requests


async def test_a_picture_at_fault_is_named() -> None:
    async with running() as app:
        for path in ROUTES:
            for bad in ("not base64!", "aGVsbG8=", "data:,hello", body()["image_base64"][:120]):
                reply = await post(app, body(image_base64=bad), path)
                assert (reply.status, set(reply.json)) == (400, {"detail"})
                assert reply.json["detail"].startswith("image_base64: ")
            unknown = await post(app, body(model="other"), path)
            assert (unknown.status, unknown.json["detail"][:11]) == (404, "The model '")


async def test_every_error_below_the_path_has_the_shape() -> None:
    app = app_of(ScriptedService(), max_body_bytes=100)
    replies = [
        (await post(app, b"{", "/analyze"), 400),
        (await post(app, body(), "/analyze"), 413),
        (await post(app, b"a=b", "/analyze", content_type="text/plain"), 415),
        (await get(app, "/analyze"), 405),
        (await get(app, "/analyze/elsewhere"), 404),
    ]
    for reply, status in replies:
        assert reply.status == status
        assert list(reply.json) == ["detail"]
        assert isinstance(reply.json["detail"], str)
        assert reply.headers["x-request-id"]
    assert set((await get(app, "/analyzer")).json) == {"error"}, "another path"


async def test_a_bug_says_nothing_but_its_number() -> None:
    async def broken(request: Any) -> Any:
        raise RuntimeError("secret")
        yield

    reply = await post(app_of(ScriptedService(script=broken)), body(), "/analyze")
    assert reply.status == 500
    assert "secret" not in reply.json["detail"]
    assert reply.headers["x-request-id"] in reply.json["detail"]


async def test_a_full_server_says_when_to_come_back() -> None:
    async def full(request: Any) -> Any:
        raise Overloaded("Too many requests wait.", retry_after_s=3)
        yield

    reply = await post(app_of(ScriptedService(script=full)), body(), "/analyze")
    assert (reply.status, reply.json, reply.headers["retry-after"]) == (503, {"detail": "Too many requests wait."}, "3")


@pytest.mark.parametrize("path", ROUTES)
async def test_a_client_that_leaves_ends_the_work(path: str) -> None:
    began = asyncio.Event()

    async def slow(request: Any) -> Any:
        yield PREPARED
        began.set()
        await asyncio.Event().wait()

    service = ScriptedService(script=slow)
    call = Call("POST", path, json.dumps(body()).encode())
    running = asyncio.create_task(call.run(app_of(service)))
    await began.wait()
    call.left.set()
    reply = await running
    assert (service.open, reply.status) == (0, 0)


# --- what is counted -------------------------------------------------------------------------------------------------


def sample(name: str) -> float:
    return metrics.REGISTRY.get_sample_value(name) or 0.0


async def test_requests_are_counted_under_the_names_that_dashboards_know() -> None:
    file = file_of(64, 48, "red")
    names = "vlm_requests_total", "vlm_request_latency_seconds_count", "vlm_image_size_bytes_sum"
    before = [sample(name) for name in names]
    app = app_of(ScriptedService(script=say(FINISH)))
    await post(app, body(), "/analyze")
    await post(app, body(prompt=""), "/analyze")
    assert [sample(name) - b for name, b in zip(names, before, strict=True)] == [2, 2, len(file)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
def test_the_size_of_a_file_is_known_before_it_is_decoded(size: int) -> None:
    digits = base64.b64encode(bytes(size)).decode()
    for source in (f"data:;base64,{digits}", f"data:image/png;base64,{digits}", bytes(size)):
        assert to_num_bytes(ImageRef(source, "image_base64")) == size
