"""HTTP requests that one process of the server must answer, whichever front end they came to.

The core's own application answers them: responses that run in the background live there, because front ends come and
go. The front end has let the request in; the core answers it as one that the server puts to itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline.api import access, caller
from sightline.api.caller import Caller
from sightline.api.disconnect import unless_disconnected
from sightline.frontends import frames

Reply = frames.ReplyStart | frames.ReplyBody

_OURS = frozenset({b"x-request-id", b"vary"})
"""Headers of the core's answer that the front end sets itself."""


class Ask(Protocol):
    def __call__(self, frame: Callable[[int, frames.Asker], frames.ToCore]) -> AsyncGenerator[Reply, None]:
        """What comes back for a frame of this number, asked for on behalf of the request that is being answered."""
        ...


async def answer(app: ASGIApp, frame: frames.Forward, send: Callable[[Reply], Awaitable[None]]) -> None:
    """In the core. Cancelling it is a client that leaves."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": frame.method,
        "scheme": "http",
        "path": frame.path,
        "raw_path": frame.path.encode(),
        "query_string": frame.query,
        "root_path": "",
        "headers": list(frame.headers),
        "client": None,
        "server": None,
    }
    caller.put(scope, msgspec.msgpack.decode(frame.caller, type=Caller))
    await call(app, scope, frame.stream, frame.body, send)


async def call(app: ASGIApp, scope: Scope, stream: int, body: bytes, send: Callable[[Reply], Awaitable[None]]) -> None:
    """An application, whose answer goes to a front end."""
    bodies = [body]

    async def receive() -> Message:
        if bodies:
            return {"type": "http.request", "body": bodies.pop(), "more_body": False}
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # it would cancel us

    async def pass_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = tuple((name, value) for name, value in message["headers"] if name.lower() not in _OURS)
            await send(frames.ReplyStart(stream, message["status"], kept))
        elif piece := message.get("body", b""):
            await send(frames.ReplyBody(stream, piece))

    await app(scope, receive, pass_on)


async def send_on(replies: AsyncGenerator[Reply, None], send: Send) -> None:
    """In the front end: what has come of `call`."""
    async with aclosing(replies):
        async for reply in replies:
            if isinstance(reply, frames.ReplyStart):
                headers = list(reply.headers)
                await send({"type": "http.response.start", "status": reply.status, "headers": headers})
            else:
                await send({"type": "http.response.body", "body": reply.body, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


class Forwarded(Response):
    """In the front end: the core's answer to a request."""

    def __init__(self, ask: Ask, request: Request, body: bytes) -> None:
        self.background = None
        self._replies = ask(lambda stream, by: to_frame(stream, by, request, body))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_disconnected(scope, receive, send_on(self._replies, send))


def to_frame(stream: int, by: frames.Asker, request: Request, body: bytes) -> frames.Forward:
    own = caller.of(request.scope)
    inside = Caller(own.tenant, own.priority, is_inside=True)  # by no key: it has been let in, and counted
    headers = [(name, value) for name, value in request.scope["headers"] if name in _KEPT]
    request_id = access.of(request.scope).request_id.encode()
    return frames.Forward(
        stream,
        by,
        request.method,
        request.scope["path"],
        request.scope["query_string"],
        (*headers, (b"x-request-id", request_id), (b"content-length", str(len(body)).encode())),
        body,
        msgspec.msgpack.encode(inside),
    )


_KEPT = frozenset({b"content-type", b"accept", b"x-request-timeout", b"user-agent"})
"""No key, no cookie, no Host: who may ask was decided where the request came in."""
