"""Analyses that nobody waits for (wire contract, section 12).

    POST /analyze/async   as /analyze  ->  202 {"job_id"}
    GET  /job/{id}        {"status": "pending"} | {"status": "complete", "result"} | {"status": "failed", "error"}

An `Idempotency-Key` makes the same request sent again the same job. What a job came to is known for `batches.kept_s`.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api import caller
from sightline.api.analyze import Analysis, AnalyzeBody, default_model, to_error_response, to_picture
from sightline.api.batches import read_key, to_digest
from sightline.api.caller import Caller
from sightline.api.dialect import Dialect
from sightline.api.exchange import Exchange
from sightline.api.fields import read
from sightline.api.wire import encode, json_response
from sightline.api.work import Work
from sightline.config import Settings
from sightline.errors import ModelNotFound
from sightline.jobs import TERMINAL, Batch, Item, Result
from sightline.service import Service

RUNS_WITHIN_S: Final = 86_400
"""What has not been answered by then has failed."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    job_id: str


class Pending(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["pending"] = "pending"


class Complete(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["complete"] = "complete"
    result: Analysis


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    status: Literal["failed"] = "failed"
    error: str


def to_state(batch: Batch, result: Result | None) -> Pending | Complete | Failed:
    if batch.status not in TERMINAL or result is None:
        return Pending()
    if result.succeeded:
        return Complete(result=msgspec.json.decode(result.body, type=Analysis))
    if result.status_code is None:
        return Failed(error=result.error_message)
    told: dict[str, Any] = msgspec.json.decode(result.body)
    return Failed(error=str(told.get("detail", "")))


def to_batch(own: Caller, now: int) -> Batch:
    return Batch(
        id=f"job-{os.urandom(16).hex()}",
        tenant=own.tenant,
        key_id=own.key_id,
        kind="analysis",
        endpoint="/analyze",
        status="validating",
        created_at=now,
        expires_at=now + RUNS_WITHIN_S,
    )


def dialect(service: Service, settings: Settings, work: Work) -> Dialect:
    api = _Jobs(Exchange(service, settings.http), work)
    routes = [
        Route("/analyze/async", api.create, methods=["POST"]),
        Route("/job/{id}", api.retrieve, methods=["GET"]),
    ]
    return Dialect(routes, paths=("/job",), to_error_response=to_error_response, name="simple")


class _Jobs:
    def __init__(self, exchange: Exchange, work: Work) -> None:
        self._exchange = exchange
        self._work = work

    async def create(self, request: Request) -> Response:
        with self._exchange.reading(request.scope):
            key = read_key(request)
            raw = await self._exchange.read_json(request)
            body = read(AnalyzeBody, raw)
            to_picture(body.image_base64)
            digest = await asyncio.to_thread(to_digest, raw)
            raw["model"] = body.model or default_model(self._exchange.service.models())
            self._verify_model(raw["model"])
        batch = to_batch(caller.of(request.scope), int(time.time()))
        item = Item(0, "", await asyncio.to_thread(encode, raw))
        kept = await self._work.store.create(batch, [item], key=key, digest=digest)
        self._work.wake()
        return json_response(Job(job_id=kept.id), 202)

    def _verify_model(self, name: str) -> None:
        """Raises `ModelNotFound` now and not in a result that somebody waits for; `Forbidden`."""
        service = self._exchange.service
        service.refuse_foreign(name)
        if all(status.name != name for status in service.models()):
            raise ModelNotFound(
                f"The model {name[:128]!r} does not exist. GET /v1/models lists what is served.", param="model"
            )

    async def retrieve(self, request: Request) -> Response:
        batch = await self._work.store.get(caller.of(request.scope).tenant, "analysis", request.path_params["id"])
        results = [result async for _, result in self._work.store.results(batch.id)]
        return json_response(to_state(batch, results[0] if results else None))
