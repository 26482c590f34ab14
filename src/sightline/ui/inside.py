"""The server in this very process as a transport of `sightline.AsyncClient`: the page asks what any client asks, by the
same routes, keys and limits, without a socket (whose port, certificate or worker it would have to know)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import httpcore2 as http
from starlette.types import ASGIApp, Message, Scope

_AHEAD = 16
"""Messages that the server may be ahead of who reads them."""


class Inside:
    """`scope`: of the request on whose behalf it asks; the answer is for that client."""

    def __init__(self, app: ASGIApp, scope: Scope) -> None:
        self._app = app
        self._outer = scope

    async def handle_async_request(self, request: http.Request) -> http.Response:
        """Cancelling it, or closing the response, ends the work, as a client that leaves does."""
        exchange = _Exchange(b"".join([part async for part in request.stream]))  # type: ignore[union-attr]
        path = request.url.target.partition(b"?")[0]
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method.decode("ascii"),
            "scheme": self._outer.get("scheme", "http"),
            "path": path.decode("ascii"),
            "raw_path": path,
            "query_string": b"",
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers],
            "client": self._outer.get("client"),
            "server": self._outer.get("server"),
        }
        exchange.task = asyncio.create_task(exchange.run(self._app, scope))
        try:
            start = await exchange.read()
        except BaseException:
            exchange.task.cancel()
            raise
        if start is None:
            await exchange.end()
            raise http.RemoteProtocolError("The server ended before it had answered.")
        return http.Response(start["status"], headers=start["headers"], content=_Body(exchange))

    async def aclose(self) -> None:
        """Nothing is kept."""


class _Exchange:
    def __init__(self, body: bytes) -> None:
        self.task: asyncio.Task[None] | None = None
        self._body: bytes | None = body
        # Unbounded, with room that is counted beside it: so that the end, which may not wait, always fits.
        self._messages: asyncio.Queue[Message | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_AHEAD)

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        try:
            await app(scope, self._receive, self._send)
        finally:
            self._messages.put_nowait(None)

    async def read(self) -> Message | None:
        """The next message of the response; None: the application ended."""
        message = await self._messages.get()
        self._room.release()
        return message

    async def end(self) -> None:
        """Ends what still runs. What the application broke of, it has logged itself."""
        assert self.task is not None
        if not self.task.done():
            self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _send(self, message: Message) -> None:
        await self._room.acquire()
        self._messages.put_nowait(message)

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.get_running_loop().create_future()  # who leaves cancels
        raise AssertionError


class _Body:
    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while (message := await self._exchange.read()) is not None:
            if body := message.get("body"):
                yield body
            if not message.get("more_body", False):
                return
        raise http.RemoteProtocolError("The server ended in the middle of its answer.")

    async def aclose(self) -> None:
        await self._exchange.end()
