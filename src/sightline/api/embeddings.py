"""OpenAI's embeddings: POST /v1/embeddings.

Source: openai-openapi 2.3.0, `CreateEmbeddingRequest`, `CreateEmbeddingResponse`. `user` is ignored. OpenAI's SDKs ask
for `base64` unless told otherwise: the bytes of little-endian float32.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api.dialect import Dialect
from sightline.api.exchange import Exchange, new_id
from sightline.api.extension import to_headers
from sightline.api.fields import (
    integer,
    one_of,
    read,
    string,
    texts_or_token_ids,
)
from sightline.api.wire import encode
from sightline.config import Settings
from sightline.service import Service
from sightline.types import EmbeddingRequest, Embeddings

MAX_ITEMS = 2048
"""Of inputs, and of the token ids of one."""

_input = texts_or_token_ids(string(min_length=1), integer(0), max_items=MAX_ITEMS, max_token_ids=MAX_ITEMS)


class EmbeddingsBody(msgspec.Struct, frozen=True, kw_only=True):
    model: Annotated[str, string(min_length=1)]
    input: Annotated[tuple[str | tuple[int, ...], ...], _input]
    """One text or up to 2,048 of them, or their token ids."""
    encoding_format: Annotated[Literal["float", "base64"], one_of("float", "base64")] = "float"
    dimensions: Annotated[int | None, integer(1)] = None
    """Fewer than the model has, where it allows that."""


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or with `base64` little-endian float32 in base64."""


class EmbeddingsUsage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


def to_embedding_request(body: EmbeddingsBody, request_id: str) -> EmbeddingRequest:
    return EmbeddingRequest(request_id, body.model, body.input, body.dimensions)


def to_reply(body: EmbeddingsBody, embeddings: Embeddings) -> bytes:
    """An `EmbeddingList`. Row by row, because two thousand rows are seconds of work, in which Python's other threads
    have their turn only between calls."""
    rows = []
    for index, vector in enumerate(embeddings.vectors):
        told = (
            base64.b64encode(vector.astype("<f4").tobytes()).decode()
            if body.encoding_format == "base64"
            else vector.tolist()
        )
        rows.append(encode(Embedding(index=index, embedding=told)))
    tokens = embeddings.prompt_tokens
    around = EmbeddingList(data=[], model=body.model, usage=EmbeddingsUsage(prompt_tokens=tokens, total_tokens=tokens))
    before, _, after = encode(around).partition(b"[]")
    return b"".join((before, b"[", b",".join(rows), b"]", after))


# --- routes ----------------------------------------------------------------------------------------------------------


def dialect(service: Service, settings: Settings) -> Dialect:
    api = _Embeddings(Exchange(service, settings.http))
    return Dialect([Route("/v1/embeddings", api.create, methods=["POST"])])


class _Embeddings:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def create(self, request: Request) -> Response:
        with self._exchange.reading(request.scope):
            raw = await self._exchange.read_json(request)
            body = await asyncio.to_thread(read, EmbeddingsBody, raw)  # millions of token ids are seconds of work
        wanted = to_embedding_request(body, new_id("embd-"))
        called = await self._exchange.embed(request, wanted)
        reply = await asyncio.to_thread(to_reply, body, called.value)
        return Response(reply, media_type="application/json", headers=to_headers(called.engine, called.path))
