"""A picture file from a web server that a client named, of which nothing is believed.

The connection is made to an address that has been checked, never to a name, so that no second lookup can answer
otherwise; the name is what TLS verifies and the Host header says. Each download has a connection of its own, closed at
its end: pooled ones would outlive the check of their address, and one tenant's could carry another's request. Nothing
is taken from the environment and nothing is sent that says who asks: no proxies, cookies, credentials or referrers.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import cache
from urllib.parse import urljoin

import certifi
import httpcore2 as http

from sightline.config import FetchPolicy
from sightline.errors import EngineUnavailable, ImageFetchFailed, ImageFileTooLarge, ImageForbidden
from sightline.images.addresses import INSTEAD, Address, Gate, Target, nowhere
from sightline.images.turns import Turns

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port to every address of the host, as text. Raises `socket.gaierror`, as `getaddrinfo` does."""

_HEADERS: Mapping[str | bytes, str | bytes] = {
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "User-Agent": "Sightline",
    "Connection": "close",
}
_REDIRECTS = {301, 302, 303, 307, 308}
_PAGES = ("text/html", "application/xhtml")
_MAX_ADDRESSES = 8
"""Of a host that are tried: all are checked, but no name makes this server call a thousand others."""
_MAX_HEAD_BYTES = 32 * 1024
_BITE_BYTES = 2 * 1024
"""Of a head: as many as can be parsed in a few milliseconds, were they all interim responses."""
_FREE_CHUNKS = 256
_MEAN_CHUNK_BYTES = 128
"""What chunks must be long on average, after some: parsing each costs as much as copying a hundred kilobytes."""
_UNKNOWN = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}

logging.getLogger("httpcore2").setLevel(logging.WARNING)  # its debug lines hold addresses and headers


class Downloader:
    """Downloads under a policy, a few at once, used from one event loop; `close` ends the threads of its lookups."""

    def __init__(
        self,
        policy: FetchPolicy,
        max_bytes: int,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`tls` is what certificates are verified with: by default the system's authorities and Mozilla's."""
        self._policy = policy
        self._max_bytes = max_bytes
        self._gate = Gate(policy)
        self._turns = Turns(policy.max_at_once)
        self._closed = False
        self._system = None if resolver else _SystemResolver(2 * policy.max_at_once)
        self._resolver = resolver or self._system
        self._tls = tls or (_web_authorities() if policy.enabled else None)

    def close(self) -> None:
        """What is under way goes on; no download begins any more. Idempotent."""
        self._closed = True
        if self._system is not None:
            self._system.close()

    async def download(self, url: str, tenant: str) -> bytes:
        """The body at an http: or https: URL, of 0 to `max_bytes` bytes.

        Takes at most `total_s` from its turn on, whatever the other side does; cancelling it closes the connection.
        Raises `ImageForbidden` before anything is sent, `ImageFileTooLarge`, `EngineUnavailable` once closed, and
        `ImageFetchFailed` for the rest.
        """
        target = self._gate.admit(url)
        async with self._turns.take(tenant):
            try:
                async with asyncio.timeout(self._policy.total_s):
                    return await self._follow(target)
            except (TimeoutError, http.TimeoutException):
                raise _failed(f"its server did not send it in time (at most {self._policy.total_s:g} s)") from None
            except (http.NetworkError, http.ProtocolError) as error:
                raise _failed(_what_broke(error)) from None

    async def _follow(self, target: Target) -> bytes:
        for _ in range(self._policy.max_redirects + 1):
            answer = await self._get(target)
            if isinstance(answer, bytes):
                return answer
            target = self._to_redirected(target, answer)
        raise _failed("its server redirects elsewhere, further than this server follows; use the final URL")

    def _to_redirected(self, target: Target, location: str) -> Target:
        """Judged like a client's URL: whatever `urljoin` makes of it, only the gate's reading counts."""
        try:
            redirected = self._gate.admit(urljoin(target.url, location))
        except (ImageForbidden, ValueError):
            raise _failed("its server redirects to where this server does not fetch from") from None
        if (target.scheme, redirected.scheme) == ("https", "http"):
            raise _failed("its server redirects from https: to http:")
        return redirected

    async def _get(self, target: Target) -> bytes | str:
        """The body, or where a redirect leads."""
        addresses = self._gate.check_addresses(await self._resolve(target))
        url = http.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
        request = http.Request("GET", url, headers={"Host": target.authority, **_HEADERS})
        stream = await self._connect(target, addresses)
        try:
            response = await http.AsyncHTTP11Connection(url.origin, stream).handle_async_request(request)
            stream.end_head()
            return await self._read(response)
        finally:
            await stream.aclose()

    async def _connect(self, target: Target, addresses: Sequence[Address]) -> _Stream:
        tcp = await _connect_to_any(addresses, target.port, self._policy.connect_s)
        if target.scheme == "http":
            return _Stream(tcp)
        assert self._tls is not None
        try:
            return _Stream(await tcp.start_tls(self._tls, target.host, self._policy.connect_s))
        except BaseException:  # the library leaves it open when a handshake is cancelled
            await tcp.aclose()
            raise

    async def _resolve(self, target: Target) -> Sequence[str]:
        assert self._resolver is not None
        if self._closed:
            raise EngineUnavailable("The server is shutting down.")
        try:
            return await self._resolver(target.host, target.port)
        except socket.gaierror as error:
            if error.errno in _UNKNOWN:
                raise nowhere() from None
            raise _failed("its host could not be looked up just now") from None

    async def _read(self, response: http.Response) -> bytes | str:
        headers = {name.lower(): value.decode("latin-1").strip() for name, value in response.headers}
        if response.status in _REDIRECTS and b"location" in headers:
            return headers[b"location"]
        if response.status != 200:
            raise _failed(f"its server answered with status {response.status} and not 200")
        if headers.get(b"content-type", "").lower().startswith(_PAGES):
            raise _failed("there is a web page at this URL, not a picture; use the picture's own URL")
        if headers.get(b"content-encoding", "identity").lower() != "identity":
            raise _failed("its server sends it compressed although asked not to")
        if int(headers.get(b"content-length", 0)) > self._max_bytes:
            raise too_large(self._max_bytes)
        return await self._read_body(response)

    async def _read_body(self, response: http.Response) -> bytes:
        body, chunks = bytearray(), 0
        try:
            async with aclosing(response.aiter_stream()) as stream:
                async for chunk in stream:
                    body += chunk
                    chunks += 1
                    if len(body) > self._max_bytes:
                        raise too_large(self._max_bytes)
                    if chunks > _FREE_CHUNKS + len(body) // _MEAN_CHUNK_BYTES:
                        raise _failed("its server sends it in needlessly small chunks")
            return bytes(body)
        finally:
            body.clear()  # an error's traceback would keep it for as long as the error lives


def too_large(max_bytes: int) -> ImageFileTooLarge:
    return ImageFileTooLarge(
        f"this picture file is larger than {max_bytes:,} bytes, the most this server takes. "
        "Compress it further or make it smaller."
    )


def _failed(problem: str) -> ImageFetchFailed:
    return ImageFetchFailed(f"this picture could not be downloaded: {problem}. Correct its URL, or {INSTEAD}")


def _what_broke(error: Exception) -> str:
    if isinstance(error.__cause__, ssl.SSLError):
        return "the certificate or the TLS of its server is not valid"
    if isinstance(error, http.ConnectError):
        return "its server cannot be reached"
    return "its server broke off, or does not speak proper HTTP"


@cache
def _web_authorities() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # small containers have no authorities of their own
    return context


class _SystemResolver:
    """`getaddrinfo` in threads of its own: those that hang, which nothing can cancel, are in nobody else's way."""

    def __init__(self, threads: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="resolve")

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host.encode("ascii"), port, type=socket.SOCK_STREAM)
        )
        return [str(address[4][0]) for address in found]

    def close(self) -> None:
        self._threads.shutdown(wait=False)


async def _connect_to_any(addresses: Sequence[Address], port: int, timeout_s: float) -> http.AsyncNetworkStream:
    """The first address that answers, or what the last one raises. Each but the last has half of the time that is left:
    one that refuses takes none of it, and a dead one leaves some to the next."""
    clock, backend = asyncio.get_running_loop().time, http.AnyIOBackend()
    deadline = clock() + timeout_s
    *others, last = addresses[:_MAX_ADDRESSES]
    for address in others:
        try:
            return await backend.connect_tcp(str(address), port, (deadline - clock()) / 2)
        except (http.ConnectError, http.ConnectTimeout):
            continue
    return await backend.connect_tcp(str(last), port, deadline - clock())


class _Stream(http.AsyncNetworkStream):
    """A connection whose head, interim responses included, is read in bites and has an end.

    The library parses all of what one read brings before the event loop goes on, and takes interim responses (1xx)
    without limit: a server that sends nothing else would have the loop to itself.
    """

    def __init__(self, stream: http.AsyncNetworkStream) -> None:
        self._stream = stream
        self._head_bytes: int | None = 0

    def end_head(self) -> None:
        self._head_bytes = None

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._head_bytes is None:
            return await self._stream.read(max_bytes, timeout)
        data = await self._stream.read(min(max_bytes, _BITE_BYTES), timeout)
        self._head_bytes += len(data)
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise http.RemoteProtocolError("the head has no end")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()
