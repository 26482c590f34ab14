"""Answers on their way back: what was sent arrives once and in order; who waits learns that nothing more will come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from sightline.cluster.post import KEY_BYTES, Inbox, Incoming, Outbox, Outgoing, PostLost, Unreachable

pytestmark = pytest.mark.anyio
HOST = "127.0.0.1"


@asynccontextmanager
async def both() -> AsyncIterator[tuple[Inbox, Outbox]]:
    inbox, outbox = Inbox(HOST), Outbox()
    try:
        yield inbox, outbox
    finally:
        outbox.close()
        inbox.close()


async def begun(inbox: Inbox, outbox: Outbox) -> tuple[Incoming, Outgoing]:
    incoming = await inbox.expect()
    return incoming, await outbox.open(incoming.address, incoming.number)


async def test_answers_share_a_connection_and_stay_apart() -> None:
    async with both() as (inbox, outbox):
        pairs = [await begun(inbox, outbox) for _ in range(20)]

        async def send(number: int, outgoing: Outgoing) -> None:
            for word in range(100):
                await outgoing.send(f"{number}:{word}".encode() * (1 + word))
            await outgoing.end()

        _, *told = await asyncio.gather(
            asyncio.gather(*(send(number, outgoing) for number, (_, outgoing) in enumerate(pairs))),
            *(_all(incoming) for incoming, _ in pairs),
        )
        assert told == [[f"{n}:{word}".encode() * (1 + word) for word in range(100)] for n in range(20)]
        assert len({outgoing._sender for _, outgoing in pairs}) == 1


async def test_what_is_longer_than_any_buffer_arrives_whole() -> None:
    async with both() as (inbox, outbox):
        incoming, outgoing = await begun(inbox, outbox)
        parcel = bytes(range(256)) * 40_000

        async def send() -> None:
            await outgoing.send(parcel)
            await outgoing.send(b"")
            await outgoing.end()

        _, told = await asyncio.gather(send(), _all(incoming))
        assert told == [parcel, b""]


async def test_a_replica_that_is_gone_is_noticed_after_what_it_sent() -> None:
    async with both() as (inbox, outbox):
        incoming, outgoing = await begun(inbox, outbox)
        await outgoing.send(b"one")
        other, _ = await begun(inbox, outbox)
        words = incoming.__aiter__()
        assert await anext(words) == b"one"
        outbox.close()
        with pytest.raises(PostLost):
            await anext(words)
        with pytest.raises(PostLost):
            await _all(other)


async def test_an_ingress_that_is_gone_ends_what_is_sent_to_it() -> None:
    async with both() as (inbox, outbox):
        incoming, outgoing = await begun(inbox, outbox)
        await outgoing.send(b"one")
        assert await anext(incoming.__aiter__()) == b"one"
        inbox.close()
        with pytest.raises(PostLost):
            while True:
                await outgoing.send(b"more")
                await asyncio.sleep(0)
        with pytest.raises(Unreachable):
            await outbox.open(incoming.address, 7)


async def test_a_lost_connection_is_made_again() -> None:
    async with both() as (inbox, outbox):
        incoming, outgoing = await begun(inbox, outbox)
        await outgoing.end()
        assert await _all(incoming) == []
        inbox.break_connections()
        with pytest.raises(PostLost):
            while True:
                await outgoing.send(b"more")
                await asyncio.sleep(0)
        incoming, outgoing = await begun(inbox, outbox)
        await outgoing.send(b"again")
        await outgoing.end()
        assert await _all(incoming) == [b"again"]


async def test_nobody_is_let_in_with_another_key() -> None:
    async with both() as (inbox, outbox):
        incoming = await inbox.expect()
        host, port, key = incoming.address
        wrong = await outbox.open((host, port, bytes(KEY_BYTES)), incoming.number)
        with pytest.raises(PostLost):
            while True:
                await wrong.send(b"forged")
                await asyncio.sleep(0)
        right = await outbox.open((host, port, key), incoming.number)
        await right.send(b"true")
        await right.end()
        assert await _all(incoming) == [b"true"]


async def test_what_nobody_waits_for_any_more_hurts_no_other() -> None:
    async with both() as (inbox, outbox):
        left, leaving = await begun(inbox, outbox)
        stays, staying = await begun(inbox, outbox)
        await leaving.send(b"one")
        assert await anext(left.__aiter__()) == b"one"
        left.close()
        await leaving.send(b"two")
        await leaving.end()
        await staying.send(b"three")
        await staying.end()
        assert await _all(stays) == [b"three"]


async def test_what_was_sent_and_never_arrives_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.cluster.post._END_S", 0.01)
    async with both() as (inbox, _):
        incoming = await inbox.expect()
        incoming.sent()
        with pytest.raises(PostLost):
            await _all(incoming)


async def test_certificates_of_ray_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    authority.issue_cert("whatever.example").private_key_and_cert_chain_pem.write_to_path(tmp_path / "own.pem")
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_TLS_CA_CERT", str(tmp_path / "authority.pem"))
    monkeypatch.setenv("RAY_TLS_SERVER_CERT", str(tmp_path / "own.pem"))
    monkeypatch.setenv("RAY_TLS_SERVER_KEY", str(tmp_path / "own.pem"))
    async with both() as (inbox, outbox):
        incoming, outgoing = await begun(inbox, outbox)
        await outgoing.send(b"secret")
        await outgoing.end()
        assert await _all(incoming) == [b"secret"]
        monkeypatch.delenv("RAY_USE_TLS")
        plain = Outbox()
        sender = await plain.open(incoming.address, incoming.number)  # it speaks plainly, and is not heard
        with pytest.raises(PostLost):
            while True:
                await sender.send(b"open")
                await asyncio.sleep(0)


async def _all(incoming: Incoming) -> list[bytes]:
    return [parcel async for parcel in incoming]
