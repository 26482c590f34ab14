"""A scripted stand-in for the service, and ways to talk to the application without a socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, cast

from starlette.types import ASGIApp

from sightline.api.app import create_app
from sightline.config import HttpLimits, ModelConfig, Settings
from sightline.draining import Draining
from sightline.engines import EngineInfo
from sightline.images.budget import CellBudget
from sightline.items import ChoiceEvent, Item, Prepared, ServedImage
from sightline.models import ModelStatus
from sightline.service import Service
from sightline.telling import Tell, told
from sightline.types import ChatRequest, Delta, Finish, TextDelta, Timing, TokenCount, Usage

DIGEST = "sha256:" + "ab" * 32
INFO = EngineInfo(
    engine="scripted",
    context_length=100,
    vision=CellBudget(28, 12544, 50176),
    weights_digest="sha256:0123456789abcdef",
)
PREPARED = Prepared(
    engine="scripted",
    path=("m@0",),
    images=(ServedImage(640, 480, 112, 84, 12, DIGEST),),
    token_count=TokenCount(20, (12,)),
    fetch_s=0.0,
    decode_s=0.04,
    queue_s=0.01,
)
FINISH = Finish(
    "stop",
    Usage(20, 3, image_tokens=(12,), images_cached=(True,), cached_tokens=16),
    Timing(queue_s=0.02, encode_s=0.1, prefill_s=0.3, decode_s=0.04),
)

Script = Callable[[ChatRequest], AsyncIterator[Item]]


def say(*events: Delta | Finish, prepared: Prepared = PREPARED) -> Script:
    """Each choice gets the same events, one after the other in turns."""

    async def script(request: ChatRequest) -> AsyncIterator[Item]:
        yield prepared
        for event in events:
            for index in range(request.n):
                yield ChoiceEvent(index, event)

    return script


HELLO = say(TextDelta("A "), TextDelta("cat", 2), FINISH)


@dataclass
class ScriptedService:
    """Has the methods of `Service` that a dialect calls, and remembers what it was asked and what was closed."""

    script: Script = HELLO
    statuses: tuple[ModelStatus, ...] = (ModelStatus("m", "ready", "scripted", 1741570283, INFO),)
    requests: list[ChatRequest] = field(default_factory=list)
    open: int = 0
    closed_at: list[float] = field(default_factory=list)
    life: list[str] = field(default_factory=list)
    measuring: float = 0.0
    draining: Draining = field(default_factory=Draining)
    timeouts: list[float | None] = field(default_factory=list)
    """Asked for with each request."""

    def keep_files(self, read: Any) -> None:
        self.read_kept = read

    async def start(self, *, wait: bool = True) -> None:
        self.life.append(f"start wait={wait}")

    async def close(self) -> None:
        self.life.append("close")

    def models(self) -> tuple[ModelStatus, ...]:
        return self.statuses

    def info(self, name: str) -> EngineInfo | None:
        return next((status.info for status in self.statuses if status.name == name), None)

    def refuse_foreign(self, name: str) -> None:
        pass

    def unload(self, name: str) -> bool:
        return False

    def ready(self) -> bool:
        return all(s.state == "ready" for s in self.statuses)

    async def measure(
        self, request: ChatRequest, *, timeout_s: float | None = None
    ) -> tuple[TokenCount, tuple[ServedImage, ...]]:
        self.requests.append(request)
        self.timeouts.append(timeout_s)
        self.open += 1
        try:
            await asyncio.sleep(self.measuring)
        finally:
            self.open -= 1
        return PREPARED.token_count, PREPARED.images

    async def answer(self, request: ChatRequest, tell: Tell[Item], *, timeout_s: float | None = None) -> None:
        await told(self.generate(request, timeout_s=timeout_s))(tell)

    async def generate(self, request: ChatRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Item, None]:
        self.requests.append(request)
        self.timeouts.append(timeout_s)
        self.open += 1
        try:
            async for item in self.script(request):
                yield item
        finally:
            self.open -= 1
            self.closed_at.append(asyncio.get_running_loop().time())


def app_of(service: ScriptedService, **http: Any) -> ASGIApp:
    settings = Settings(models=(ModelConfig(name="m", engine="fake"),), http=HttpLimits(**http))
    return create_app(cast(Service, service), settings)


# --- one request, without a socket -----------------------------------------------------------------------------------


@dataclass
class Reply:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    complete: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of a stream's events, `[DONE]` included, comments not."""
        blocks = self.body.decode().split("\n\n")
        assert blocks.pop() == "", "an event ends with an empty line"
        data = [b.removeprefix("data: ") for b in blocks if not b.startswith(":")]
        assert all("\n" not in d for d in data)
        return [d if d == "[DONE]" else json.loads(d) for d in data]


JSON_HEADERS = {"host": "localhost:8000", "content-type": "application/json"}


@dataclass
class Call:
    """A request whose client may leave at any moment."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON_HEADERS))
    chunk: int = 1 << 20
    query: str = ""
    reply: Reply = field(default_factory=Reply)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    on_body: Callable[[bytes], Any] | None = None
    slow_send: Callable[[], Any] | None = None

    async def run(self, app: ASGIApp) -> Reply:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": self.query.encode(),
            "root_path": "",
            "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in self.headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        pieces = [self.body[i : i + self.chunk] for i in range(0, len(self.body), self.chunk)] or [b""]

        async def receive() -> dict[str, Any]:
            if pieces:
                return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}
            await self.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if self.left.is_set():
                return  # as servers do
            if message["type"] == "http.response.start":
                assert not self.reply.status
                self.reply.status = message["status"]
                headers = [(k.decode(), v.decode()) for k, v in message["headers"]]
                assert len(dict(headers)) == len(headers), "no header twice"
                self.reply.headers = dict(headers)
            else:
                assert self.reply.status
                assert not self.reply.complete
                if self.slow_send is not None:
                    await self.slow_send()
                self.reply.body += message.get("body", b"")
                self.reply.complete = not message.get("more_body", False)
                if self.on_body is not None:
                    self.on_body(message.get("body", b""))
                if self.reply.complete:
                    self.left.set()

        await app(scope, receive, send)
        return self.reply


def chat(body: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **(body or {}), **fields}


async def post(app: ASGIApp, body: Any, path: str = "/v1/chat/completions", **headers: str) -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {**JSON_HEADERS, **{k.replace("_", "-"): v for k, v in headers.items()}}
    return await Call("POST", path, raw, sent).run(app)


async def get(app: ASGIApp, path: str, method: str = "GET", **headers: str) -> Reply:
    return await Call(method, path, b"", {"host": "localhost", **headers}).run(app)


async def request_of(body: Any, path: str) -> ChatRequest:
    """What the service is asked when this is sent."""
    service = ScriptedService()
    reply = await post(app_of(service), body, path)
    assert reply.status == 200, reply.body
    return service.requests[0]
