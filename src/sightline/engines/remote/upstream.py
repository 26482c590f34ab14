"""HTTP with one server: connections, time limits and bytes.

Whatever goes wrong is one of our errors by its class: `EngineUnavailable` where nothing can have run there, else
`UpstreamFailed`, and `DeadlineExceeded` when our own time is up. Redirects are not followed, and nothing is taken from
the environment: no proxies, no credentials.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urlsplit

import httpcore2 as http

from sightline import tracing
from sightline.errors import DeadlineExceeded, EngineUnavailable, SightlineError, UpstreamFailed

log = logging.getLogger(__name__)
logging.getLogger("httpcore2").setLevel(logging.WARNING)  # its debug lines hold headers, and so keys

T = TypeVar("T")

_END_S = 0.02
MAX_REPLY_BYTES = 4 * 1024 * 1024
"""Of a reply that is not a stream."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. From the operator or from the process we started, never from a request."""

    base_url: str
    """With the version: `http://localhost:8000/v1`."""
    socket: str | None = None
    """A Unix socket that leads there, whatever host the URL names."""

    def url(self, path: str) -> str:
        """Of a path from the base URL, or, with a slash before it, from the server's root."""
        base = self.base_url.rstrip("/")
        return f"{base.rpartition('/')[0]}{path}" if path.startswith("/") else f"{base}/{path}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds."""

    connect_s: float
    silence_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class Incoming:
    """A reply whose body is still coming."""

    def __init__(self, upstream: Upstream, response: http.Response, deadline: float) -> None:
        self.status = response.status
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        self._upstream = upstream
        self._pieces = response.aiter_stream()
        self._deadline = deadline

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes."""
        while (piece := await self._upstream.within(anext(self._pieces, None), self._deadline)) is not None:
            yield piece

    async def ended(self) -> None:
        """Waits a moment for the end of a body that has said all, so that the connection can be used again."""
        now = asyncio.get_running_loop().time()
        with suppress(SightlineError):
            await self._upstream.within(anext(self._pieces, None), min(self._deadline, now + _END_S))

    async def whole(self, most: int = MAX_REPLY_BYTES) -> bytes:
        """Raises `UpstreamFailed` for more than `most` bytes."""
        body = bytearray()
        async for piece in self.pieces():
            body += piece
            if len(body) > most:
                raise UpstreamFailed("The server behind this model sent more than it may.")
        return bytes(body)


class Upstream:
    """One server. Used from one event loop; `close` ends what is under way with `EngineUnavailable`."""

    def __init__(
        self, address: Address, limits: Limits, *, key: str | None, connections: int, ca_file: str | None = None
    ) -> None:
        self._address = address
        self._limits = limits
        self._headers: dict[bytes | str, bytes | str] = {"Accept-Encoding": "identity", "User-Agent": "Sightline"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._pool = http.AsyncConnectionPool(
            ssl_context=_authorities(ca_file) if address.base_url.startswith("https:") else None,
            max_connections=connections,
            keepalive_expiry=4.0,  # uvicorn closes idle connections after 5 s
            uds=address.socket,
        )
        self._scopes: set[asyncio.Timeout] = set()
        """Of whatever waits for the server."""
        self._closed = False

    def deadline(self, timeout_s: float | None = None) -> float:
        """Of a request that begins now and may itself take `timeout_s`, on the event loop's clock."""
        most = self._limits.total_s if timeout_s is None else min(timeout_s, self._limits.total_s)
        return asyncio.get_running_loop().time() + most

    async def get(self, path: str, deadline: float) -> Reply:
        async with self.open("GET", path, None, deadline) as incoming:
            return Reply(incoming.status, incoming.headers, await incoming.whole())

    async def post(self, path: str, body: bytes, deadline: float) -> Reply:
        async with self.open("POST", path, body, deadline) as incoming:
            return Reply(incoming.status, incoming.headers, await incoming.whole())

    @asynccontextmanager
    async def open(
        self, method: str, path: str, body: bytes | None, deadline: float, *, keep: bool = True
    ) -> AsyncIterator[Incoming]:
        """Leaving it before the body's end closes the connection, by which a server knows that nobody listens.
        `keep`: whether the connection may serve another request afterwards."""
        headers = {**self._headers, "Host": _authority(self._address.base_url)}
        headers.update(tracing.outgoing())
        if not keep:
            headers["Connection"] = "close"
        if body is not None:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            headers |= {
                "Content-Type": "application/json",
                "Content-Length": str(len(body)),
                "X-Request-Timeout": f"{left:.3f}",
            }
        request = http.Request(
            method,
            self._address.url(path),
            headers=headers,
            content=body,
            extensions={"timeout": {"connect": self._limits.connect_s}},
        )
        response = await self.within(self._pool.handle_async_request(request), deadline)
        try:
            if response.status // 100 == 3:
                raise UpstreamFailed("The server behind this model redirects elsewhere, which is not followed.")
            yield Incoming(self, response, deadline)
        finally:
            await response.aclose()

    async def within(self, awaitable: Awaitable[T], deadline: float) -> T:
        """What is awaited, unless it takes longer than the server may be silent, or than is left, or we are closed."""
        loop = asyncio.get_running_loop()
        silent_at = loop.time() + self._limits.silence_s
        scope = asyncio.timeout_at(loop.time() if self._closed else min(silent_at, deadline))
        try:
            async with scope:
                self._scopes.add(scope)
                try:
                    return await awaitable
                finally:
                    self._scopes.discard(scope)
        except TimeoutError:
            raise self._too_late(deadline) from None
        except (http.ConnectError, http.ConnectTimeout, http.NetworkError, http.ProtocolError, OSError) as error:
            raise self._broken(error) from None
        except http.TimeoutException:
            raise self._too_late(deadline) from None

    def _too_late(self, deadline: float) -> SightlineError:
        if self._closed:
            return stopped()
        if asyncio.get_running_loop().time() >= deadline:
            return too_late()
        return UpstreamFailed("The server behind this model has not answered in time.")

    def _broken(self, error: Exception) -> SightlineError:
        if self._closed:
            return stopped()
        if isinstance(error, http.ConnectError | http.ConnectTimeout):
            return EngineUnavailable("The server behind this model cannot be reached.")
        return UpstreamFailed("The server behind this model broke off.")

    async def close(self) -> None:
        self._closed = True
        for scope in list(self._scopes):
            scope.reschedule(asyncio.get_running_loop().time())
        await asyncio.sleep(0)  # they end by that, and not by finding their connection closed
        await self._pool.aclose()


def too_late() -> DeadlineExceeded:
    return DeadlineExceeded("The request took longer than it may take.")


def stopped() -> EngineUnavailable:
    return EngineUnavailable("The engine is being stopped.")


def _authority(base_url: str) -> str:
    return urlsplit(base_url).netloc


def _authorities(ca_file: str | None) -> ssl.SSLContext:
    context = http.default_ssl_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context
