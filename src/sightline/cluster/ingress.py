"""A replica of the ingress: the application of `sightline serve`, whose engines are handles."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

import ray  # type: ignore[import-not-found, unused-ignore]
from ray.exceptions import RayError  # type: ignore[import-not-found, unused-ignore]
from ray.serve.exceptions import (  # type: ignore[import-not-found, unused-ignore]
    BackPressureError,
    RayServeException,
    RequestCancelledError,
)
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline.access.gate import Gate, keys_path
from sightline.api.app import create_app
from sightline.cluster.answering import forget
from sightline.cluster.handle_engine import HandleEngine, ReplicaLost
from sightline.cluster.meter import SharedMeter
from sightline.cluster.plan import Plan, ingress_settings, is_ours_to_route, to_settings
from sightline.cluster.post import Inbox, Incoming, PostLost, Unreachable
from sightline.cluster.router import tell_read
from sightline.cluster.window import Reading
from sightline.errors import EngineUnavailable, Overloaded
from sightline.service import Service

_THROUGH_RAY_S = 60.0
"""For how long answers go through Ray after a replica could not reach this machine."""


class Ingress:
    def __init__(self, plan: Plan, handles: Mapping[str, Any], meter: Any = None) -> None:
        """`handles`: of the models' deployments. `meter`: of the one that all ingresses ask what keys may do; None:
        this one counts for itself."""
        self._settings = ingress_settings(plan, to_settings(plan.settings))
        inbox = Inbox(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call, unused-ignore]
        engines = {
            name: HandleEngine(name, HandleReplicas(handle, inbox, ours_to_route=is_ours_to_route(plan, name)))
            for name, handle in handles.items()
        }
        self._service = Service(self._settings, engines)
        shared = None if meter is None else SharedMeter(HandleReplicas(meter, inbox, ours_to_route=False))
        self._gate = Gate(self._settings.access, keys_path(self._settings), shared)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _without_request_id(create_app(self._service, self._settings, gate=self._gate))


def _without_request_id(app: ASGIApp) -> ASGIApp:
    """Ray tells it already: the client's own or the one that it made, which the application was given."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair[0] != b"x-request-id"]
                message = {**message, "headers": headers}
            await send(message)

        await app(scope, receive, tell)

    return answer


class HandleReplicas:
    """`Replicas` of a `DeploymentHandle`."""

    def __init__(self, handle: Any, inbox: Inbox, *, ours_to_route: bool) -> None:
        """`ours_to_route`: our router knows which replica makes an answer, and can tell it how far that was read."""
        self._handle = handle
        self._ours_to_route = ours_to_route
        self._streaming = handle.options(stream=True)
        self._inbox = inbox
        self._through_ray_until = 0.0
        """By the event loop's clock."""
        self._under_way: set[Any] = set()
        self._watching: set[asyncio.Task[None]] = set()

    async def call(self, method: str, *args: Any, **kwargs: Any) -> bytes:
        with self._cancelled_after(getattr(self._handle, method).remote(*args, **kwargs)) as response:
            answer: bytes = await response
        return answer

    async def stream(self, method: str, *args: Any, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        answer = uuid.uuid4().hex if self._ours_to_route else None
        reading = Reading()
        try:
            async with aclosing(self._parcels(method, *args, answer=answer, **kwargs)) as parcels:
                async for parcel in parcels:
                    yield parcel
                    if reading.next() and answer is not None:
                        tell_read(answer, reading.count)
        finally:
            if answer is not None:
                forget(answer)

    async def _parcels(self, method: str, *args: Any, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        """Beside Ray, which is much less work; where the network forbids that, through it."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._through_ray_until:
            try:
                async with aclosing(self._posted(method, *args, **kwargs)) as parcels:
                    async for parcel in parcels:
                        yield parcel
                return
            except Unreachable:
                self._through_ray_until = loop.time() + _THROUGH_RAY_S
        with self._cancelled_after(getattr(self._streaming, method).remote(*args, **kwargs)) as response:
            async for parcel in response:
                yield parcel

    async def _posted(self, method: str, *args: Any, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        """Raises `Unreachable` before anything was done."""
        incoming = await self._inbox.expect()
        try:
            to = (*incoming.address, incoming.number)
            with self._cancelled_after(self._handle.post.remote(method, *args, to=to, **kwargs)) as response:
                watching = asyncio.create_task(_watch(response, incoming))
                self._watching.add(watching)
                watching.add_done_callback(self._watching.discard)
                async for parcel in incoming:
                    yield parcel
        finally:
            incoming.close()

    def end(self) -> None:
        for response in self._under_way:
            response.cancel()

    @contextmanager
    def _cancelled_after(self, response: Any) -> Iterator[Any]:
        """Cancelled, unless it has ended by then: a replica goes on with what nobody waits for."""
        self._under_way.add(response)
        try:
            yield response
        except (RayError, RayServeException) as error:
            raise _translated(error) from error
        except PostLost as error:
            response.cancel()  # it may still be at work, where only the connection is gone
            raise _translated(error) from error
        except BaseException:
            response.cancel()
            raise
        finally:
            self._under_way.discard(response)


async def _watch(response: Any, incoming: Incoming) -> None:
    """Tells who waits for the answer what became of the call, by Ray."""
    try:
        reached = await response
    except asyncio.CancelledError:
        incoming.fail(RequestCancelledError())
    except Exception as error:
        incoming.fail(error)
    else:
        incoming.sent() if reached else incoming.fail(Unreachable())


def _translated(error: Exception) -> Exception:
    """By class. What is raised by the replica's own code is a bug there, and like a lost replica for who waits."""
    match error:
        case BackPressureError():
            return Overloaded("The model has more requests than it takes. Try again later.")
        case RequestCancelledError():
            return EngineUnavailable("The model's replica is being stopped.")
        case _:
            return ReplicaLost(type(error).__name__)
