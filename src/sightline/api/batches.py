"""OpenAI's batches: a file of requests, answered while nobody waits (wire contract, section 6).

POST /v1/batches                Idempotency-Key: the same key and body are the same batch
GET  /v1/batches                ?after&limit
GET  /v1/batches/{id}
POST /v1/batches/{id}/cancel
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from sightline.api import caller
from sightline.api.caller import Caller
from sightline.api.dialect import Dialect
from sightline.api.fields import described, integer, invalid, one_of, read, string, struct, wrong_type
from sightline.api.files import MAX_KEPT_S, MIN_KEPT_S
from sightline.api.pages import read_limit
from sightline.api.wire import json_response, read_json
from sightline.api.work import Work
from sightline.config import Settings
from sightline.errors import InvalidRequest, ObjectNotFound
from sightline.jobs import TERMINAL, Batch, Status
from sightline.jobs.files import new_file_id

ENDPOINTS: Final = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings")
JSON_LINES: Final = "application/jsonl"
WINDOW_S: Final = 86_400
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_PAIRS: Final = 16


@described({"type": "object", "additionalProperties": {"type": "string", "maxLength": 512}, "maxProperties": _PAIRS})
def _metadata(value: Any, at: str) -> Mapping[str, str]:
    if not isinstance(value, dict):
        raise wrong_type(at, "an object", value)
    if len(value) > _PAIRS:
        raise invalid(at, f"must have at most {_PAIRS} keys")
    for key, text in value.items():
        if not 1 <= len(key) <= 64:
            raise invalid(at, "must have keys of 1 to 64 characters")
        string(max_length=512)(text, f"{at}.{key}")
    return value


class OutputExpiry(msgspec.Struct, frozen=True, kw_only=True):
    anchor: Annotated[str, one_of("created_at")]
    seconds: Annotated[int, integer(MIN_KEPT_S, MAX_KEPT_S)]


class BatchBody(msgspec.Struct, frozen=True, kw_only=True):
    input_file_id: Annotated[str, string(min_length=1)]
    """A file of the purpose `batch`: a request a line."""
    endpoint: Annotated[str, one_of(*ENDPOINTS)]
    """Of every line."""
    completion_window: Annotated[str, one_of("24h")]
    """After it, what is not done is told as `batch_expired`."""
    metadata: Annotated[Mapping[str, str] | None, _metadata] = None
    output_expires_after: Annotated[OutputExpiry | None, struct(OutputExpiry)] = None
    """How long the output and error files are kept, from when they are made."""


class BatchError(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str
    param: str | None
    line: int | None


class BatchErrors(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[BatchError]


class RequestCounts(msgspec.Struct, frozen=True, kw_only=True):
    total: int
    completed: int
    failed: int


class InputDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int


class OutputDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int


class BatchUsage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class BatchObject(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    model: str | None
    errors: BatchErrors | None
    """Of the input file, where the batch has failed."""
    input_file_id: str | None
    completion_window: str
    status: Status
    output_file_id: str | None
    """Of the answers. None as long as it is not written, and where it would be empty."""
    error_file_id: str | None
    """Of the requests that failed, or were never run."""
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: Mapping[str, str]


class BatchList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


def to_object(batch: Batch) -> BatchObject:
    at, usage = batch.entered.get, batch.usage
    errors = [BatchError(code=e.code, message=e.message, param=e.param, line=e.line) for e in batch.errors]
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        errors=BatchErrors(data=errors) if errors else None,
        input_file_id=batch.input_file_id,
        completion_window=batch.window,
        status=batch.status,
        output_file_id=batch.output_file_id if batch.has_output else None,
        error_file_id=batch.error_file_id if batch.has_errors else None,
        created_at=batch.created_at,
        in_progress_at=at("in_progress"),
        expires_at=batch.expires_at,
        finalizing_at=at("finalizing"),
        completed_at=at("completed"),
        failed_at=at("failed"),
        expired_at=at("expired"),
        cancelling_at=at("cancelling"),
        cancelled_at=at("cancelled"),
        request_counts=RequestCounts(
            total=batch.counts.total, completed=batch.counts.completed, failed=batch.counts.failed
        ),
        usage=BatchUsage(
            input_tokens=usage.input_tokens,
            input_tokens_details=InputDetails(cached_tokens=usage.cached_tokens),
            output_tokens=usage.output_tokens,
            output_tokens_details=OutputDetails(reasoning_tokens=usage.reasoning_tokens),
            total_tokens=usage.input_tokens + usage.output_tokens,
        ),
        metadata=batch.metadata,
    )


def to_batch(body: BatchBody, own: Caller, now: int) -> Batch:
    return Batch(
        id=f"batch_{os.urandom(16).hex()}",
        tenant=own.tenant,
        key_id=own.key_id,
        kind="batch",
        endpoint=body.endpoint,
        status="validating",
        created_at=now,
        expires_at=now + WINDOW_S,
        input_file_id=body.input_file_id,
        output_file_id=new_file_id(),
        error_file_id=new_file_id(),
        output_kept_s=None if body.output_expires_after is None else body.output_expires_after.seconds,
        window=body.completion_window,
        metadata=body.metadata or {},
    )


def read_key(request: Request) -> str | None:
    """The Idempotency-Key, by which the same request sent again is known. Raises `InvalidRequest`."""
    key = request.headers.get("idempotency-key")
    if key is not None and not _KEY.fullmatch(key):
        raise InvalidRequest(
            "The header Idempotency-Key has 1 to 255 printable ASCII characters and no spaces.", param="Idempotency-Key"
        )
    return key


def to_digest(raw: Mapping[str, Any]) -> str:
    """Of a request's body: the same for the same values, however they are written."""
    return hashlib.sha256(msgspec.json.encode(raw, order="deterministic")).hexdigest()


def dialect(work: Work, settings: Settings) -> Dialect:
    api = _Batches(work, settings)
    return Dialect(
        [
            Route("/v1/batches", api.create, methods=["POST"]),
            Route("/v1/batches", api.list, methods=["GET"]),
            Route("/v1/batches/{id}", api.retrieve, methods=["GET"]),
            Route("/v1/batches/{id}/cancel", api.cancel, methods=["POST"]),
            Route("/v1/batches/{id}/results", api.results, methods=["GET"]),
        ]
    )


class _Batches:
    def __init__(self, work: Work, settings: Settings) -> None:
        self._work = work
        self._limits = settings.http

    async def create(self, request: Request) -> Response:
        key = read_key(request)
        raw = await read_json(request, self._limits)
        body, own, digest = read(BatchBody, raw), caller.of(request.scope), to_digest(raw)
        kept = None if key is None else await self._work.store.find_by_key(own.tenant, "batch", key, digest)
        if kept is None:  # else its file may be gone by now
            await self._check_input(own.tenant, body.input_file_id)
            batch = to_batch(body, own, int(time.time()))
            kept = await self._work.store.create(batch, key=key, digest=digest)
            self._work.wake()
        return json_response(to_object(kept))

    async def _check_input(self, tenant: str, file_id: str) -> None:
        try:
            file = await self._work.files.get(tenant, file_id)
        except ObjectNotFound as error:
            raise InvalidRequest(error.message, param="input_file_id") from None
        if file.purpose != "batch":
            raise invalid("input_file_id", f"must be a file of the purpose 'batch', not {file.purpose!r}")

    async def list(self, request: Request) -> Response:
        limit = read_limit(request, default=20, most=100)
        after = request.query_params.get("after")
        try:
            found = await self._work.store.list(caller.of(request.scope).tenant, "batch", limit=limit + 1, after=after)
        except ObjectNotFound:
            raise invalid("after", "must be the id of a batch") from None
        page = [to_object(batch) for batch in found[:limit]]
        ends = (page[0].id, page[-1].id) if page else (None, None)
        return json_response(BatchList(data=page, first_id=ends[0], last_id=ends[1], has_more=len(found) > limit))

    async def retrieve(self, request: Request) -> Response:
        tenant = caller.of(request.scope).tenant
        return json_response(to_object(await self._work.store.get(tenant, "batch", request.path_params["id"])))

    async def cancel(self, request: Request) -> Response:
        tenant = caller.of(request.scope).tenant
        batch = await self._work.store.cancel(tenant, "batch", request.path_params["id"])
        self._work.wake()
        return json_response(to_object(batch))

    async def results(self, request: Request) -> Response:
        tenant = caller.of(request.scope).tenant
        batch = await self._work.store.get(tenant, "batch", request.path_params["id"])
        lines = self._lines(batch) if batch.status in TERMINAL else self._work.stages.lines(batch.id)
        return StreamingResponse(lines, media_type=JSON_LINES)

    async def _lines(self, batch: Batch) -> AsyncIterator[bytes]:
        """Of one that has ended: its files, as far as they are still there."""
        for file_id in (batch.output_file_id, batch.error_file_id):
            with suppress(ObjectNotFound):
                file = await self._work.files.get(batch.tenant, file_id or "")
                async for chunk in self._work.files.content(file):
                    yield chunk
