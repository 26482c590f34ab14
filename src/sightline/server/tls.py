"""HTTPS: a certificate that may be renewed while the server runs; connections that count from before the handshake."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from collections.abc import Callable

from sightline import metrics
from sightline.config import Tls
from sightline.errors import InvalidRequest
from sightline.server.connections import Connections
from sightline.server.protocol import Guarded

log = logging.getLogger(__name__)

WATCH_S = 1.0
"""How often the files are looked at."""
_SHUTDOWN_S = 5.0
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


class Handshakes:
    """What a socket's connections go through first. They count from the start, and each is shown the certificate of the
    moment. An `asyncio.Server` would shake hands unseen, and with one certificate for good."""

    def __init__(self, certificate: Certificate, connections: Connections, to_protocol: Callable[[], Guarded]) -> None:
        self._certificate = certificate
        self._connections = connections
        self._to_protocol = to_protocol

    async def shake(self, accepted: socket.socket) -> None:
        """Ends when the protocol has the connection, or when nobody has."""
        protocol = self._to_protocol()
        is_done, fault = False, "handshake"
        try:
            refusal = self._connections.open(protocol, _to_address(accepted))
            if refusal is not None:
                fault = refusal.reason
                return  # a handshake only to be told no would be more work than an answer
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol.buffered,
                accepted,
                ssl=self._certificate.context,
                ssl_handshake_timeout=self._connections.limits.head_s,
                ssl_shutdown_timeout=_SHUTDOWN_S,
            )
            is_done = True
        except (OSError, TimeoutError):  # an ssl.SSLError is an OSError
            pass
        finally:
            if not is_done:  # the protocol never heard of it
                metrics.HTTP_CUT.labels(fault).inc()
                self._connections.close(protocol)
                accepted.close()


def _to_address(accepted: socket.socket) -> str | None:
    peer = accepted.getpeername()
    return peer[0] if isinstance(peer, tuple) else None


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
    return (error.strerror or str(error)).lower() if isinstance(error, OSError) else str(error)
