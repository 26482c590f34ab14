"""The way back of an answer: from the replica straight to the ingress that asked, beside Ray.

Ray carries each thing that a replica yields as an object of its own, through threads and event loops of both sides:
more than a millisecond of processor for every word. So Ray carries the request, chooses the replica, notices when it is
gone, and cancels; words come over one TCP connection for all answers that a replica makes for an ingress, those of one
step of its engine in one piece. Whoever loses the connection knows that before Ray does.

The replica connects to where the ingress listens, and sends the key that came with the request, through Ray. Then:

    u8 kind, u32 answer, u32 length      little-endian; kind 0: it begins, 1: a parcel of so many bytes follows, 2: ends

Where Ray's own connections are encrypted (`RAY_USE_TLS`, docs.ray.io/en/latest/ray-core/configure.html), so is this
one, with the same certificates. Knows no Ray.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import ssl
import struct
from collections.abc import AsyncGenerator
from typing import cast

from sightline.config import variable

log = logging.getLogger(__name__)

Address = tuple[str, int, bytes]
"""Host, port and key of an ingress."""

KEY_BYTES = 32
_HEAD = struct.Struct("<BII")
_BEGINS, _PARCEL, _ENDS = range(3)
_KEY_S = 5.0
"""For whoever connects to send the key."""
_CONNECT_S = 5.0
_END_S = 10.0
"""From when Ray says that an answer has been sent until all of it must have arrived."""


class PostLost(Exception):
    """The connection broke, or never brought what was sent."""


class Unreachable(Exception):
    """No connection could be made from the replica to the ingress: a network in between forbids it."""


# --- the ingress -----------------------------------------------------------------------------------------------------


class Inbox:
    """Life: made -> any number of `expect`s, the first of which begins to listen -> `close`."""

    def __init__(self, host: str) -> None:
        """`host`: this machine's address, as the others know it."""
        self._host = host
        self._key = secrets.token_bytes(KEY_BYTES)
        self._server: asyncio.Server | None = None
        self._starting = asyncio.Lock()
        self._number = 0
        self._expected: dict[int, Incoming] = {}
        self._receivers: set[_Receiver] = set()

    async def expect(self) -> Incoming:
        """An answer that somebody is about to be asked for, who is to be told its `address` and `number`."""
        async with self._starting:
            if self._server is None:
                loop = asyncio.get_running_loop()
                self._server = await loop.create_server(lambda: _Receiver(self), self._host, 0, ssl=_tls(server=True))
        port: int = self._server.sockets[0].getsockname()[1]
        self._number = (self._number + 1) % (1 << 32)
        incoming = self._expected[self._number] = Incoming(self, (self._host, port, self._key), self._number)
        return incoming

    def is_key(self, key: bytes) -> bool:
        return hmac.compare_digest(key, self._key)

    def expected(self, number: int) -> Incoming | None:
        """None for one that nobody waits for any more."""
        return self._expected.get(number)

    def forget(self, number: int) -> None:
        self._expected.pop(number, None)

    def joined(self, receiver: _Receiver) -> None:
        self._receivers.add(receiver)

    def left(self, receiver: _Receiver) -> None:
        self._receivers.discard(receiver)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()
        self.break_connections()

    def break_connections(self) -> None:
        """Who still sends learns that nobody hears it."""
        for receiver in tuple(self._receivers):
            receiver.abort()


class Incoming:
    """Parcels of one answer, as they come. Iterating raises what it `fail`ed with, after what came before that. To be
    closed when nobody waits for it any more."""

    def __init__(self, inbox: Inbox, address: Address, number: int) -> None:
        self.address = address
        self.number = number
        self._inbox = inbox
        self._parcels: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self._ending: asyncio.TimerHandle | None = None

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        while (parcel := await self._parcels.get()) is not None:
            if isinstance(parcel, Exception):
                raise parcel
            yield parcel

    def put(self, parcel: bytes) -> None:
        self._parcels.put_nowait(parcel)

    def end(self) -> None:
        self._parcels.put_nowait(None)

    def fail(self, error: Exception) -> None:
        self._parcels.put_nowait(error)

    def sent(self) -> None:
        """The replica has sent all of it, and what has not come soon never will."""
        loop = asyncio.get_running_loop()
        self._ending = loop.call_later(_END_S, self.fail, PostLost("what was sent did not arrive"))

    def close(self) -> None:
        self._inbox.forget(self.number)
        if self._ending is not None:
            self._ending.cancel()


class _Receiver(asyncio.Protocol):
    """A replica's connection."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._rest = bytearray()
        self._known = False
        self._answers: dict[int, Incoming] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._unknown = asyncio.get_running_loop().call_later(_KEY_S, self._transport.abort)
        self._inbox.joined(self)

    def abort(self) -> None:
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._rest += data
        if not self._known and not self._is_let_in():
            return
        at, have = 0, self._rest
        while at + _HEAD.size <= len(have):
            kind, number, length = _HEAD.unpack_from(have, at)
            end = at + _HEAD.size + length
            if end > len(have):
                break
            self._receive(kind, number, bytes(have[at + _HEAD.size : end]))
            at = end
        del have[:at]

    def _is_let_in(self) -> bool:
        if len(self._rest) < KEY_BYTES:
            return False
        self._known = self._inbox.is_key(bytes(self._rest[:KEY_BYTES]))
        del self._rest[:KEY_BYTES]
        if not self._known:
            log.warning("a connection to the ingress with a wrong key was refused")
            self._transport.abort()
        self._unknown.cancel()
        return self._known

    def _receive(self, kind: int, number: int, parcel: bytes) -> None:
        if kind == _BEGINS:
            if (expected := self._inbox.expected(number)) is not None:
                self._answers[number] = expected
        elif (incoming := self._answers.get(number)) is None:
            pass  # nobody waits for it any more
        elif kind == _PARCEL:
            incoming.put(parcel)
        else:
            incoming.end()
            del self._answers[number]

    def connection_lost(self, error: Exception | None) -> None:
        self._inbox.left(self)
        self._unknown.cancel()
        for incoming in self._answers.values():
            incoming.fail(PostLost("the connection to the replica broke"))


# --- the replica -----------------------------------------------------------------------------------------------------


class Outbox:
    """Connections to every ingress that has asked, each opened once. Life: made -> any number of `open`s -> `close`."""

    def __init__(self) -> None:
        self._senders: dict[Address, asyncio.Task[_Sender]] = {}

    async def open(self, address: Address, number: int) -> Outgoing:
        """Raises `Unreachable`."""
        connecting = self._senders.get(address)
        if connecting is None or (connecting.done() and (connecting.exception() or connecting.result().lost)):
            connecting = self._senders[address] = asyncio.create_task(_connect(address))
        try:
            sender = await asyncio.shield(connecting)
        except (OSError, TimeoutError) as error:
            raise Unreachable(f"{address[0]}:{address[1]}: {type(error).__name__}") from None
        return Outgoing(sender, number)

    def close(self) -> None:
        for connecting in self._senders.values():
            if connecting.done() and not connecting.exception():
                connecting.result().close()
            connecting.cancel()


class Outgoing:
    """One answer, on its way. Its methods raise `PostLost`."""

    def __init__(self, sender: _Sender, number: int) -> None:
        self._sender = sender
        self._number = number
        sender.put(_HEAD.pack(_BEGINS, number, 0))

    async def send(self, parcel: bytes) -> None:
        """Waits while the network takes no more."""
        self._sender.put(_HEAD.pack(_PARCEL, self._number, len(parcel)), parcel)
        await self._sender.room()

    async def end(self) -> None:
        """Returns when all of it has left this process."""
        self._sender.put(_HEAD.pack(_ENDS, self._number, 0))
        await self._sender.flushed()


class _Sender(asyncio.Protocol):
    """The connection to an ingress. What is put in one turn of the event loop is written in one piece."""

    def __init__(self) -> None:
        self.lost = False
        self._waiting: list[bytes] = []
        self._room = asyncio.Event()
        self._room.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=1, low=0)  # so that `flushed` means it
        self._loop = asyncio.get_running_loop()

    def put(self, *pieces: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._write)
        self._waiting += pieces

    def _write(self) -> None:
        pieces, self._waiting = self._waiting, []
        if pieces and not self.lost:
            self._transport.write(b"".join(pieces))

    async def room(self) -> None:
        """Returns when the network takes more."""
        await self._room.wait()
        if self.lost:
            raise PostLost("the connection to the ingress broke")

    async def flushed(self) -> None:
        """Returns when the network has all that was put."""
        self._write()
        await self.room()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        self._room.set()

    def close(self) -> None:
        self._transport.close()


async def _connect(address: Address) -> _Sender:
    host, port, key = address
    async with asyncio.timeout(_CONNECT_S):
        # The name in Ray's certificates is whatever their owner wrote: they are told apart by who signed them.
        tls = _tls(server=False)
        _, sender = await asyncio.get_running_loop().create_connection(
            _Sender, host, port, ssl=tls, server_hostname="" if tls else None
        )
    sender.put(key)
    return sender


def _tls(*, server: bool) -> ssl.SSLContext | None:
    """Both sides show a certificate, as in Ray's own connections; None where those are plain."""
    if variable("RAY_USE_TLS") != "1":
        return None
    purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
    context = ssl.create_default_context(purpose, cafile=variable("RAY_TLS_CA_CERT"))
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(variable("RAY_TLS_SERVER_CERT") or "", variable("RAY_TLS_SERVER_KEY"))
    return context
