"""The ASGI application: routes, and what happens to every request before and after its own route.

    Edge: request id -> who may ask, from which pages -> route -> errors become answers -> one line in the log

Pure ASGI, so that a stream passes through untouched and a cancelled request is cancelled all the way down.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from functools import partial

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline import metrics, tracing
from sightline.access.gate import Gate, keys_path
from sightline.access.permit import Permit, acting_by
from sightline.api import access, admin, analyze, batches, caller, embeddings, errors, files, inside, jobs, models, ovms
from sightline.api.bodies import Bodies
from sightline.api.chat import routes as chat
from sightline.api.completions import routes as completions
from sightline.api.cors import Cors
from sightline.api.dialect import Dialect
from sightline.api.direct import Direct
from sightline.api.disconnect import ClientDisconnected
from sightline.api.entrance import KEYLESS, METRICS, Entrance, to_rate_headers
from sightline.api.messages import routes as messages
from sightline.api.ollama import routes as ollama
from sightline.api.openapi import served as openapi
from sightline.api.responses import routes as responses
from sightline.api.shared import ALONE, Shared
from sightline.api.traced import traced
from sightline.api.transcriptions import routes as transcriptions
from sightline.api.wire import json_response
from sightline.api.work import Work
from sightline.config import CorsPolicy, Settings, is_loopback
from sightline.draining import Draining
from sightline.service import Service

PUBLIC = frozenset({"/health", "/ready"}) | ovms.PROBES
"""Paths that anyone may ask for: orchestrators probe them under whatever name or address they know. Every other path,
also one that does not exist, is for those who come under a name of this server's. `Entrance` asks for keys."""
WHILE_ENDING = PUBLIC | {"/metrics"}
"""Paths that a server which is told to stop answers to its end, and does not stay for."""
CLIENT_CLOSED_REQUEST = 499
"""In the log only: nobody is there to be told. nginx's number for it."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f]")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")


def create_app(
    service: Service,
    settings: Settings,
    *,
    wait: bool = False,
    more: Sequence[Dialect] = (),
    gate: Gate | None = None,
    shared: Shared = ALONE,
) -> ASGIApp:
    """The application; its lifespan starts and closes the service.

    With `wait`, startup ends when every model is ready or has failed. Without, the server answers at once: `/health`
    is 200 and `/ready` 503 while models load, and requests wait for theirs. `more`: routes from above this layer,
    behind the same `Edge` as all others. `gate`: that of another application too; None: one of its own.
    `shared`: what a server of several processes has in common.
    """

    @asynccontextmanager
    async def lifespan(_: ASGIApp) -> AsyncIterator[None]:
        end_traces = tracing.start(settings.tracing)
        await own_gate.start()
        await service.start(wait=wait)
        try:
            await work.start(partial(inside.execute, edge))
            yield
        finally:
            await work.close()
            await service.close()
            await own_gate.close()
            await asyncio.to_thread(end_traces)

    own_gate = gate or Gate(settings.access, keys_path(settings))
    work = Work(settings)
    service.keep_files(work.read_picture)
    dialects = [*to_dialects(service, settings, work, own_gate, shared), *more]
    router = Router(
        [route for dialect in dialects for route in dialect.routes],
        redirect_slashes=False,
        default=_not_found,
        lifespan=lifespan,
    )
    edge = Edge(
        router,
        dialects,
        settings.allowed_hosts,
        Cors(settings.cors),
        service.draining,
        Entrance(own_gate),
        Bodies(settings.http.max_held_bytes),
    )
    return edge


def create_admin_app(service: Service, settings: Settings, gate: Gate, shared: Shared = ALONE) -> ASGIApp:
    """What a server whose settings have an `admin` listener answers there: probes, metrics, control. It starts and
    closes nothing: the other application does."""
    assert settings.admin is not None
    dialects = [Dialect(_probes(service.ready), name="none"), admin.dialect(service, gate, shared)]
    router = Router(
        [route for dialect in dialects for route in dialect.routes], redirect_slashes=False, default=_not_found
    )
    return Edge(
        router,
        dialects,
        settings.allowed_hosts if is_loopback(settings.admin.host) else ("*",),
        Cors(CorsPolicy()),
        service.draining,
        Entrance(gate, keyless=KEYLESS | {METRICS}),
        Bodies(settings.http.max_held_bytes),
    )


def create_worker_app(ready: Callable[[], bool], settings: Settings, host: str) -> ASGIApp:
    """What a worker answers on `host`, which has no other listener: probes, and metrics without a key."""

    async def metrics_of_this(request: Request) -> Response:
        body, media_type = metrics.render()
        return Response(body, media_type=media_type)

    dialects = [Dialect([*_probes(ready), Route(METRICS, metrics_of_this)], name="none")]
    return Edge(
        Router(dialects[0].routes, redirect_slashes=False, default=_not_found),
        dialects,
        settings.allowed_hosts if is_loopback(host) else ("*",),
        Cors(CorsPolicy()),
        Draining(),
        Entrance(Gate(settings.access, keys_path(settings)), keyless=KEYLESS | {METRICS}),
        Bodies(settings.http.max_held_bytes),
    )


def to_dialects(service: Service, settings: Settings, work: Work, gate: Gate, shared: Shared = ALONE) -> list[Dialect]:
    """All that is served. `openapi/operations.py` has a row for each of the routes."""
    dialects = [
        Dialect(chat.routes(service, settings)),
        responses.dialect(service, settings, shared),
        messages.dialect(service, settings),
        ollama.dialect(service, settings),
        completions.dialect(service, settings),
        embeddings.dialect(service, settings),
        transcriptions.dialect(service, settings),
        Dialect(models.routes(service)),
        Dialect(_probes(service.ready), name="none"),
        *([] if settings.admin else [admin.dialect(service, gate, shared)]),
        files.dialect(work, settings),
        batches.dialect(work, settings),
        jobs.dialect(service, settings, work),
        analyze.dialect(service, settings),
        Dialect(openapi.routes(), name="none"),
    ]
    dialects.append(ovms.dialect(service, settings, [route for dialect in dialects for route in dialect.routes]))
    return dialects


def _probes(is_ready: Callable[[], bool]) -> list[Route]:
    async def health(request: Request) -> Response:
        return json_response({"status": "ok"})

    async def ready(request: Request) -> Response:
        if is_ready():
            return json_response({"status": "ready"})
        return json_response({"status": "not ready"}, 503)

    return [Route("/health", health), Route("/ready", ready)]


async def _not_found(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/ui" or scope["path"].startswith("/ui/"):
        raise HTTPException(404, "There is no page here: its operator serves one with `sightline serve --ui`.")
    raise HTTPException(404, f"There is no {scope['method'][:16]} {scope['path'][:128]} here. GET /docs tells what is.")


class Edge:
    """Around every request, whatever its route."""

    def __init__(
        self,
        router: Router,
        dialects: Sequence[Dialect],
        allowed_hosts: Iterable[str],
        cors: Cors,
        draining: Draining,
        entrance: Entrance,
        bodies: Bodies,
    ) -> None:
        self._bodies = bodies
        self._entrance = entrance
        self._app = Direct(router)
        self._draining = draining
        self._cors = cors
        self._dialects = dialects
        self._dialect_of = {id(route): dialect.name for dialect in dialects for route in dialect.routes}
        self._allowed_hosts = frozenset(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return  # no WebSockets here: a server closes what nobody accepts
        with traced(scope):
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # so that Starlette raises for a wrong method, where it would answer in its own words
        request_id = _request_id(scope)
        record = access.open_record(scope, request_id)
        edge_headers = [(b"x-request-id", request_id.encode()), *self._cors.to_headers(scope)]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message["headers"], *edge_headers, *to_rate_headers(scope)]
                if self._draining.begun:  # the client's next request goes on a new connection, to another server
                    message["headers"].append((b"connection", b"close"))
            else:
                record.bytes_out += len(message.get("body", b""))
            await send(message)

        metrics.HTTP_IN_FLIGHT.inc()
        try:
            try:
                self._verify_host(scope)
                preflight = self._cors.preflight(scope)
                permit = None if preflight else await self._entrance.admit(scope)  # a preflight has no key to show
                with acting_by(permit):
                    _verify_path(scope)
                    self._refuse(scope, permit)
                    with self._taken(scope), self._bodies.around(scope):
                        await (preflight or self._app)(scope, access.counted(receive, record), send_with_headers)
            except ClientDisconnected:
                record.status = CLIENT_CLOSED_REQUEST
            except Exception as error:
                if isinstance(error, HTTPException) and error.status_code == 405:
                    error.headers = {"Allow": ", ".join(self._methods(scope["path"]))}
                record.error = error
                if record.status is not None:
                    return  # too late for an answer: the server closes a connection whose reply stays incomplete
                await self._to_response(error, scope, request_id)(scope, receive, send_with_headers)
        finally:
            metrics.HTTP_IN_FLIGHT.dec()
            access.close_record(scope, record, self._spoken(scope))

    def _spoken(self, scope: Scope) -> str:
        """The name of the API that a request spoke, by its route or else by its path."""
        if caller.of(scope).is_inside:
            return "inside"
        if (name := self._dialect_of.get(id(scope.get("route")))) is not None:
            return name
        return next((d.name for d in self._dialects if d.speaks(scope["path"])), "none")

    def _taken(self, scope: Scope) -> AbstractContextManager[None]:
        """Around all that a server which is told to stop does first. What it has may still be read then; anything else
        is refused (`Overloaded`)."""
        if scope["path"] in WHILE_ENDING:
            return nullcontext()
        if scope["method"] not in ("GET", "HEAD"):
            self._draining.refuse()
        return nullcontext() if caller.of(scope).is_inside else self._draining.under_way()

    def _methods(self, path: str) -> list[str]:
        """All that a path takes: Starlette tells only those of the first route that has it."""
        routes = [route for dialect in self._dialects for route in dialect.routes]
        first = next((route.path for route in routes if route.path_regex.match(path)), None)
        return sorted({method for route in routes if route.path == first for method in route.methods or ()})

    def _to_response(self, error: Exception, scope: Scope, request_id: str) -> Response:
        """In the shape of the dialect whose path was asked for, whether or not there is a route."""
        speaking = (d.to_error_response for d in self._dialects if d.speaks(scope["path"]))
        return next(speaking, errors.to_response)(error, request_id)

    def _refuse(self, scope: Scope, permit: Permit | None) -> None:
        """Raises why a request may not go on although it is known whose it is: `HTTPException`, `RateLimited`."""
        self._cors.refuse_foreign_form(scope)
        if permit is not None and permit.refused is not None:
            raise permit.refused

    def _verify_host(self, scope: Scope) -> None:
        """Decides on the ASGI scope, never on a reconstructed URL, whether the Host header is one of this server's:
        what keeps a web page from reaching a local server under a name of its own (DNS rebinding).

        Raises `HTTPException`: 400 for a Host that is missing, doubled or malformed, 421 (misdirected request, RFC 9110
        section 15.5.20) for one that is not allowed.
        """
        if scope["path"] in PUBLIC or "*" in self._allowed_hosts or caller.of(scope).is_inside:
            return
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        host = _HOST.fullmatch(hosts[0].decode("latin-1")) if len(hosts) == 1 else None
        if host is None:
            raise HTTPException(400, "The request needs one well-formed Host header.")
        if host[1].lower() not in self._allowed_hosts:
            raise HTTPException(421, "This server does not answer under the name in the Host header.")


def _verify_path(scope: Scope) -> None:
    """Here and not where bytes are read, because the path says which dialect the refusal is told in.

    Raises `HTTPException`: a path with control characters is nobody's mistake, and the connection ends.
    """
    if _CONTROLS.search(scope["path"]):
        message = "The path must not have control characters, percent-encoded ones neither."
        raise HTTPException(400, message, {"connection": "close"})


def _request_id(scope: Scope) -> str:
    """The client's own, if it is harmless; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value.decode())
    return f"req_{os.urandom(12).hex()}"
