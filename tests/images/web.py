"""Web servers that tests make up: raw sockets on 127.0.0.1, so that they can misbehave in every way."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trustme

from sightline.config import MIB, FetchPolicy, ImageLimits
from sightline.images.fetch import Fetcher

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Site:
    """A server that reads a request's head, keeps it, and lets `answer` do the rest."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.port = 0
        self.requests: list[bytes] = []
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self.closed_early = asyncio.Event()
        """Set when the other side closed a connection that was still being answered."""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            await self._answer(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.closed_early.set()
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving(answer: Answer | bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[Site]:
    """A site at 127.0.0.1 that answers each connection so, or with these bytes."""
    site = Site(_always(answer) if isinstance(answer, bytes) else answer)
    server = await asyncio.start_server(site, "127.0.0.1", 0, ssl=tls)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()


def _always(reply: bytes) -> Answer:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply)
        await writer.drain()

    return answer


def reply(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def redirect(to: str, status: int = 302) -> bytes:
    return reply(b"", f"location: {to}", status=f"{status} Found")


class Names:
    """A resolver with a table: a name's answers, one after the other; the last one stays.

    What is not in the table is resolved as the system does it without asking anybody: numbers in any spelling.
    """

    def __init__(self, **table: Sequence[Sequence[str]]) -> None:
        self._table = {name.replace("__", "."): list(answers) for name, answers in table.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        answers = self._table.get(host)
        if answers is not None:
            return answers.pop(0) if len(answers) > 1 else answers[0]
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [str(address[4][0]) for address in found]


# --- and who fetches from them ---------------------------------------------------------------------------------------

LOOPBACK = ("127.0.0.0/8",)
HOME = ["127.0.0.1"]


def fetcher(site: Site, *, max_bytes: int = MIB, tls: ssl.SSLContext | None = None, **policy: Any) -> Fetcher:
    """For `pictures.test` at the port of `site`, which is at 127.0.0.1."""
    policy = {
        "allow_hosts": (f"pictures.test:{site.port}", f"*.pictures.test:{site.port}"),
        "allow_networks": LOOPBACK,
        **policy,
    }
    names = Names(pictures__test=[HOME], other__pictures__test=[HOME])
    return Fetcher(ImageLimits(max_bytes=max_bytes), FetchPolicy(**policy), resolver=names, tls=tls)


_AUTHORITY = trustme.CA()


def identity(*names: str) -> ssl.SSLContext:
    """What a server shows that is known by these names to who trusts our authority."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    _AUTHORITY.issue_cert(*names).configure_cert(context)
    return context


def trust() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _AUTHORITY.configure_trust(context)
    return context


def canary() -> socket.socket:
    """A listener on 127.0.0.1 whom nobody may call."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    return listener


def was_called(listener: socket.socket) -> bool:
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True
