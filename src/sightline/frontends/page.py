"""The page at `/ui`, which the core has: what Gradio knows of a reader's conversation is in one process, and a
browser's requests come to any. The front end signs readers in and lets their requests in; Gradio answers in the core.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from sightline.api.bodies import hold
from sightline.api.disconnect import unless_disconnected
from sightline.api.wire import body_chunks
from sightline.config import HttpLimits
from sightline.frontends import forward, frames
from sightline.frontends.service import FrontService
from sightline.ui.application import Heartbeats, verify


class FarPage:
    """In a front end: in the place of `ui.application.Application`."""

    def __init__(self, service: FrontService, limits: HttpLimits) -> None:
        self._service = service
        self._limits = limits
        self._heartbeats = Heartbeats()

    def end(self) -> None:
        self._heartbeats.end()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises as `Application` and `api.wire.body_chunks`; `EngineUnavailable` without a core."""
        verify(scope)
        request = Request(scope, receive)
        body = bytearray()
        async for chunk in body_chunks(request, self._limits):
            hold(scope, len(chunk))
            body += chunk
        replies = self._service.page(lambda stream: to_frame(stream, request, bytes(body)))
        await self._heartbeats.run(scope, unless_disconnected(scope, receive, forward.send_on(replies, send)))


def to_frame(stream: int, request: Request, body: bytes) -> frames.Page:
    scope = request.scope
    client = scope.get("client")
    return frames.Page(
        stream,
        request.method,
        request.url.scheme,
        scope["path"],
        scope["query_string"],
        tuple(scope["headers"]),
        None if client is None else tuple(client),
        body,
    )


async def answer(page: ASGIApp, frame: frames.Page, send: Callable[[forward.Reply], Awaitable[None]]) -> None:
    """In the core. Cancelling it is a reader who leaves."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": frame.method,
        "scheme": frame.scheme,
        "path": frame.path,
        "raw_path": frame.path.encode(),
        "query_string": frame.query,
        "root_path": "",
        "headers": list(frame.headers),
        "client": frame.client,
        "server": None,
    }
    await forward.call(page, scope, frame.stream, frame.body, send)
