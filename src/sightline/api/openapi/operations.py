"""What each route is for, what it reads and what it answers: a row each, of which the OpenAPI document is made.

A route without a row fails a test, and so does a row without a route. After a change: `python docs/generate.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from sightline.api import admin, analyze, batches, embeddings, errors, extension, files, jobs, models, ovms
from sightline.api.chat import schema as chat_schema
from sightline.api.completions import schema as completions_schema
from sightline.api.fields import Schema
from sightline.api.messages import schema as messages
from sightline.api.ollama import models as ollama_models
from sightline.api.ollama import routes as ollama_api
from sightline.api.ollama import schema as ollama
from sightline.api.responses import compact as responses_compact
from sightline.api.responses import objects as responses_objects
from sightline.api.responses import schema as responses
from sightline.api.transcriptions import reply as transcriptions_reply
from sightline.api.transcriptions import routes as transcriptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    summary: str
    description: str = ""
    query: Mapping[str, Schema] = field(default_factory=dict)
    """Parameters of the query."""
    body: type[msgspec.Struct] | None = None
    """A JSON body, by the struct that `fields.read` makes of it."""
    form: type[msgspec.Struct] | None = None
    """The text fields of a form, likewise; `files` are beside them."""
    files: tuple[str, ...] = ()
    reply: Any = None
    """A type that msgspec writes, or a JSON schema; None: an empty body."""
    reply_type: str = "application/json"
    reply_description: str = "The answer."
    status: int = 200
    is_refused: bool = False
    """There only to say that it is not served."""
    events: Any = None
    """Where it can be streamed: a type of which each event, or each line, is one."""
    events_type: str = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Api:
    """Operations whose errors have one shape."""

    name: str
    description: str
    error: type[msgspec.Struct]
    error_name: str
    """Of the response, among the document's components."""
    operations: Mapping[str, Operation]
    """By method and path: `POST /v1/chat/completions`, `GET /v1/models/{id:path}`."""


_TEXT = {"type": "string"}
_STATUS = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
_VERSION = {"type": "object", "properties": {"version": {"type": "string"}}, "required": ["version"]}
_LIMIT: Schema = {"type": "integer", "minimum": 1, "maximum": 100}
_FILES: Schema = {"type": "integer", "minimum": 1, "maximum": files.MAX_LIST}
_INCLUDE: Schema = {"type": "array", "items": {"type": "string", "enum": list(responses.INCLUDABLE)}}
_FOR_ADMINS = "Where there are keys, for admin keys. Not on this listener where the server has one for its admins."
_ORDER: Schema = {"type": "string", "enum": ["asc", "desc"]}

OPENAI = Api(
    "OpenAI",
    "OpenAI's API. The object `sightline` in replies is ours: what became of each picture, where the time went.",
    errors.ErrorBody,
    "OpenAIError",
    {
        "POST /v1/chat/completions": Operation(
            summary="Answer a conversation, with pictures",
            body=chat_schema.ChatBody,
            reply=chat_schema.ChatCompletion,
            events=chat_schema.ChatCompletionChunk,
        ),
        "POST /v1/chat/completions/input_tokens": Operation(
            summary="What a conversation would cost, exactly, before anything runs",
            body=chat_schema.ChatBody,
            reply=extension.InputTokens,
        ),
        "POST /v1/responses": Operation(
            summary="Answer, and keep the answer",
            body=responses.ResponsesBody,
            reply=responses_objects.ResponseReply,
            events=responses_objects.ResponseEvent
            | responses_objects.ItemEvent
            | responses_objects.PartEvent
            | responses_objects.DeltaEvent
            | responses_objects.PartDoneEvent
            | responses_objects.ArgumentsEvent
            | responses_objects.ErrorEvent,
        ),
        "POST /v1/responses/input_tokens": Operation(
            summary="What a response's input would cost",
            body=responses.ResponsesBody,
            reply=extension.InputTokens,
        ),
        "POST /v1/responses/compact": Operation(
            summary="A conversation made short by the model",
            body=responses_compact.CompactBody,
            reply=responses_compact.Compacted,
        ),
        "GET /v1/responses/{id}": Operation(
            summary="A kept response, or the stream of one that was made in the background",
            query={"include": _INCLUDE, "stream": {"type": "boolean"}, "starting_after": {"type": "integer"}},
            reply=responses_objects.ResponseReply,
        ),
        "DELETE /v1/responses/{id}": Operation(summary="Forget a response", reply=responses_objects.Deleted),
        "POST /v1/responses/{id}/cancel": Operation(
            summary="End a response that runs in the background", reply=responses_objects.ResponseReply
        ),
        "GET /v1/responses/{id}/input_items": Operation(
            summary="What a kept response was asked",
            query={"include": _INCLUDE, "limit": _LIMIT, "order": _ORDER, "after": _TEXT},
            reply=responses_objects.ItemList,
        ),
        "POST /v1/completions": Operation(
            summary="Go on with plain text",
            body=completions_schema.CompletionBody,
            reply=completions_schema.Completion,
            events=completions_schema.Completion,
        ),
        "POST /v1/embeddings": Operation(
            summary="Texts as vectors",
            body=embeddings.EmbeddingsBody,
            reply=embeddings.EmbeddingList,
        ),
        "POST /v1/audio/transcriptions": Operation(
            summary="Write down what is said in a recording",
            description="As `response_format` says: an object, a `verbose_json` object, plain text or subtitles.",
            form=transcriptions.TranscriptionBody,
            files=("file",),
            reply=transcriptions_reply.Transcription | transcriptions_reply.VerboseTranscription,
            events=transcriptions_reply.TextDelta | transcriptions_reply.TextDone,
        ),
        "POST /v1/audio/translations": Operation(
            summary="Write down in English what is said in a recording",
            description="As `response_format` says: an object, a `verbose_json` object, plain text or subtitles.",
            form=transcriptions.TranslationBody,
            files=("file",),
            reply=transcriptions_reply.Transcription | transcriptions_reply.VerboseTranscription,
        ),
        "POST /v1/files": Operation(
            summary="Keep a file, to refer to it by its id",
            description="It may have `expires_after[anchor]`, which is `created_at`, and `expires_after[seconds]`.",
            form=files.FileBody,
            files=("file",),
            reply=files.FileObject,
        ),
        "GET /v1/files": Operation(
            summary="The files that are kept",
            query={"purpose": _TEXT, "limit": _FILES, "order": _ORDER, "after": _TEXT},
            reply=files.FileList,
        ),
        "GET /v1/files/{id}": Operation(summary="What is known of a file", reply=files.FileObject),
        "DELETE /v1/files/{id}": Operation(summary="Delete a file", reply=files.FileDeleted),
        "GET /v1/files/{id}/content": Operation(
            summary="A file's bytes", reply=_TEXT, reply_type="application/octet-stream"
        ),
        "POST /v1/batches": Operation(
            summary="Have a file of requests answered, while nobody waits",
            description="With an `Idempotency-Key`, the same request sent again within a day is the same batch.",
            body=batches.BatchBody,
            reply=batches.BatchObject,
        ),
        "GET /v1/batches": Operation(
            summary="The batches, newest first", query={"limit": _LIMIT, "after": _TEXT}, reply=batches.BatchList
        ),
        "GET /v1/batches/{id}": Operation(summary="How far a batch is", reply=batches.BatchObject),
        "GET /v1/batches/{id}/results": Operation(
            summary="The lines of a batch that are done so far",
            description="As they will stand in the output and the error file.",
            reply=_TEXT,
            reply_type=batches.JSON_LINES,
        ),
        "POST /v1/batches/{id}/cancel": Operation(
            summary="End a batch; what is done is kept", reply=batches.BatchObject
        ),
        "GET /v1/models": Operation(summary="Which models are served, and in which state", reply=models.ModelList),
        "GET /v1/models/{id:path}": Operation(
            summary="One model", description="Its id may hold slashes.", reply=models.Model
        ),
    },
)

ANTHROPIC = Api(
    "Anthropic",
    "Anthropic's messages.",
    messages.ErrorReply,
    "AnthropicError",
    {
        "POST /v1/messages": Operation(
            summary="Answer a conversation, with pictures",
            body=messages.MessagesBody,
            reply=messages.MessageReply,
            events=messages.MessageStart
            | messages.BlockStart
            | messages.BlockDelta
            | messages.BlockStop
            | messages.MessageDelta
            | messages.MessageStop
            | messages.ErrorReply,
        ),
        "POST /v1/messages/count_tokens": Operation(
            summary="What a conversation would cost", body=messages.CountBody, reply=messages.InputTokens
        ),
    },
)

OLLAMA = Api(
    "Ollama",
    "Ollama's own API. Streams are lines of JSON, and the default.",
    ollama.ErrorReply,
    "OllamaError",
    {
        "POST /api/chat": Operation(
            summary="Answer a conversation, with pictures",
            body=ollama.ChatBody,
            reply=ollama.Line,
            events=ollama.Line,
            events_type="application/x-ndjson",
        ),
        "POST /api/generate": Operation(
            summary="Answer a prompt, with pictures",
            body=ollama.GenerateBody,
            reply=ollama.Line,
            events=ollama.Line,
            events_type="application/x-ndjson",
        ),
        "POST /api/embed": Operation(summary="Vectors of texts", body=ollama.EmbedBody, reply=ollama.EmbedReply),
        "POST /api/embeddings": Operation(
            summary="The vector of a text, as before /api/embed",
            body=ollama.EmbeddingsBody,
            reply=ollama.EmbeddingsReply,
        ),
        "GET /api/tags": Operation(summary="Which models are served", reply=ollama_models.Models),
        "GET /api/ps": Operation(summary="Which models are loaded", reply=ollama_models.Models),
        "POST /api/show": Operation(summary="One model", body=ollama.ShowBody, reply=ollama_models.Shown),
        "GET /api/version": Operation(summary="The version of Ollama's API that is spoken", reply=_VERSION),
        **{
            f"{method} {path}": Operation(summary="Not served: models are the operator's", is_refused=True)
            for path in ollama_api.REFUSED
            for method in ("DELETE", "POST")
        },
        "GET /": Operation(summary="Whether the server answers", reply=_TEXT, reply_type="text/plain"),
    },
)

OVMS = Api(
    "OVMS",
    "OpenVINO Model Server's API: OpenAI's under `/v3`, the states of models, and KServe's probes.",
    ovms.ErrorText,
    "OVMSError",
    {
        "GET /v1/config": Operation(
            summary="Every model with its state",
            description="Poll it until the model is AVAILABLE.",
            reply=dict[str, ovms.ConfigStatus],
        ),
        "GET /v2": Operation(summary="The server, as KServe tells it", reply=ovms.ServerMetadata),
        "GET /v2/health/live": Operation(summary="Whether the server answers"),
        "GET /v2/health/ready": Operation(summary="Whether every model can be asked"),
        "GET /v2/models/{name:path}": Operation(summary="A model, as KServe tells it", reply=ovms.ModelMetadata),
        "GET /v2/models/{name:path}/ready": Operation(summary="Whether a model can be asked"),
    },
)

SIMPLE = Api(
    "The simple service",
    "A prompt and a picture, and a text back.",
    analyze.Detail,
    "SimpleError",
    {
        "POST /analyze": Operation(
            summary="Answer a prompt about a picture in base64", body=analyze.AnalyzeBody, reply=analyze.Analysis
        ),
        "POST /analyze/optimized": Operation(
            summary="The same about a smaller JPEG of the picture",
            description="The model sees what `served` tells of.",
            body=analyze.AnalyzeBody,
            reply=analyze.Analysis,
        ),
        "POST /analyze/async": Operation(
            summary="The same, while nobody waits",
            description="With an `Idempotency-Key`, the same request sent again within a day is the same job.",
            body=analyze.AnalyzeBody,
            reply=jobs.Job,
            status=202,
        ),
        "GET /job/{id}": Operation(
            summary="What such a request has come to", reply=jobs.Pending | jobs.Complete | jobs.Failed
        ),
        "POST /analyze/upload": Operation(
            summary="The same about a file in a form",
            description="`prompt` and `model` are fields of the form, or stand in the query.",
            query={"prompt": _TEXT, "model": _TEXT},
            form=analyze.UploadBody,
            files=("file",),
            reply=analyze.Analysis,
        ),
    },
)

SERVER = Api(
    "The server",
    "Probes, metrics and this document.",
    errors.ErrorBody,
    "ServerError",
    {
        "GET /health": Operation(summary="Whether the server answers", reply=_STATUS),
        "GET /ready": Operation(summary="Whether every model can be asked (503 where not)", reply=_STATUS),
        "GET /metrics": Operation(summary="Metrics, for Prometheus", reply=_TEXT, reply_type="text/plain"),
        "GET /admin/status": Operation(
            summary="How the server and each model does", reply=admin.ServerStatus, description=_FOR_ADMINS
        ),
        "GET /admin/keys": Operation(
            summary="The API keys, and what they have used today", reply=admin.AdminKeys, description=_FOR_ADMINS
        ),
        "POST /admin/models/{id:path}/load": Operation(
            summary="Load a model; answered when it is ready", reply=admin.ModelTold, description=_FOR_ADMINS
        ),
        "POST /admin/models/{id:path}/unload": Operation(
            summary="Free what a model holds, until the next request for it",
            reply=admin.ModelTold,
            description=_FOR_ADMINS,
        ),
        "GET /openapi.json": Operation(summary="This document", reply={"type": "object"}),
        "GET /docs": Operation(summary="This document, for people", reply=_TEXT, reply_type="text/html"),
    },
)

APIS = (OPENAI, ANTHROPIC, OLLAMA, OVMS, SIMPLE, SERVER)
