"""HTTP with one server: connections, time limits and bytes.

Whatever goes wrong is one of our errors by its class: `EngineUnavailable` where nothing can have run there, else
`UpstreamFailed`, and `DeadlineExceeded` when our own time is up. Redirects are not followed, and nothing is taken from
the environment: no proxies, no credentials.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit

from httpcore2 import default_ssl_context

from sightline import tracing
from sightline.engines.remote.connection import Broken, Connection, to_head
from sightline.errors import DeadlineExceeded, EngineUnavailable, SightlineError, UpstreamFailed

log = logging.getLogger(__name__)

T = TypeVar("T")

_END_S = 0.02
_KEPT_S = 4.0
"""How long a connection is kept that nobody uses: uvicorn closes such after 5 s."""
MAX_REPLY_BYTES = 4 * 1024 * 1024
"""Of a reply that is not a stream."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. From the operator or from the process we started, never from a request."""

    base_url: str
    """With the version: `http://localhost:8000/v1`."""
    socket: str | None = None
    """A Unix socket that leads there, whatever host the URL names."""

    @property
    def server(self) -> SplitResult:
        return urlsplit(self.base_url)

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

    def __init__(self, upstream: Upstream, connection: Connection, deadline: float) -> None:
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self._upstream = upstream
        self._connection = connection
        self._deadline = deadline

    async def piece(self) -> bytes | None:
        """What has come of the body since the last; None at its end."""
        try:
            return await self._connection.piece()
        except (TimeoutError, Broken) as error:
            raise self._upstream.explained(error, self._deadline) from None

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes."""
        while (piece := await self.piece()) is not None:
            yield piece

    async def ended(self) -> None:
        """Waits a moment for the end of a body that has said all, so that the connection can be used again."""
        if not self._connection.ended:
            now = asyncio.get_running_loop().time()
            with suppress(SightlineError):
                await self._upstream.within(self._connection.piece(), min(self._deadline, now + _END_S))

    async def whole(self, most: int = MAX_REPLY_BYTES) -> bytes:
        """Raises `UpstreamFailed` for more than `most` bytes."""
        body = bytearray()
        while (piece := await self.piece()) is not None:
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
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "Sightline"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._tls = _authorities(ca_file) if address.server.scheme == "https" else None
        self._free = asyncio.Semaphore(connections)
        self._kept: list[tuple[float, Connection]] = []
        """Connections that wait for the next request, and until when; the last to come is the first to be used."""
        self._sweep: asyncio.TimerHandle | None = None
        self._busy: set[Connection] = set()
        self._scopes: set[asyncio.Timeout] = set()
        """Of whatever else waits for the server."""
        self._closed = False

    def deadline(self, timeout_s: float | None = None) -> float:
        """Of a request that begins now and may itself take `timeout_s`, on the event loop's clock."""
        most = self._limits.total_s if timeout_s is None else min(timeout_s, self._limits.total_s)
        return asyncio.get_running_loop().time() + most

    async def get(self, path: str, deadline: float) -> Reply:
        async with self.open("GET", path, None, deadline) as incoming:
            return Reply(incoming.status, incoming.headers, await incoming.whole())

    async def post(self, path: str, body: bytes, deadline: float) -> Reply:
        async with self.open("POST", path, [body], deadline) as incoming:
            return Reply(incoming.status, incoming.headers, await incoming.whole())

    @asynccontextmanager
    async def open(
        self, method: str, path: str, body: Sequence[bytes] | None, deadline: float, *, keep: bool = True
    ) -> AsyncIterator[Incoming]:
        """`body`: in pieces, which are sent without being joined. Leaving it before the reply's end closes the
        connection, by which a server knows that nobody listens. `keep`: whether the connection may serve another
        request afterwards."""
        server = self._address.server.netloc
        headers = {"Host": server, **self._headers, **tracing.outgoing()}
        if not keep:
            headers["Connection"] = "close"
        if body is not None:
            left = max(0.0, deadline - asyncio.get_running_loop().time())
            headers |= {
                "Content-Type": "application/json",
                "Content-Length": str(sum(map(len, body))),
                "X-Request-Timeout": f"{left:.3f}",
            }
        target = self._address.url(path).partition(server)[2]
        request = [to_head(method, target, headers), *(body or ())]
        await self.within(self._free.acquire(), deadline)
        try:
            async with self._connected(deadline, keep) as connection:
                with self.translated(deadline):
                    await connection.ask(request, silence_s=self._limits.silence_s, deadline=deadline)
                if connection.status // 100 == 3:
                    raise UpstreamFailed("The server behind this model redirects elsewhere, which is not followed.")
                del request
                yield Incoming(self, connection, deadline)
        finally:
            self._free.release()

    @asynccontextmanager
    async def _connected(self, deadline: float, keep: bool) -> AsyncIterator[Connection]:
        """A connection for one request; kept for the next if it may be and that has been read to its end."""
        connection = self._take_kept()
        if connection is None:
            connection = await self.within(self._connect(), deadline)
        self._busy.add(connection)
        try:
            yield connection
        finally:
            self._busy.discard(connection)
            connection.rest()
            if keep and connection.reusable and not self._closed:
                self._keep(connection)
            else:
                connection.close()

    def _take_kept(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._kept:
            until, connection = self._kept.pop()
            if until > now and connection.reusable:
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._kept.append((loop.time() + _KEPT_S, connection))
        if self._sweep is None:
            self._sweep = loop.call_later(_KEPT_S, self._close_unused)

    def _close_unused(self) -> None:
        loop = asyncio.get_running_loop()
        now, self._sweep = loop.time(), None
        while self._kept and self._kept[0][0] <= now:
            self._kept.pop(0)[1].close()
        if self._kept:
            self._sweep = loop.call_at(self._kept[0][0], self._close_unused)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        server = self._address.server
        host, port = server.hostname or "", server.port or (443 if self._tls else 80)
        name = host if self._tls else None
        try:
            async with asyncio.timeout(self._limits.connect_s):
                if self._address.socket is not None:
                    made = loop.create_unix_connection(
                        Connection, self._address.socket, ssl=self._tls, server_hostname=name
                    )
                else:
                    made = loop.create_connection(Connection, host, port, ssl=self._tls, server_hostname=name)
                return (await made)[1]
        except (OSError, TimeoutError):
            raise EngineUnavailable("The server behind this model cannot be reached.") from None

    async def within(self, awaitable: Awaitable[T], deadline: float) -> T:
        """What is awaited, unless it takes longer than the server may be silent, or than is left, or we are closed."""
        loop = asyncio.get_running_loop()
        silent_at = loop.time() + self._limits.silence_s
        scope = asyncio.timeout_at(loop.time() if self._closed else min(silent_at, deadline))
        with self.translated(deadline):
            async with scope:
                self._scopes.add(scope)
                try:
                    return await awaitable
                finally:
                    self._scopes.discard(scope)
        raise AssertionError("it returns or raises")

    @contextmanager
    def translated(self, deadline: float) -> Iterator[None]:
        """What goes wrong on a connection, as one of our errors."""
        try:
            yield
        except (TimeoutError, Broken) as error:
            raise self.explained(error, deadline) from None

    def explained(self, error: TimeoutError | Broken, deadline: float) -> SightlineError:
        if self._closed:
            return stopped()
        if isinstance(error, Broken):
            return UpstreamFailed("The server behind this model broke off.")
        if asyncio.get_running_loop().time() >= deadline:
            return too_late()
        return UpstreamFailed("The server behind this model has not answered in time.")

    async def close(self) -> None:
        self._closed = True
        for scope in list(self._scopes):
            scope.reschedule(asyncio.get_running_loop().time())
        for connection in self._busy:
            connection.give_up()
        if self._sweep is not None:
            self._sweep.cancel()
        await asyncio.sleep(0)  # they end by that, and not by finding their connection closed
        for connection in [*self._busy, *(kept for _, kept in self._kept)]:
            connection.close()


def too_late() -> DeadlineExceeded:
    return DeadlineExceeded("The request took longer than it may take.")


def stopped() -> EngineUnavailable:
    return EngineUnavailable("The engine is being stopped.")


def _authorities(ca_file: str | None) -> ssl.SSLContext:
    context = default_ssl_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context
