"""Traces: what a collector receives of requests that go through the running application."""

from __future__ import annotations

import base64
import gzip
import io
import json
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from PIL import Image
from starlette.types import ASGIApp

from sightline import tracing
from sightline.api.app import create_app
from sightline.cli import main
from sightline.config import ModelConfig, Settings, Tracing
from sightline.errors import InvalidRequest
from sightline.service import Service
from tests.api.serving import server_of, serving

pytestmark = pytest.mark.anyio

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"
SECRET = "hunter2"


@dataclass
class Seen:
    """A span as the collector has it."""

    name: str
    kind: int
    span_id: str
    parent_id: str
    trace_id: str
    begin: int
    end: int
    failed: bool
    attributes: dict[str, Any]
    events: list[str]
    children: list[Seen] = field(default_factory=list)

    def find(self, name: str) -> Seen:
        (found,) = [span for span in self.walk() if span.name == name]
        return found

    def walk(self) -> Iterator[Seen]:
        yield self
        for child in self.children:
            yield from child.walk()

    def names(self) -> set[str]:
        return {span.name for span in self.walk()}


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.spans: list[Seen] = []
        self.resources: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert self.path == "/v1/traces"
                outer.take(body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def take(self, body: bytes) -> None:
        self.raw.append(body)
        for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append({a.key: _value(a.value) for a in of_resource.resource.attributes})
            for scope in of_resource.scope_spans:
                self.spans += map(_to_seen, scope.spans)

    def trees(self) -> list[Seen]:
        """The spans without a parent among them, with those below them, in the order in which they began."""
        known = {span.span_id: span for span in self.spans}
        roots = []
        for span in sorted(self.spans, key=lambda span: span.begin):
            (known[span.parent_id].children if span.parent_id in known else roots).append(span)
        return roots

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_value(v) for v in value.array_value.values] if kind == "array_value" else getattr(value, kind)


def _to_seen(span: WireSpan) -> Seen:
    return Seen(
        span.name, span.kind, span.span_id.hex(), span.parent_span_id.hex(), span.trace_id.hex(),
        span.start_time_unix_nano, span.end_time_unix_nano, span.status.code == 2,
        {a.key: _value(a.value) for a in span.attributes}, [event.name for event in span.events],
    )  # fmt: skip


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()
    assert not tracing.active(), "the application has ended it"


def app_with(collector: Collector, *models: ModelConfig, sample: float = 1.0) -> ASGIApp:
    traced = Tracing(otlp_endpoint=collector.url, sample=sample)
    settings = Settings(models=models or (ModelConfig(name="m", engine="fake"),), tracing=traced, allowed_hosts=("*",))
    return create_app(Service(settings), settings, wait=True)


@asynccontextmanager
async def client_of(app: ASGIApp) -> AsyncIterator[httpx.AsyncClient]:
    """To a server on a socket; when it has ended, every span has been sent."""
    with serving(app) as port:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client


def picture(colour: str = "red") -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (640, 480), colour).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def body(*parts: Any, **fields: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": f"What colour is it? {SECRET}"}, *parts]
    return {"model": "m", "messages": [{"role": "user", "content": content}], **fields}


async def test_one_trace_through_every_stage(collector: Collector) -> None:
    async with client_of(
        app_with(collector, ModelConfig(name="m", engine="fake", options={"step_s": 0.001}))
    ) as client:
        headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1", "x-request-id": "mine"}
        reply = await client.post("/v1/chat/completions", json=body(picture(), max_tokens=20), headers=headers)
        assert reply.status_code == 200, reply.text
    (root,) = collector.trees()
    assert (root.name, root.kind) == ("POST /v1/chat/completions", WireSpan.SPAN_KIND_SERVER)
    assert (root.trace_id, root.parent_id) == (TRACE, PARENT), "a part of the caller's trace"
    assert root.attributes["http.request.method"] == "POST"
    assert root.attributes["http.route"] == "/v1/chat/completions"
    assert root.attributes["http.response.status_code"] == 200
    assert root.attributes["sightline.request_id"] == "mine"
    assert root.attributes["http.response.body.size"] == len(reply.content)
    assert not root.failed
    asked = root.find("chat m")
    usage = reply.json()["usage"]
    assert asked.attributes["gen_ai.operation.name"] == "chat"
    assert asked.attributes["gen_ai.request.model"] == "m"
    assert asked.attributes["gen_ai.response.model"] == "m"
    assert asked.attributes["gen_ai.request.max_tokens"] == 20
    assert asked.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert asked.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert asked.attributes["gen_ai.response.finish_reasons"] == [reply.json()["choices"][0]["finish_reason"]]
    assert asked.attributes["sightline.images"] == 1
    assert asked.events == ["gen_ai.first_token"]
    assert 0 < asked.attributes["gen_ai.response.time_to_first_chunk"] < 30
    tried = asked.find("try m@0")
    assert {span.name for span in tried.children} == {"prepare", "queue", "generate"}
    prepared = tried.find("prepare")
    assert {span.name for span in prepared.children} == {"picture.fetch", "picture.decode", "picture.resize"}
    assert prepared.find("picture.decode").attributes["sightline.pixels"] == 640 * 480
    assert {"engine.prefill", "engine.decode"} <= tried.find("generate").names()
    for span in root.walk():
        assert span.end >= span.begin
        for child in span.children:
            assert span.begin - 5_000_000 <= child.begin, f"{child.name} began before {span.name}"
            assert child.end <= span.end + 5_000_000, f"{child.name} ended after {span.name}"
    stages = [root.find(f"engine.{name}") for name in ("prefill", "decode")]
    assert stages[0].end <= stages[1].begin + 1_000_000
    assert collector.resources[0]["service.name"] == "sightline"


async def test_no_content_gets_into_a_trace(collector: Collector) -> None:
    """Neither what is asked nor what is answered, nor what an error quotes of it, nor a path."""
    async with client_of(app_with(collector)) as client:
        await client.post("/v1/chat/completions", json=body(picture(), user=SECRET))
        await client.post("/v1/chat/completions", json=body(temperature=SECRET))
        await client.post("/v1/messages", json={"model": "m", "max_tokens": 5, "messages": SECRET})
        await client.get(
            f"/v1/files/{SECRET}?{SECRET}", headers={"cookie": SECRET, "authorization": f"Bearer {SECRET}"}
        )
        await client.get(f"/{SECRET}")
    assert len(collector.trees()) == 5
    assert not any(SECRET.encode() in raw for raw in collector.raw)
    assert not any(b"base64" in raw or b"iVBOR" in raw for raw in collector.raw)


async def test_streams_choices_and_other_dialects(collector: Collector) -> None:
    async with client_of(app_with(collector)) as client:
        async with client.stream("POST", "/v1/chat/completions", json=body(stream=True, n=2, max_tokens=4)) as reply:
            await reply.aread()
        await client.post("/v1/messages", json={**body(), "max_tokens": 4})
        await client.post("/v1/completions", json={"model": "m", "prompt": "once", "max_tokens": 4})
        await client.post("/v1/embeddings", json={"model": "m", "input": "a text"})
    stream, message, completion, embedding = collector.trees()
    assert len(stream.find("chat m").attributes["gen_ai.response.finish_reasons"]) == 2
    assert stream.find("chat m").attributes["gen_ai.request.choice.count"] == 2
    assert message.attributes["http.route"] == "/v1/messages"
    assert message.find("chat m")
    assert completion.find("text_completion m").attributes["gen_ai.operation.name"] == "text_completion"
    assert embedding.find("embeddings m").find("queue")
    assert embedding.find("embeddings m").attributes["gen_ai.usage.input_tokens"] > 0


@pytest.mark.parametrize("stream", [False, True])
async def test_errors_mark_their_spans(stream: bool, collector: Collector) -> None:
    model = ModelConfig(name="m", engine="fake", options={"script": "[[fake: error 0]]"})
    async with client_of(app_with(collector, model)) as client:
        failed = await client.post("/v1/chat/completions", json=body(stream=stream))
        wrong = await client.post("/v1/chat/completions", json={**body(), "model": "nope"})
    root, refused = collector.trees()
    asked = root.find("chat m")
    assert asked.failed
    assert asked.attributes["error.type"] == root.attributes["error.type"]
    assert root.failed
    assert root.attributes["http.response.status_code"] == failed.status_code
    assert wrong.status_code == 404
    assert not refused.failed, "a client's own mistake is no error of the server"
    assert refused.find("chat nope").attributes["error.type"] == "ModelNotFound"
    assert not any(span.events and "exception" in span.events for span in collector.spans)


async def test_a_fallback_shows_both_tries(collector: Collector) -> None:
    first = ModelConfig(name="m", engine="fake", options={"script": "[[fake: error 0]]"}, fallbacks=("spare",))
    async with client_of(app_with(collector, first, ModelConfig(name="spare", engine="fake"))) as client:
        assert (await client.post("/v1/chat/completions", json=body())).status_code == 200
    (root,) = collector.trees()
    assert root.find("try m@0").failed
    assert not root.find("try spare@0").failed
    asked = root.find("chat m")
    assert not asked.failed
    assert asked.attributes["gen_ai.response.model"] == "spare"


async def test_the_trace_goes_on_in_a_remote_engine(collector: Collector) -> None:
    """Both servers are in this process and so send to one collector, the second as a part of the first's trace."""
    plain = Settings(models=(ModelConfig(name="up", engine="fake"),), allowed_hosts=("*",))
    with server_of(plain) as port:
        options = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "up", "context_length": 4096}
        async with client_of(app_with(collector, ModelConfig(name="m", engine="remote", options=options))) as client:
            reply = await client.post("/v1/chat/completions", json=body(max_tokens=4))
            assert reply.status_code == 200, reply.text
    ours = next(root for root in collector.trees() if "chat m" in root.names())
    generated = next(span for span in ours.walk() if span.name == "generate")
    upstream = [span for span in generated.walk() if span.kind == WireSpan.SPAN_KIND_SERVER]
    assert [span.name for span in upstream] == ["POST /v1/chat/completions"]
    assert upstream[0].find("chat up")


def test_front_ends_and_their_core_make_one_trace(collector: Collector, tmp_path: Path) -> None:
    """`--workers`: HTTP and pictures are of one process, the model of another."""
    file = tmp_path / "sightline.yaml"
    traced = {"otlp_endpoint": collector.url}
    file.write_text(json.dumps({"models": [{"name": "m", "engine": "fake"}], "tracing": traced}))
    command = [sys.executable, "-m", "sightline.cli", "serve", str(file), "--port", "0", "--workers", "2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
        assert found
        try:
            with httpx.Client(base_url=found[0], timeout=60) as client:
                reply = client.post("/v1/chat/completions", json=body(picture(), max_tokens=4))
        finally:
            server.terminate()
            server.wait(30)
    assert reply.status_code == 200, reply.text
    (root,) = [tree for tree in collector.trees() if tree.name == "POST /v1/chat/completions"]
    prepared = root.find("chat m").find("prepare")
    assert {"picture.fetch", "picture.decode", "picture.resize"} <= prepared.names()
    assert root.find("generate").find("engine.decode")


async def test_sampling(collector: Collector) -> None:
    async with client_of(app_with(collector, sample=0.0)) as client:
        for flags in ("01", "00"):
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
            await client.post("/v1/chat/completions", json=body(), headers=headers)
        for header in ({}, {"traceparent": "nonsense"}, {"traceparent": f"00-{'0' * 32}-{PARENT}-01"}):
            await client.post("/v1/chat/completions", json=body(), headers=header)
    (root,) = collector.trees()
    assert root.trace_id == TRACE, "only the one whose sender wants it"


async def test_the_log_has_the_trace(collector: Collector, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sightline.access")
    async with client_of(app_with(collector)) as client:
        await client.post("/v1/chat/completions", json=body(), headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    (line,) = [record.msg.fields for record in caplog.records if record.name == "sightline.access"]
    assert line["trace"] == TRACE


async def test_a_collector_that_is_away_costs_no_request() -> None:
    settings = Settings(
        models=(ModelConfig(name="m", engine="fake"),),
        tracing=Tracing(otlp_endpoint="http://127.0.0.1:9", flush_s=0.2),
        allowed_hosts=("*",),
    )
    async with client_of(create_app(Service(settings), settings, wait=True)) as client:
        assert (await client.post("/v1/chat/completions", json=body())).status_code == 200


# --- where it is configured ------------------------------------------------------------------------------------------


def test_the_endpoint_by_the_file_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_SDK_DISABLED", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    assert Tracing().endpoint is None
    assert Tracing(otlp_endpoint="http://c:4318/").endpoint == "http://c:4318/v1/traces"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://env:4318")
    assert Tracing().endpoint == "http://env:4318/v1/traces"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://env:4318/own")
    assert Tracing().endpoint == "http://env:4318/own"
    assert Tracing(otlp_endpoint="http://c:4318").endpoint == "http://c:4318/v1/traces", "the file goes first"
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert Tracing(otlp_endpoint="http://c:4318").endpoint is None


@pytest.mark.parametrize("wrong", ["localhost:4318", "grpc://c:4317", "http://user:pw@c:4318", "http://c/?x", ""])
def test_no_endpoint(wrong: str) -> None:
    with pytest.raises(InvalidRequest, match="4318"):
        Tracing(otlp_endpoint=wrong)


def test_wanted_and_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sightline.yaml"
    file.write_text("models: [{name: m, engine: fake}]\ntracing: {otlp_endpoint: 'http://localhost:4318'}\nport: 0\n")
    monkeypatch.setattr(tracing, "find_spec", lambda _: None)
    assert main(["serve", str(file)]) == 1
    assert "pip install 'sightline[otel]'" in capsys.readouterr().err


def test_not_wanted_and_not_imported() -> None:
    code = (
        "import sys; from sightline.config import Settings; from sightline.service import Service; "
        "from sightline.api.app import create_app; create_app(Service(s := Settings()), s); "
        "import sightline.cli.serve; assert not [m for m in sys.modules if m.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
