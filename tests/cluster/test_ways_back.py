"""The two ways an answer comes back, beside Ray and through it, with a handle that only looks like Ray's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray")
pytestmark = [pytest.mark.anyio, pytest.mark.cluster]

from sightline.cluster.handle_engine import ReplicaLost  # noqa: E402  # they need Ray
from sightline.cluster.ingress import HandleReplicas  # noqa: E402
from sightline.cluster.post import Inbox, Outbox  # noqa: E402
from sightline.errors import EngineUnavailable  # noqa: E402

HOST = "127.0.0.1"


class Response:
    """A call under way: what awaiting it gives, or an iteration."""

    def __init__(self, work: Any) -> None:
        self._task = asyncio.ensure_future(work)
        self.cancelled = False

    def __await__(self) -> Generator[Any, None, Any]:
        return self._task.__await__()

    def cancel(self) -> None:
        self.cancelled = True
        self._task.cancel()


class Through:
    """A stream of Ray's."""

    def __init__(self, *parcels: bytes) -> None:
        self._parcels = parcels

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for parcel in self._parcels:
            yield parcel

    def cancel(self) -> None: ...


def replicas(post: Callable[..., Any], inbox: Inbox) -> tuple[HandleReplicas, list[Response], list[str]]:
    """`post`: what the replica does. Beside them the calls made, and what was asked through Ray."""
    calls: list[Response] = []
    through: list[str] = []

    def remote(method: str, **kwargs: Any) -> Response:
        calls.append(Response(post(**kwargs)))
        return calls[-1]

    def generate(**_: Any) -> Through:
        through.append("generate")
        return Through(b"through", b"Ray")

    handle = SimpleNamespace(
        options=lambda **_: SimpleNamespace(generate=SimpleNamespace(remote=generate)),
        post=SimpleNamespace(remote=remote),
    )
    return HandleReplicas(handle, inbox, ours_to_route=False), calls, through


async def told(found: HandleReplicas) -> list[bytes]:
    return [parcel async for parcel in found.stream("generate")]


async def test_an_answer_comes_beside_ray() -> None:
    outbox, inbox = Outbox(), Inbox(HOST)

    async def post(to: Any, **_: Any) -> bool:
        outgoing = await outbox.open(to[:3], to[3])
        await outgoing.send(b"straight")
        await outgoing.end()
        return True

    found, _, through = replicas(post, inbox)
    assert await told(found) == [b"straight"]
    assert through == []
    outbox.close()
    inbox.close()


async def test_where_nobody_is_let_through_it_comes_through_ray_and_the_next_is_not_even_tried() -> None:
    async def post(**_: Any) -> bool:
        return False

    inbox = Inbox(HOST)
    found, calls, through = replicas(post, inbox)
    assert await told(found) == [b"through", b"Ray"]
    assert await told(found) == [b"through", b"Ray"]
    assert (len(calls), len(through)) == (1, 2)
    inbox.close()


async def test_a_connection_that_breaks_is_a_lost_replica_whose_call_is_cancelled() -> None:
    outbox, inbox, arrived = Outbox(), Inbox(HOST), asyncio.Event()

    async def post(to: Any, **_: Any) -> bool:
        outgoing = await outbox.open(to[:3], to[3])
        await outgoing.send(b"one")
        await arrived.wait()
        outbox.close()
        await asyncio.Event().wait()
        return True

    found, calls, _ = replicas(post, inbox)
    parcels = found.stream("generate")
    assert await anext(parcels) == b"one"
    arrived.set()
    with pytest.raises(ReplicaLost):
        await anext(parcels)
    assert calls[0].cancelled
    inbox.close()


async def test_who_leaves_cancels_the_call_and_is_forgotten() -> None:
    outbox, inbox = Outbox(), Inbox(HOST)

    async def post(to: Any, **_: Any) -> bool:
        outgoing = await outbox.open(to[:3], to[3])
        await outgoing.send(b"one")
        await asyncio.Event().wait()
        return True

    found, calls, _ = replicas(post, inbox)
    parcels = found.stream("generate")
    assert await anext(parcels) == b"one"
    await parcels.aclose()
    assert calls[0].cancelled
    assert inbox.expected(1) is None
    outbox.close()
    inbox.close()


async def test_what_is_ended_is_told_so() -> None:
    async def post(**_: Any) -> bool:
        await asyncio.Event().wait()
        return True

    inbox = Inbox(HOST)
    found, calls, _ = replicas(post, inbox)
    asking = asyncio.create_task(told(found))
    while not calls:
        await asyncio.sleep(0)
    found.end()
    with pytest.raises(EngineUnavailable):
        await asking
    inbox.close()
