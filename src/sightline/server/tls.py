"""HTTPS: a certificate that may be renewed while the server runs, and handshakes that are counted and may not last."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable

from sightline.config import Tls
from sightline.errors import InvalidRequest
from sightline.server.connections import Connections

log = logging.getLogger(__name__)

WATCH_S = 1.0
"""How often the files are looked at."""
SHUTDOWN_S = 5.0
"""For a client to answer TLS's own goodbye."""

_Stamp = tuple[tuple[int, int, int], ...]


class Certificate:
    """The files, and the context made of them that new connections get."""

    def __init__(self, tls: Tls) -> None:
        """Raises `InvalidRequest` for files that cannot be used."""
        self._tls = tls
        try:
            self._stamp: _Stamp = _to_stamp(tls)
            self.context = _to_context(tls)
        except (OSError, ValueError) as error:
            raise InvalidRequest(
                f"The certificate {tls.certificate} and the key {tls.key} cannot be used: {_why(error)}.", param="tls"
            ) from None

    async def watch(self) -> None:
        """Until it is cancelled. Files that have changed are read when they have stood for `WATCH_S`, because renewal
        writes one after the other. Whatever is wrong with them, the certificate in use stays."""
        seen = self._stamp
        while True:
            await asyncio.sleep(WATCH_S)
            try:
                stamp = await asyncio.to_thread(_to_stamp, self._tls)
            except OSError:
                continue  # between being removed and written anew
            if stamp == seen != self._stamp:
                self._stamp = stamp
                await self._reload()
            seen = stamp

    async def _reload(self) -> None:
        try:
            self.context = await asyncio.to_thread(_to_context, self._tls)
        except (OSError, ValueError) as error:
            log.error("the renewed certificate cannot be used and the one before stays: %s", _why(error))
        else:
            log.info("the certificate was renewed")


class Handshake(asyncio.Protocol):
    """A connection until TLS stands. Then `to_protocol(TCP transport)` has it."""

    def __init__(
        self,
        certificate: Certificate,
        connections: Connections,
        to_protocol: Callable[[asyncio.Transport], asyncio.Protocol],
    ) -> None:
        self._certificate = certificate
        self._connections = connections
        self._to_protocol = to_protocol
        self._transport: asyncio.Transport
        self._early: list[bytes] = []
        """What came in one piece with the end of the handshake."""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        peer = transport.get_extra_info("peername")
        if self._connections.open(self, peer[0] if isinstance(peer, tuple) else None) is not None:
            transport.abort()  # a handshake only to be told no would be more work than an answer
            return
        transport.pause_reading()  # the handshake's first bytes are TLS's
        self._task = asyncio.get_running_loop().create_task(self._shake_hands())

    async def _shake_hands(self) -> None:
        head_s = self._connections.limits.head_s
        try:
            secured = await asyncio.get_running_loop().start_tls(
                self._transport,
                self,
                self._certificate.context,
                server_side=True,
                ssl_handshake_timeout=head_s,
                ssl_shutdown_timeout=SHUTDOWN_S,
            )
        except (OSError, TimeoutError):  # ssl.SSLError is an OSError
            secured = None
        if secured is None:
            self._transport.abort()
            self._connections.close(self)
            return
        protocol = self._to_protocol(self._transport)
        self._connections.replace(self, protocol)  # type: ignore[arg-type]
        secured.set_protocol(protocol)
        protocol.connection_made(secured)
        for data in self._early:
            protocol.data_received(data)

    def data_received(self, data: bytes) -> None:
        self._early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.close(self)

    def check(self, now: float) -> None:
        """Part of `Connection`: the handshake has a clock of its own."""

    def shutdown(self) -> None:
        self._transport.abort()


def _to_context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(tls.certificate, tls.key, password=_no_password)
    return context


def _no_password() -> str:
    """In place of OpenSSL asking the terminal."""
    raise ValueError("the key has a password; write it without one, readable by this user alone")


def _to_stamp(tls: Tls) -> _Stamp:
    """Changes whenever the files do; through links, which renewal turns."""
    return tuple((s.st_mtime_ns, s.st_size, s.st_ino) for s in (os.stat(tls.certificate), os.stat(tls.key)))


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason.lower().replace("_", " ") if error.reason else "it is no PEM file"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
