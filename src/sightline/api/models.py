"""GET /v1/models: what is served, and in which state it is. Anthropic's clients, who say so by a header, get theirs
(`messages/models.py`)."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api.messages import models as messages_models
from sightline.api.wire import json_response
from sightline.engines import EngineState, Work
from sightline.errors import ModelNotFound
from sightline.models import ModelStatus
from sightline.service import Service


class ModelReport(msgspec.Struct, frozen=True, kw_only=True):
    """Ours (wire contract, section 13). What only a loaded model tells is null until it is."""

    state: EngineState
    progress: float | None
    """Of loading, 0..1; null where the engine does not tell."""
    engine: str
    vision: bool | None
    context_length: int | None
    work: list[Work] | None
    """`messages`, `completions` (plain text), `embeddings`, `transcription`."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "sightline"
    sightline: ModelReport


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[Model]


def to_model(status: ModelStatus) -> Model:
    info = status.info
    return Model(
        id=status.name,
        created=status.created,
        sightline=ModelReport(
            state=status.state,
            progress=1.0 if status.state == "ready" else status.progress,
            engine=status.engine,
            vision=None if info is None else info.vision is not None,
            context_length=None if info is None else info.context_length,
            work=None if info is None else sorted(info.work),
        ),
    )


def routes(service: Service) -> list[Route]:
    async def list_models(request: Request) -> Response:
        if messages_models.VERSION in request.headers:
            return messages_models.answer(request, service.models())
        return json_response(ModelList(data=[to_model(status) for status in service.models()]))

    async def retrieve_model(request: Request) -> Response:
        name = request.path_params["id"]
        if messages_models.VERSION in request.headers:
            return messages_models.answer(request, service.models(), name)
        for status in service.models():
            if status.name == name:
                return json_response(to_model(status))
        raise ModelNotFound(f"The model {name[:128]!r} does not exist. GET /v1/models lists what is served.")

    # Names may hold slashes, as on model hubs.
    return [Route("/v1/models", list_models), Route("/v1/models/{id:path}", retrieve_model)]
