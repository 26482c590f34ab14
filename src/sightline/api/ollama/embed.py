"""Ollama's embeddings: `/api/embed`, and `/api/embeddings`, which came before it.

Source: ollama/ollama at fb307609, `EmbedHandler` and `EmbeddingsHandler` in server/routes.go: the newer one makes its
vectors of length 1, the older one leaves its vector as it is.
"""

from __future__ import annotations

import asyncio
import time
from typing import TypeVar

import msgspec
import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api import access
from sightline.api.exchange import Exchange, new_id
from sightline.api.extension import to_headers
from sightline.api.fields import read
from sightline.api.ollama.models import resolve
from sightline.api.ollama.schema import EmbedBody, EmbeddingsBody, EmbeddingsReply, EmbedReply
from sightline.api.wire import encode, json_response
from sightline.models import ModelStatus
from sightline.types import EmbeddingRequest, Embeddings

BodyT = TypeVar("BodyT", EmbedBody, EmbeddingsBody)


def to_reply(head: EmbedReply, embeddings: Embeddings) -> bytes:
    """`head`, which has no vectors, with them. Row by row, because two thousand rows are seconds of work, in which
    Python's other threads have their turn only between calls."""
    rows = []
    for vector in embeddings.vectors:
        length = float(np.linalg.norm(vector))
        rows.append(encode((vector / length if length else vector).tolist()))
    before, _, after = encode(head).partition(b"[]")
    return b"".join((before, b"[", b",".join(rows), b"]", after))


def routes(exchange: Exchange) -> list[Route]:
    api = _Embed(exchange)
    return [
        Route("/api/embed", api.embed, methods=["POST"]),
        Route("/api/embeddings", api.embed_one, methods=["POST"]),
    ]


class _Embed:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def embed(self, request: Request) -> Response:
        body, status = await self._read(request, EmbedBody)
        started = access.of(request.scope).started
        head = EmbedReply(model=body.model, embeddings=[], total_duration=0, load_duration=0, prompt_eval_count=0)
        if not body.input:
            return json_response(head)
        wanted = EmbeddingRequest(new_id("embd-"), status.name, body.input, body.dimensions)
        called = await self._exchange.embed(request, wanted)
        took_s = time.perf_counter() - started
        head = msgspec.structs.replace(
            head,
            total_duration=round(took_s * 1e9),
            # Engines tell no times of vectors; where one had to be loaded, that was nearly all.
            load_duration=0 if status.state == "ready" else round((took_s - called.queue_s) * 1e9),
            prompt_eval_count=called.value.prompt_tokens,
        )
        reply = await asyncio.to_thread(to_reply, head, called.value)
        return Response(reply, media_type="application/json", headers=to_headers(called.engine, called.path))

    async def embed_one(self, request: Request) -> Response:
        body, status = await self._read(request, EmbeddingsBody)
        if not body.prompt:
            return json_response(EmbeddingsReply(embedding=[]))
        wanted = EmbeddingRequest(new_id("embd-"), status.name, (body.prompt,))
        called = await self._exchange.embed(request, wanted)
        reply = EmbeddingsReply(embedding=called.value.vectors[0].tolist())
        return json_response(reply, headers=to_headers(called.engine, called.path))

    async def _read(self, request: Request, schema: type[BodyT]) -> tuple[BodyT, ModelStatus]:
        with self._exchange.reading(request.scope):
            body = read(schema, await self._exchange.read_json(request, any_type=True))
            status = resolve(body.model, self._exchange.service)
        access.of(request.scope).facts["model"] = status.name
        return body, status
