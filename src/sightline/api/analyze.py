"""The simple service: a prompt and a picture, and a text back (wire contract, section 12).

    POST /analyze              {"prompt", "image_base64", "model"?}  ->  {"result"}
    POST /analyze/upload       the picture as the file of a form; prompt and model as its fields, or in the query
    POST /analyze/optimized    the same; the model sees a smaller JPEG of the picture, and the reply says which

Answers are greedy: the same question about the same picture gets the same text. Errors are `{"detail": text}`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline import metrics
from sightline.api import access, errors
from sightline.api.content import to_url
from sightline.api.dialect import Dialect
from sightline.api.exchange import Exchange, new_id, timeout_s
from sightline.api.extension import to_headers
from sightline.api.fields import invalid, read, string
from sightline.api.forms import reading_form
from sightline.api.wire import json_response
from sightline.config import Settings
from sightline.engines import EngineInfo
from sightline.errors import ImageForbidden, UnsupportedFeature
from sightline.models import ModelStatus
from sightline.service import Service
from sightline.types import ChatRequest, ImageRef, Message, Recompression, SamplingParams, Text

_GREEDY = SamplingParams(temperature=0.0)
_WORDS = {"messages": "prompt"}
"""What the service's own messages call by another name than this dialect."""


class AnalyzeBody(msgspec.Struct, frozen=True, kw_only=True):
    prompt: Annotated[str, string(min_length=1)]
    image_base64: Annotated[str, string(min_length=1)]
    """Bare base64 or a data: URI."""
    model: Annotated[str | None, string(min_length=1)] = None
    """The first configured model that sees, where it is left out."""


class UploadBody(msgspec.Struct, frozen=True, kw_only=True):
    """The text fields of the form, each of which may stand in the query instead."""

    prompt: Annotated[str, string(min_length=1)]
    model: Annotated[str | None, string(min_length=1)] = None


class ServedPicture(msgspec.Struct, frozen=True, kw_only=True):
    """The JPEG whose pixels the model was given."""

    width: int
    height: int
    bytes: int


class Analysis(msgspec.Struct, frozen=True, kw_only=True):
    result: str
    served: ServedPicture | UnsetType = UNSET
    """Of `/analyze/optimized` only."""


class Detail(msgspec.Struct, frozen=True, kw_only=True):
    """How every error of this service is told."""

    detail: str


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt about one picture: what every route here asks, however it was sent."""

    prompt: str
    picture: ImageRef
    model: str


# --- pure steps ------------------------------------------------------------------------------------------------------


def to_picture(image_base64: str, at: str = "image_base64") -> ImageRef:
    """Raises `ImageForbidden` for what is neither base64 nor a data: URI, as far as that can be told at a glance."""
    source = to_url(image_base64, at)
    if not source[:5].lower() == "data:":
        raise ImageForbidden(
            "The picture itself is sent here, as base64 or as a data: URI; no URL is opened.", param=at
        )
    return ImageRef(source, at)


def with_query(fields: Mapping[str, Any], query: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """A form's fields, and beside them those that stand in the query: each in one place only.

    Raises `InvalidRequest` for one that was sent twice.
    """
    merged = dict(fields)
    for name, value in query:
        if name in UploadBody.__struct_fields__:
            if name in merged:
                raise invalid(name, "was sent twice; send it once, in the query or as a field of the form")
            merged[name] = value
    return merged


def to_num_bytes(picture: ImageRef) -> int:
    """Bytes of the file in a data: URI of well-formed base64, or of the file itself."""
    if isinstance(picture.source, bytes):
        return len(picture.source)
    digits = len(picture.source) - picture.source.find(",") - 1
    return digits * 3 // 4 - picture.source[-2:].count("=")


def default_model(models: Sequence[ModelStatus]) -> str:
    """The first that sees, or may, as far as is known of one that has not been loaded; one that failed comes last.

    Raises `UnsupportedFeature` where none does.
    """
    seeing = [model for model in models if model.info is None or _sees_and_speaks(model.info)]
    if not seeing:
        raise UnsupportedFeature("No model here can see pictures. GET /v1/models lists what is served.", param="model")
    return min(seeing, key=lambda model: model.state == "failed").name


def _sees_and_speaks(info: EngineInfo) -> bool:
    return info.vision is not None and "messages" in info.work


def to_chat_request(question: Question, request_id: str) -> ChatRequest:
    content = (question.picture, Text(question.prompt))
    return ChatRequest(request_id, question.model, (Message("user", content),), _GREEDY)


def to_error_response(error: Exception, request_id: str) -> Response:
    message = errors.to_message(error, request_id, _WORDS)
    return json_response(Detail(detail=message), errors.to_status(error), errors.to_headers(error))


# --- routes ----------------------------------------------------------------------------------------------------------


def dialect(service: Service, settings: Settings) -> Dialect:
    api = _Analyze(Exchange(service, settings.http), settings)
    routes = [
        Route("/analyze", api.analyze, methods=["POST"]),
        Route("/analyze/upload", api.analyze_upload, methods=["POST"]),
        Route("/analyze/optimized", api.analyze_optimized, methods=["POST"]),
    ]
    return Dialect(routes, paths=("/analyze",), to_error_response=to_error_response, name="simple")


class _Analyze:
    def __init__(self, exchange: Exchange, settings: Settings) -> None:
        self._exchange = exchange
        wanted = settings.optimized
        self._recompression = Recompression(wanted.max_side, wanted.jpeg_quality)

    async def analyze(self, request: Request) -> Response:
        with _counted():
            return await self._answer(request, await self._read(request))

    async def analyze_upload(self, request: Request) -> Response:
        with _counted():
            with self._exchange.reading(request.scope):
                timeout_s(request)
                async with reading_form(request, self._exchange.limits) as form:
                    body = read(UploadBody, with_query(form.fields, request.query_params.multi_items()))
                    picture = ImageRef(await form.file("file").read(), "file")
                question = self._to_question(request, body.prompt, picture, body.model)
            return await self._answer(request, question)

    async def analyze_optimized(self, request: Request) -> Response:
        with _counted():
            question = await self._read(request)
            picture = replace(question.picture, recompression=self._recompression)
            return await self._answer(request, replace(question, picture=picture))

    async def _answer(self, request: Request, question: Question) -> Response:
        answer = await self._exchange.collect(request, to_chat_request(question, new_id("analysis-")))
        prepared, choice = answer.prepared, answer.choices[0]
        served: ServedPicture | UnsetType = UNSET
        if question.picture.recompression is not None:
            (jpeg,) = prepared.images
            served = ServedPicture(width=jpeg.width, height=jpeg.height, bytes=jpeg.num_bytes)
        headers = to_headers(prepared.engine, prepared.path)
        return json_response(Analysis(result=choice.text or choice.refusal, served=served), headers=headers)

    async def _read(self, request: Request) -> Question:
        with self._exchange.reading(request.scope):
            body = read(AnalyzeBody, await self._exchange.read_json(request))
            return self._to_question(request, body.prompt, to_picture(body.image_base64), body.model)

    def _to_question(self, request: Request, prompt: str, picture: ImageRef, model: str | None) -> Question:
        model = model or default_model(self._exchange.service.models())
        access.of(request.scope).facts["model"] = model
        metrics.VLM_IMAGE_SIZE_BYTES.observe(to_num_bytes(picture))
        return Question(prompt, picture, model)


@contextmanager
def _counted() -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        metrics.VLM_REQUESTS.inc()
        metrics.VLM_REQUEST_LATENCY_SECONDS.observe(time.perf_counter() - began)
