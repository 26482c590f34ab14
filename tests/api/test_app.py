"""What happens to every request, whatever its route."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import pytest

from sightline import metrics
from sightline.api.app import PUBLIC, Edge, create_app
from sightline.config import ModelConfig, Settings
from sightline.errors import ModelNotFound
from sightline.items import Item
from sightline.models import ModelStatus
from sightline.service import Service
from sightline.types import ChatRequest
from tests.api.standin import FINISH, INFO, JSON_HEADERS, PREPARED, Call, ScriptedService, app_of, chat, get, post, say

pytestmark = pytest.mark.anyio


# --- routes ----------------------------------------------------------------------------------------------------------


async def test_models() -> None:
    service = ScriptedService(
        statuses=(
            ModelStatus("m", "ready", "scripted", 5, INFO),
            ModelStatus("org/big", "loading", "openvino", 6, None),
        )
    )
    app = app_of(service)
    listed = (await get(app, "/v1/models")).json
    assert listed["object"] == "list"
    assert [(m["id"], m["object"], m["created"], m["owned_by"]) for m in listed["data"]] == [
        ("m", "model", 5, "sightline"),
        ("org/big", "model", 6, "sightline"),
    ]
    assert (await get(app, "/v1/models/m")).json["sightline"] == {
        "state": "ready", "progress": 1.0, "engine": "scripted", "vision": True, "context_length": 100,
        "work": ["messages"],
    }  # fmt: skip
    slashed = await get(app, "/v1/models/org/big")
    assert slashed.json["sightline"] == {
        "state": "loading", "progress": None, "engine": "openvino", "vision": None, "context_length": None,
        "work": None,
    }  # fmt: skip
    unknown = await get(app, "/v1/models/" + "x" * 5000)
    assert (unknown.status, unknown.json["error"]["code"], unknown.json["error"]["param"]) == (
        404, "model_not_found", "model",
    )  # fmt: skip
    assert len(unknown.body) < 400


async def test_probes_and_metrics() -> None:
    service = ScriptedService()
    app = app_of(service)
    assert (await get(app, "/health")).json == {"status": "ok"}
    assert (await get(app, "/ready")).status == 200
    service.statuses = (ModelStatus("m", "loading", "scripted", 5, None),)
    assert (await get(app, "/ready")).status == 503
    assert (await get(app, "/health")).status == 200
    metrics = await get(app, "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=")
    assert b"sightline_ttft_seconds" in metrics.body


async def test_input_tokens() -> None:
    reply = await post(app_of(ScriptedService()), chat(), "/v1/chat/completions/input_tokens")
    assert reply.json == {
        "object": "input_tokens", "input_tokens": 20, "text_tokens": 8, "image_tokens": 12,
        "images": [{"index": 0, "tokens": 12, "served_width": 112, "served_height": 84}],
    }  # fmt: skip
    assert (await post(app_of(ScriptedService()), chat(n=0), "/v1/chat/completions/input_tokens")).status == 400


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/v1", 404), ("GET", "/v1/models/", 404),
        ("GET", "/v1/chat/completions/", 404), ("POST", "/v1/chat", 404), ("GET", "/health/", 404),
        ("GET", "/../etc/passwd", 404), ("GET", "/V1/MODELS", 404),
        ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/chat/completions", 405), ("POST", "/v1/models", 405),
        ("DELETE", "/v1/models/m", 405), ("POST", "/health", 405), ("OPTIONS", "/v1/chat/completions", 405),
        ("BREW", "/v1/models", 405),
    ],
)  # fmt: skip
async def test_other_paths_and_methods_get_the_error_object(method: str, path: str, status: int) -> None:
    reply = await get(app_of(ScriptedService()), path, method)
    assert reply.status == status
    error = reply.json["error"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]
    assert ("allow" in reply.headers) == (status == 405)


async def test_a_path_that_is_not_there_says_what_is() -> None:
    app = app_of(ScriptedService())
    assert (await get(app, "/v1")).json["error"]["message"] == "There is no GET /v1 here. GET /docs tells what is."
    assert (await get(app, "/docs")).status == 200
    for path in ("/ui", "/ui/"):
        assert "sightline serve --ui" in (await get(app, path)).json["error"]["message"]


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("/v1/models/a\n", "openai"),
        ("/api/\x00", "ollama"),
        ("/v2/models/\r\n/ready", "ovms"),
        ("/v3/models/\x7f", "ovms"),
        ("/v1/messages/\x1b", "anthropic"),
    ],
)
async def test_control_characters_in_a_path_are_refused_in_the_shape_of_its_dialect(path: str, shape: str) -> None:
    reply = await get(app_of(ScriptedService()), path)
    assert (reply.status, reply.headers["connection"]) == (400, "close")
    error = reply.json["error"]
    message = error if shape in ("ollama", "ovms") else error["message"]
    assert "control characters" in message
    assert (reply.json.get("type") == "error") == (shape == "anthropic")


async def test_a_path_tells_all_its_methods() -> None:
    reply = await get(app_of(ScriptedService()), "/v1/responses/resp_1", "PUT")
    assert (reply.status, reply.headers["allow"]) == (405, "DELETE, GET, HEAD")
    assert "DELETE, GET, HEAD" in reply.json["error"]["message"]
    assert (await get(app_of(ScriptedService()), "/v1/responses/input_tokens", "PUT")).headers["allow"] == "POST"


async def test_heads_are_as_the_gets() -> None:
    assert (await get(app_of(ScriptedService()), "/v1/models", "HEAD")).status == 200


# --- identity --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("abc-DEF_123", True), ("x" * 64, True), ("x" * 65, False), ("", False), ("a b", False), ("a\tb", False),
     ("é", False), ("../x", False)],
)  # fmt: skip
async def test_a_clients_request_id_is_kept_if_it_is_harmless(sent: str, kept: bool) -> None:
    reply = await get(app_of(ScriptedService()), "/health", **{"x-request-id": sent})
    answered = reply.headers["x-request-id"]
    assert (answered == sent) == kept
    if not kept:
        assert re.fullmatch(r"req_[0-9a-f]{24}", answered)


async def test_two_requests_of_one_id_are_two_sequences() -> None:
    service = ScriptedService()
    app = app_of(service)
    for _ in range(2):
        assert (await post(app, chat(), x_request_id="same")).headers["x-request-id"] == "same"
    assert len({r.request_id for r in service.requests}) == 2


async def test_the_path_is_told_where_it_has_more_than_one_stop() -> None:
    prepared = replace(PREPARED, engine="odd engine", path=("a@0", "größe@1"))
    for stream in (True, False):
        reply = await post(app_of(ScriptedService(say(FINISH, prepared=prepared))), chat(stream=stream))
        assert reply.headers["x-sightline-engine"] == "odd%20engine"
        assert reply.headers["x-sightline-path"] == "a@0, gr%C3%B6%C3%9Fe@1"


@pytest.mark.parametrize(("digest", "fingerprint"), [("sha256:0123456789abcdef", "fp_0123456789ab"), (None, "none")])
async def test_the_fingerprint_is_that_of_the_weights(digest: str | None, fingerprint: str) -> None:
    info = replace(INFO, weights_digest=digest)
    service = ScriptedService(statuses=(ModelStatus("m", "ready", "scripted", 5, info),))
    assert (await post(app_of(service), chat())).json.get("system_fingerprint", "none") == fingerprint
    streamed = await post(app_of(service), chat(stream=True))
    assert {c.get("system_fingerprint", "none") for c in streamed.events[:-1]} == {fingerprint}


# --- who may ask -----------------------------------------------------------------------------------------------------


def app_for(*hosts: str) -> Any:
    settings = Settings(models=(ModelConfig(name="m", engine="fake"),), allowed_hosts=hosts or Settings().allowed_hosts)
    return create_app(cast(Service, ScriptedService()), settings)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("localhost:8000", 200), ("LocalHost:1", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200),
        ("[::1]", 200), ("evil.example", 421), ("localhost.evil.example", 421), ("127.0.0.1.nip.io", 421),
        ("169.254.169.254", 421), ("x/admin?", 400), ("localhost:8000@evil", 400), ("localhost:", 400), ("", 400),
        ("local host", 400), ("localhost:999999", 400), ("::1", 400), ("a,b", 400),
    ],
)  # fmt: skip
async def test_the_host_header_is_checked(host: str, status: int) -> None:
    reply = await get(app_for(), "/v1/models", host=host)
    assert reply.status == status
    if status != 200:
        assert reply.json["error"]["type"] == "invalid_request_error"
        assert "x-request-id" in reply.headers


async def test_every_route_but_the_probes_is_behind_the_check() -> None:
    """Default deny: a route that is added tomorrow is behind it too."""
    app = app_for()
    assert isinstance(app, Edge)
    routes = [r.path for r in app._app.router.routes]  # type: ignore[attr-defined]
    assert set(routes) > PUBLIC
    for path in [*routes, "/no/such/path"]:
        status = (await get(app, path, host="evil.example")).status
        assert (status == 421) == (path not in PUBLIC), path


async def test_any_host_if_the_operator_says_so() -> None:
    assert (await get(app_for("*"), "/v1/models", host="evil.example")).status == 200
    assert (await get(app_for("api.example"), "/v1/models", host="API.example:443")).status == 200
    assert (await get(app_for("api.example"), "/v1/models", host="localhost")).status == 421


async def test_two_host_headers_are_none() -> None:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"host", b"localhost")]
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers, "root_path": ""}
    await app_for()(scope, receive, send)
    assert sent[0]["status"] == 400


# --- bugs and logs ---------------------------------------------------------------------------------------------------


async def test_a_bug_is_500_with_the_request_id_and_the_log_tells_where(caplog: pytest.LogCaptureFixture) -> None:
    async def bug(request: ChatRequest) -> AsyncIterator[Item]:
        raise KeyError(request.messages[0].content)  # what a careless library may do
        yield

    caplog.set_level(logging.INFO)
    for stream in (False, True):
        caplog.clear()
        body = chat(stream=stream, messages=[{"role": "user", "content": "hunter2"}])
        reply = await post(app_of(ScriptedService(bug)), body)
        assert reply.status == 500
        assert reply.headers["x-request-id"] in reply.json["error"]["message"]
        assert reply.headers["x-should-retry"] == "false"
        assert "hunter2" not in reply.body.decode() + caplog.text
        assert "KeyError" in caplog.text
        assert "test_app.py" in caplog.text


async def test_one_line_a_request_without_content(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sightline.access")
    body = chat(messages=[{"role": "user", "content": "my secret"}], user="my secret")
    for stream in (False, True):
        caplog.clear()
        reply = await post(app_of(ScriptedService()), {**body, "stream": stream})
        (record,) = caplog.records
        line = json.loads(record.getMessage())
        assert line["id"] == reply.headers["x-request-id"]
        assert (line["method"], line["route"], line["status"]) == ("POST", "/v1/chat/completions", 200)
        assert (line["model"], line["engine"], line["path"], line["stream"]) == ("m", "scripted", ["m@0"], stream)
        assert (line["prompt_tokens"], line["image_tokens"], line["completion_tokens"]) == (20, 12, 3)
        assert (line["images"], line["cached_tokens"], line["finish"]) == (1, 16, ["stop"])
        assert 0 <= line["duration_s"] < 5
        assert "secret" not in record.getMessage()
        assert "cat" not in record.getMessage()
        assert ("ttft_s" in line) == stream


async def test_nothing_a_client_sends_can_forge_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sightline.access")

    async def unknown(request: ChatRequest) -> AsyncIterator[Item]:
        raise ModelNotFound("No such model.")
        yield

    name = "\r\n\x1b[31m{}\x7f\x85\u2028" + "x" * 5000
    reply = await post(app_of(ScriptedService(unknown)), chat(model=name))
    assert reply.status == 404
    (record,) = caplog.records
    message = record.getMessage()
    assert message.isascii()
    assert message.isprintable()
    assert json.loads(message)["model"] == name[:256]
    caplog.clear()
    await get(app_of(ScriptedService()), "/nope\r\n\x1b")
    assert json.loads(caplog.messages[0])["route"] == "none"


# --- life ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [False, True])
async def test_the_lifespan_starts_and_closes_the_service(wait: bool) -> None:
    service = ScriptedService()
    app = create_app(cast(Service, service), Settings(models=(ModelConfig(name="m"),)), wait=wait)
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    running = asyncio.create_task(app(scope, inbox.get, outbox.put))  # type: ignore[arg-type]
    await inbox.put({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    assert service.life == [f"start wait={wait}"]
    await inbox.put({"type": "lifespan.shutdown"})
    assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
    await running
    assert service.life[-1] == "close"


async def test_headers_of_json_replies() -> None:
    reply = await post(app_of(ScriptedService()), chat())
    assert reply.headers["content-type"] == "application/json"
    assert int(reply.headers["content-length"]) == len(reply.body)
    assert JSON_HEADERS["content-type"] == reply.headers["content-type"]


@pytest.mark.parametrize(
    ("body", "headers", "model", "outcome"),
    [
        (b"{", {}, "other", "InvalidRequest"),
        (b"{}", {"content_type": "text/plain"}, "other", "HTTPException"),
        (b"x" * 2000, {}, "other", "BodyTooLarge"),
        (chat(n=1000), {}, "m", "InvalidRequest"),
        (chat(model="never seen", n=1000), {}, "other", "InvalidRequest"),
        (chat(guided_json={}), {}, "m", "UnsupportedFeature"),
    ],
)
async def test_a_body_that_is_refused_is_counted(body: Any, headers: dict[str, str], model: str, outcome: str) -> None:
    def counted() -> float:
        labels = {"model": model, "outcome": outcome}
        return metrics.REGISTRY.get_sample_value("sightline_requests_total", labels) or 0.0

    before = counted()
    reply = await post(app_of(ScriptedService(), max_body_bytes=1000), body, **headers)
    assert 400 <= reply.status < 500
    assert counted() == before + 1


@pytest.mark.parametrize("declared", [None, "application/x-www-form-urlencoded", "text/plain"])
async def test_a_dialect_whose_clients_declare_nothing_takes_their_json_but_not_a_pages(declared: str | None) -> None:
    """`curl -d` declares a form, and Ollama's users type that. A page's `fetch` can send the same bytes unasked."""
    settings = Settings(models=(ModelConfig(name="m", engine="fake"),))
    service = Service(settings)
    await service.start()
    app = create_app(service, settings)
    body = b'{"model": "m", "stream": false, "messages": [{"role": "user", "content": "hello"}]}'
    headers = {"host": "localhost"} | ({} if declared is None else {"content-type": declared})
    try:
        assert (await Call("POST", "/api/chat", body, headers).run(app)).status == 200
        for sign in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
            assert (await Call("POST", "/api/chat", body, headers | sign).run(app)).status in (403, 415)
        assert (await Call("POST", "/v1/chat/completions", body, headers).run(app)).status == 415
    finally:
        await service.close()
