"""Texts to vectors by a server: `POST /v1/embeddings`, and Ollama's `POST /api/embed`. Pure.

Source: openai-openapi 2.3.0, `CreateEmbeddingRequest`; Ollama's `EmbedRequest` (api/types.go). Vectors are asked for
in base64, as OpenAI's SDKs do: numbers as JSON are four times as long, and reading them holds up the event loop. One
that sends numbers all the same is understood.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from sightline.engines.remote.body import Specials
from sightline.errors import InvalidRequest, UpstreamFailed
from sightline.types import EmbeddingRequest, Embeddings

FIELDS = frozenset({"input", "model", "dimensions", "encoding_format"})
"""What an error of the server may name."""
MAX_REPLY_BYTES = 512 * 1024 * 1024

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Row(msgspec.Struct):
    index: int
    embedding: list[float] | str


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: _Count = 0


class _Listed(msgspec.Struct):
    data: list[_Row]
    usage: _Usage = _Usage()


class _Ollama(msgspec.Struct):
    embeddings: list[list[float]]
    prompt_eval_count: _Count = 0


def to_embedding_body(request: EmbeddingRequest, model: str, specials: Specials, *, ids: bool) -> dict[str, Any]:
    """`ids`: whether token ids may be passed on, because the server checks them.

    Raises `InvalidRequest` for token ids where they may not, and for texts beside ids.
    """
    texts = [given for given in request.inputs if isinstance(given, str)]
    if len(texts) != len(request.inputs) and (texts or not ids):
        raise InvalidRequest(
            "The server behind this model is given texts only: its special tokens could be among token ids.",
            param="input",
        )
    inputs: Sequence[Any] = specials.broken(texts) if texts else request.inputs
    body = {"model": model, "input": inputs}
    return body if request.dimensions is None else {**body, "dimensions": request.dimensions}


def read_listed(body: bytes, request: EmbeddingRequest) -> Embeddings:
    """OpenAI's reply. Raises `UpstreamFailed` for what cannot be the inputs' vectors."""
    reply: _Listed = _decode(body, _Listed)
    rows = sorted(reply.data, key=lambda row: row.index)
    if [row.index for row in rows] != list(range(len(rows))):
        raise _nonsense()
    return _to_embeddings([row.embedding for row in rows], reply.usage.prompt_tokens, request)


def read_ollama(body: bytes, request: EmbeddingRequest) -> Embeddings:
    reply: _Ollama = _decode(body, _Ollama)
    return _to_embeddings(reply.embeddings, reply.prompt_eval_count, request)


def _to_embeddings(told: Sequence[list[float] | str], prompt_tokens: int, request: EmbeddingRequest) -> Embeddings:
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is found
        rows = [_decoded(row) if isinstance(row, str) else np.array(row, np.float32) for row in told]
    sizes = {len(row) for row in rows}
    if len(rows) != len(request.inputs) or len(sizes) != 1 or not min(sizes):
        raise _nonsense()
    if request.dimensions is not None and sizes != {request.dimensions}:
        raise InvalidRequest(
            f"This model's vectors have {min(sizes)} dimensions; {request.dimensions} were asked for.",
            param="dimensions",
        )
    vectors = np.stack(rows)
    if not np.isfinite(vectors).all():
        raise _nonsense()
    return Embeddings(vectors, prompt_tokens)


def _decoded(row: str) -> npt.NDArray[np.float32]:
    try:
        return np.frombuffer(base64.b64decode(row, validate=True), "<f4")
    except ValueError:
        raise _nonsense() from None


def _decode(body: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeError):
        raise _nonsense() from None


def _nonsense() -> UpstreamFailed:
    return UpstreamFailed("The server behind this model sent what are no vectors of these texts.")
