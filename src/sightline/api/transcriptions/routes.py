"""OpenAI's audio: POST /v1/audio/transcriptions and /v1/audio/translations.

Source: openai-openapi 2.3.0, `CreateTranscriptionRequest`, `CreateTranslationRequest`. What it has for other kinds of
models (speakers told apart, detection of speech by parameters of one's own) is refused.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api import access
from sightline.api.dialect import Dialect
from sightline.api.disconnect import unless_disconnected
from sightline.api.exchange import Exchange, new_id
from sightline.api.extension import to_headers
from sightline.api.fields import array, boolean, described, invalid, number, one_of, read, refused, string
from sightline.api.forms import Form, from_text, reading_form
from sightline.api.sse import EventStream
from sightline.api.transcriptions.reply import (
    WRITERS,
    Deltas,
    Format,
    Transcript,
    to_json,
    to_transcript,
    to_translation,
    to_verbose,
)
from sightline.api.wire import json_response
from sightline.audio.languages import LANGUAGES, to_code
from sightline.config import Settings
from sightline.errors import UnsupportedFeature
from sightline.service import Service
from sightline.speech import Listening, SpeechItem
from sightline.telling import told
from sightline.types import AudioRef, SpeechRequest

MAX_PROMPT = 8192
"""Characters; a model keeps the last of its tokens that it has room for."""

_format = one_of("json", "text", "srt", "verbose_json", "vtt")


@described({"type": "string", "description": f"One of {', '.join(LANGUAGES)}, or its English name."})
def _language(value: Any, at: str) -> str:
    if (code := to_code(string(max_length=64)(value, at))) is None:
        raise invalid(at, f"must be an ISO 639-1 code such as 'en', or a language's English name, not {value[:64]!r}")
    return code


@described({"type": "string", "enum": ["auto"]})
def _chunking(value: Any, at: str) -> str:
    if value != "auto":
        raise UnsupportedFeature(f"'{at}' is 'auto' here: a recording is cut where its speech pauses.", param=at)
    return "auto"


class TranslationBody(msgspec.Struct, frozen=True, kw_only=True):
    model: Annotated[str, string(min_length=1)]
    prompt: Annotated[str, string(max_length=MAX_PROMPT)] = ""
    """What was said before, or names and a style to go by."""
    response_format: Annotated[Format, _format] = "json"
    temperature: Annotated[float, from_text(number(0, 1))] = 0.0
    """0: greedy, and warmer where that fails by the model's own measures."""


class TranscriptionBody(TranslationBody, frozen=True, kw_only=True):
    language: Annotated[str | None, _language] = None
    """What is spoken; without it the model finds out."""
    timestamp_granularities: Annotated[
        tuple[Literal["word", "segment"], ...], array(one_of("word", "segment"), min_length=1, max_length=2)
    ] = ("segment",)
    """With `verbose_json`. Sent as `timestamp_granularities[]`."""
    include: Annotated[tuple[Literal["logprobs"], ...], array(one_of("logprobs"), max_length=1)] = ()
    """With `json`. Sent as `include[]`."""
    stream: Annotated[bool, from_text(boolean)] = False
    chunking_strategy: Annotated[str, _chunking] = "auto"
    known_speaker_names: Annotated[None, refused("speakers are not told apart.")] = None
    known_speaker_references: Annotated[None, refused("speakers are not told apart.")] = None


def read_transcription(fields: dict[str, Any]) -> TranscriptionBody:
    """The form's fields, each by itself and with the others. Raises `InvalidRequest` or `UnsupportedFeature`."""
    body = read(TranscriptionBody, fields)
    if "timestamp_granularities" in fields and body.response_format != "verbose_json":
        raise invalid("timestamp_granularities", "needs response_format 'verbose_json'")
    if body.include and body.response_format != "json":
        raise invalid("include", "needs response_format 'json'")
    if body.stream and body.response_format not in ("json", "text"):
        raise invalid("stream", f"needs response_format 'json' or 'text', not {body.response_format!r}")
    return body


def to_speech_request(body: TranslationBody, file: bytes) -> SpeechRequest:
    spoken = body if isinstance(body, TranscriptionBody) else None
    return SpeechRequest(
        request_id=new_id("transcript-"),
        model=body.model,
        audio=AudioRef(file, "file"),
        task="translate" if spoken is None else "transcribe",
        language=None if spoken is None else spoken.language,
        prompt=body.prompt,
        temperature=body.temperature,
        word_times=spoken is not None and "word" in spoken.timestamp_granularities,
        logprobs=spoken is not None and "logprobs" in spoken.include,
    )


def to_response(body: TranslationBody, transcript: Transcript) -> Response:
    headers = to_headers(transcript.listening.engine, ())
    if body.response_format in WRITERS:
        write, media_type = WRITERS[body.response_format]
        return Response(write(transcript), media_type=media_type, headers=headers)
    if isinstance(body, TranscriptionBody):
        if body.response_format == "verbose_json":
            return json_response(to_verbose(transcript, "transcribe", body.timestamp_granularities), headers=headers)
        return json_response(to_json(transcript, logprobs="logprobs" in body.include), headers=headers)
    if body.response_format == "verbose_json":
        return json_response(to_verbose(transcript, "translate", ("segment",)), headers=headers)
    return json_response(to_translation(transcript), headers=headers)


# --- routes ----------------------------------------------------------------------------------------------------------


def dialect(service: Service, settings: Settings) -> Dialect:
    api = _Audio(Exchange(service, settings.http))
    return Dialect(
        [
            Route("/v1/audio/transcriptions", api.transcribe, methods=["POST"]),
            Route("/v1/audio/translations", api.translate, methods=["POST"]),
        ]
    )


class _Audio:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def transcribe(self, request: Request) -> Response:
        with self._exchange.reading(request.scope):
            async with reading_form(request, self._exchange.limits) as form:
                body, file = read_transcription(_noted(request, form)), await form.file("file").read()
        items = self._exchange.service.transcribe(to_speech_request(body, file))
        if body.stream:
            return self._stream(request, items, logprobs="logprobs" in body.include)
        return to_response(body, await self._collect(request, items))

    async def translate(self, request: Request) -> Response:
        with self._exchange.reading(request.scope):
            async with reading_form(request, self._exchange.limits) as form:
                body, file = read(TranslationBody, _noted(request, form)), await form.file("file").read()
        items = self._exchange.service.transcribe(to_speech_request(body, file))
        return to_response(body, await self._collect(request, items))

    async def _collect(self, request: Request, items: AsyncGenerator[SpeechItem, None]) -> Transcript:
        transcript = to_transcript(await unless_disconnected(request.scope, request.receive, _all(items)))
        _tell(request, transcript.listening)
        return transcript

    def _stream(self, request: Request, items: AsyncGenerator[SpeechItem, None], *, logprobs: bool) -> Response:
        def begin(first: SpeechItem) -> Mapping[str, str]:
            assert isinstance(first, Listening), "the service yields Listening first"
            _tell(request, first)
            return to_headers(first.engine, ())

        deltas = Deltas(access.of(request.scope).request_id, logprobs=logprobs)
        return EventStream(told(items), deltas, keepalive_s=self._exchange.limits.keepalive_s, begin=begin)


def _noted(request: Request, form: Form) -> dict[str, Any]:
    """The form's fields. The log will know the model."""
    if isinstance(model := form.fields.get("model"), str):
        access.of(request.scope).facts["model"] = model
    return dict(form.fields)


def _tell(request: Request, listening: Listening) -> None:
    access.of(request.scope).facts.update(
        engine=listening.engine, audio_s=round(listening.duration_s, 3), decode_s=round(listening.decode_s, 6)
    )


async def _all(items: AsyncGenerator[SpeechItem, None]) -> list[SpeechItem]:
    async with aclosing(items):
        return [item async for item in items]
