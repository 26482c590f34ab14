"""Control of the server, for admin keys: how it does, which keys there are, what is loaded.

    GET  /metrics                     for Prometheus
    GET  /admin/status                how the server and each model does
    GET  /admin/keys                  the keys (never what clients send), and what they have used today
    POST /admin/models/{id}/load      answered when it is ready
    POST /admin/models/{id}/unload    where the next request loads it again

On the one listener, or with `admin:` in the configuration on one of its own, where `/metrics` needs no key.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline import __version__
from sightline.access.gate import Gate
from sightline.access.keys import Key, State
from sightline.access.limits import Used
from sightline.api.dialect import Dialect
from sightline.api.shared import ALONE, Shared
from sightline.api.wire import json_response
from sightline.config import KeyLimits
from sightline.engines import EngineState
from sightline.errors import UnsupportedFeature
from sightline.models import ModelStatus
from sightline.service import Service


class AdminModel(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    alias_of: str | None
    state: EngineState
    progress: float | None
    """Of loading, 0..1; null where the engine does not tell."""
    engine: str
    slots: int
    """Choices that run at once, at most."""
    running: int
    """Requests that hold a slot."""
    waiting: int
    """Requests that wait for one."""


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    version: str
    started_at: int
    """Seconds since 1970."""
    state: Literal["ready", "not ready", "draining"]
    models: list[AdminModel]


class UsedToday(msgspec.Struct, frozen=True, kw_only=True):
    requests: int
    tokens: int
    pictures: int


class AdminKey(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    state: State
    tenant: str
    models: list[str] | None
    """Null: all."""
    admin: bool
    limits: KeyLimits
    created_at: int | None
    """Seconds since 1970; null for one of the configuration."""
    expires_at: int | None
    today: UsedToday
    """From midnight UTC."""


class AdminKeys(msgspec.Struct, frozen=True):
    keys: list[AdminKey]


class ModelTold(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    state: EngineState


def to_admin_model(status: ModelStatus) -> AdminModel:
    return AdminModel(
        name=status.name,
        alias_of=None if status.model in ("", status.name) else status.model,
        state=status.state,
        progress=1.0 if status.state == "ready" else status.progress,
        engine=status.engine,
        slots=status.slots,
        running=status.running,
        waiting=status.waiting,
    )


def to_admin_key(key: Key, used: Used, now: float) -> AdminKey:
    return AdminKey(
        id=key.id,
        name=key.name,
        state=key.state(now),
        tenant=key.tenant,
        models=list(key.models) or None,
        admin=key.admin,
        limits=key.limits,
        created_at=key.created_at or None,
        expires_at=key.expires_at,
        today=UsedToday(requests=used.requests, tokens=used.tokens, pictures=used.pictures),
    )


def dialect(service: Service, gate: Gate, shared: Shared = ALONE) -> Dialect:
    return Dialect(_Admin(service, gate, shared).routes(), name="none")


class _Admin:
    def __init__(self, service: Service, gate: Gate, shared: Shared) -> None:
        self._service = service
        self._shared = shared
        self._gate = gate
        self._started_at = int(datetime.now(UTC).timestamp())

    def routes(self) -> list[Route]:
        return [
            Route("/metrics", self.metrics),
            Route("/admin/status", self.status),
            Route("/admin/keys", self.keys),
            Route("/admin/models/{id:path}/load", self.load, methods=["POST"]),
            Route("/admin/models/{id:path}/unload", self.unload, methods=["POST"]),
        ]

    async def metrics(self, request: Request) -> Response:
        body, media_type = await self._shared.render_metrics()
        return Response(body, media_type=media_type)

    async def status(self, request: Request) -> Response:
        ready = "ready" if self._service.ready() else "not ready"
        return json_response(
            ServerStatus(
                version=__version__,
                started_at=self._started_at,
                state="draining" if self._service.draining.begun else ready,  # type: ignore[arg-type]
                models=[to_admin_model(status) for status in self._service.models()],
            )
        )

    async def keys(self, request: Request) -> Response:
        used, now = await self._gate.metering.used(), time.time()
        return json_response(AdminKeys([to_admin_key(k, used.get(k.id, Used()), now) for k in self._gate.keys]))

    async def load(self, request: Request) -> Response:
        name = request.path_params["id"]
        await self._service.load(name)
        return json_response(self._told(name))

    async def unload(self, request: Request) -> Response:
        name = request.path_params["id"]
        if not self._service.unload(name):
            raise UnsupportedFeature(
                f"The model {name[:128]!r} is kept loaded: its configuration says neither `load: demand` nor "
                "`idle_unload_s`, so no request would load it again."
            )
        return json_response(self._told(name))

    def _told(self, name: str) -> ModelTold:
        state = next(status.state for status in self._service.models() if status.name == name)
        return ModelTold(name=name, state=state)
