"""OpenVINO Model Server's API: what is asked under `/v1` is asked under `/v3` too, and its own ways to tell of models.

    POST, GET /v3/...            by the code of the same route under /v1; `ALIASES` says which
    GET /v1/config               every model with its state: clients poll it until theirs is AVAILABLE
    GET /v2/health/live, /ready  KServe's probes, with an empty body
    GET /v2/models/{name}[/ready]

Errors are `{"error": text}`, with the statuses of its server. Source: openvinotoolkit/model_server 7e4df0c7,
`src/http_rest_api_handler.cpp`, `src/http_server.cpp`, `src/modelversionstatus.cpp`; KServe's open inference protocol.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Generic, Literal, TypeAlias, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline import __version__
from sightline.api import access, errors
from sightline.api.chat import routes as chat
from sightline.api.chat.reply import Chunks
from sightline.api.chat.schema import DeltaReply
from sightline.api.dialect import Dialect
from sightline.api.sse import EventStream, Framer, to_event
from sightline.api.wire import json_response
from sightline.config import Settings
from sightline.errors import InvalidRequest, ModelNotFound
from sightline.models import ModelStatus
from sightline.service import Service

T = TypeVar("T")
Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]

ALIASES: Mapping[str, str] = {
    "/v1/chat/completions": "/v3/chat/completions",
    "/v1/chat/completions/input_tokens": "/v3/chat/completions/input_tokens",
    "/v1/completions": "/v3/completions",
    "/v1/embeddings": "/v3/embeddings",
    "/v1/models": "/v3/models",
    "/v1/models/{id:path}": "/v3/models/{id:path}",
    "/v1/responses": "/v3/responses",
    "/v1/responses/input_tokens": "/v3/responses/input_tokens",
    "/v1/responses/{id}": "/v3/responses/{id}",
    "/v1/responses/{id}/cancel": "/v3/responses/{id}/cancel",
    "/v1/responses/{id}/input_items": "/v3/responses/{id}/input_items",
    "/v1/audio/transcriptions": "/v3/audio/transcriptions",
    "/v1/audio/translations": "/v3/audio/translations",
}
"""Our routes, and where clients of OVMS look for them."""
PATHS = ("/v3", "/v1/config", "/v2")
PROBES = frozenset({"/v2/health/live", "/v2/health/ready"})

PRECONDITION_FAILED = 412
"""What OVMS answers when a request cannot be read far enough to be given to a model."""


class ErrorText(msgspec.Struct, frozen=True):
    error: str


State = Literal["START", "LOADING", "AVAILABLE", "UNLOADING", "END"]
ErrorCode = Literal["OK", "UNKNOWN", "FAILED_PRECONDITION"]


class VersionError(msgspec.Struct, frozen=True):
    error_code: ErrorCode = "OK"
    error_message: str = "OK"


class VersionStatus(msgspec.Struct, frozen=True, kw_only=True):
    version: str = "1"
    state: State
    status: VersionError = VersionError()


class ConfigStatus(msgspec.Struct, frozen=True):
    model_version_status: tuple[VersionStatus, ...]


class Tensor(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """KServe's. A model here has no tensors to be asked with: it is asked under /v3."""

    name: str
    versions: tuple[str, ...] = ("1",)
    platform: str = "Sightline"
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()


class ServerMetadata(msgspec.Struct, frozen=True, kw_only=True):
    name: str = "Sightline"
    version: str = __version__
    extensions: tuple[str, ...] = ()


# --- pure steps ------------------------------------------------------------------------------------------------------


def to_version_status(model: ModelStatus) -> VersionStatus:
    """The life of a model in OVMS' words.

    AVAILABLE is what a request would be served by, so also one that is loaded by the first request: a client that
    polls before it asks would wait for ever otherwise. One that failed to load is LOADING with an error code there.
    """
    if model.phase != "serving":
        return VersionStatus(state="UNLOADING" if model.phase == "closing" else "END")
    if model.state == "ready" or model.available:
        return VersionStatus(state="AVAILABLE")
    if model.state == "failed":
        return VersionStatus(state="LOADING", status=VersionError("UNKNOWN", "UNKNOWN"))
    return VersionStatus(state="LOADING" if model.state == "loading" else "START")


def to_status(error: Exception) -> int:
    """As everywhere, but for a body that cannot be read far enough to see which model it is for, and how to answer."""
    if isinstance(error, InvalidRequest):
        unread = error.param is None
        unread |= error.param in ("model", "stream") and error.code in ("missing_required_parameter", "invalid_type")
        if unread:
            return PRECONDITION_FAILED
    return errors.to_status(error)


def to_error_response(error: Exception, request_id: str) -> Response:
    body = ErrorText(errors.to_message(error, request_id))
    return json_response(body, to_status(error), errors.to_headers(error))


class OvmsChunks(Chunks):
    """The stream of chat completions, with what OVMS' begins with."""

    opening = DeltaReply(role="assistant", content=None)


class _WithErrorText(Generic[T]):
    """A framer whose late fault is told as OVMS tells it; all else as it was."""

    def __init__(self, framer: Framer[T], request_id: str) -> None:
        self.to_frames = framer.to_frames
        self.end = framer.end
        self._request_id = request_id

    def to_error_frame(self, error: Exception) -> bytes:
        return to_event(ErrorText(errors.to_message(error, self._request_id)))


def to_metadata(model: ModelStatus) -> ModelMetadata:
    return ModelMetadata(name=model.name)


# --- routes ----------------------------------------------------------------------------------------------------------


def dialect(service: Service, settings: Settings, served: Iterable[Route]) -> Dialect:
    """`served`: every route of the other dialects, of which those in `ALIASES` are served here too."""
    ours = {route.path: route for route in chat.routes(service, settings, chunks=OvmsChunks)}
    aliased = [
        Route(ALIASES[route.path], _with_error_text(ours.get(route.path, route)), methods=sorted(route.methods or ()))
        for route in served
        if route.path in ALIASES
    ]
    return Dialect([*_routes(service), *aliased], PATHS, to_error_response, "ovms")


def _with_error_text(route: Route) -> Endpoint:
    """Its endpoint. The Responses API's streams keep their own events, of which a fault is one."""
    endpoint: Endpoint = route.endpoint
    if route.path.startswith("/v1/responses"):
        return endpoint

    async def answer(request: Request) -> Response:
        response = await endpoint(request)
        if isinstance(response, EventStream):
            request_id = access.of(request.scope).request_id
            response.reframe(lambda framer: _WithErrorText(framer, request_id))
        return response

    return answer


def _routes(service: Service) -> list[Route]:
    async def config(request: Request) -> Response:
        return json_response({model.name: ConfigStatus((to_version_status(model),)) for model in service.models()})

    async def server(request: Request) -> Response:
        return json_response(ServerMetadata())

    async def live(request: Request) -> Response:
        return Response()

    async def ready(request: Request) -> Response:
        if service.ready():
            return Response()
        raise HTTPException(PRECONDITION_FAILED, "Not every model is ready. GET /v1/config tells of each.")

    async def model(request: Request) -> Response:
        return json_response(to_metadata(_find(service, request)))

    async def model_ready(request: Request) -> Response:
        status = to_version_status(_find(service, request))
        if status.state == "AVAILABLE":
            return Response()
        raise HTTPException(404, f"The model is {status.state}, and not ready yet. GET /v1/config tells of it.")

    return [
        Route("/v1/config", config),
        Route("/v2", server),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2/models/{name:path}/ready", model_ready),
        Route("/v2/models/{name:path}", model),
    ]


def _find(service: Service, request: Request) -> ModelStatus:
    name = request.path_params["name"]
    for status in service.models():
        if status.name == name:
            return status
    raise ModelNotFound(f"The model {name[:128]!r} does not exist. GET /v1/config lists what is served.")
