"""OpenAI's completions: POST /v1/completions. Plain text that a model goes on with, without a chat template.

Each prompt is a request of its own to the service; their streams become one (`merged.py`).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api import access
from sightline.api.chat.reply import Head
from sightline.api.completions.reply import Chunks, Shape, to_completion
from sightline.api.completions.schema import MAX_CHOICES, CompletionBody
from sightline.api.dialect import Dialect
from sightline.api.exchange import Exchange, new_id
from sightline.api.extension import to_headers
from sightline.api.fields import invalid, read
from sightline.api.sampling import to_sampling
from sightline.api.wire import json_response
from sightline.config import HttpLimits, Settings
from sightline.errors import UnsupportedFeature
from sightline.service import Service
from sightline.types import ChatRequest

_FEW = 1000
"""Items of a prompt that take less time to check than a thread takes to be asked."""


def to_chat_requests(body: CompletionBody, request_id: str, limits: HttpLimits) -> tuple[ChatRequest, ...]:
    """One for each prompt.

    Raises `InvalidRequest` or `UnsupportedFeature`, with `param`, for what fields say only together.
    """
    if body.best_of is not None and body.best_of != body.n:
        if body.best_of < body.n:
            raise invalid("best_of", f"must not be below 'n', which is {body.n}")
        raise UnsupportedFeature("Choices are not made to be thrown away: leave 'best_of' out.", param="best_of")
    if body.echo and not all(isinstance(prompt, str) for prompt in body.prompt):
        raise UnsupportedFeature("'echo' repeats a text; the prompt is token ids.", param="echo")
    if body.echo and body.logprobs is not None:
        raise UnsupportedFeature(
            "'echo' with 'logprobs' would need those of the prompt's tokens, which are not computed.", param="echo"
        )
    if body.n * len(body.prompt) > MAX_CHOICES:
        raise invalid("prompt", f"must not be so many that with 'n' they have more than {MAX_CHOICES} choices")
    sampling = to_sampling(body, max_tokens=body.max_tokens, logprobs=body.logprobs, max_choices=limits.max_choices)
    return tuple(
        ChatRequest(
            request_id=request_id if len(body.prompt) == 1 else f"{request_id}-{index}",
            model=body.model,
            messages=(),
            sampling=sampling,
            priority=body.priority,
            prompt=prompt,
            n=body.n,
        )
        for index, prompt in enumerate(body.prompt)
    )


def _is_long(raw: dict[str, Any]) -> bool:
    prompt = raw.get("prompt")
    return isinstance(prompt, list) and (len(prompt) > _FEW or any(isinstance(p, list) for p in prompt))


# --- routes ----------------------------------------------------------------------------------------------------------


def dialect(service: Service, settings: Settings) -> Dialect:
    api = _Completions(Exchange(service, settings.http))
    return Dialect([Route("/v1/completions", api.create, methods=["POST"])])


class _Completions:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def create(self, request: Request) -> Response:
        body, shape, requests = await self._read(request)
        if not body.stream:
            completion = to_completion(shape, await self._exchange.collect(request, *requests))
            extension = completion.sightline
            assert extension, "a whole answer tells who gave it"
            return json_response(completion, headers=to_headers(extension.engine, extension.path))
        include_usage = body.stream_options is not None and body.stream_options.include_usage
        chunks = Chunks(shape, access.of(request.scope).request_id, include_usage=include_usage)
        return self._exchange.stream(request, self._exchange.source(request, *requests), chunks)

    async def _read(self, request: Request) -> tuple[CompletionBody, Shape, tuple[ChatRequest, ...]]:
        with self._exchange.reading(request.scope):
            raw = await self._exchange.read_json(request)
            # A million token ids are a second of work.
            body = await asyncio.to_thread(read, CompletionBody, raw) if _is_long(raw) else read(CompletionBody, raw)
            head = Head(new_id("cmpl-"), int(time.time()), body.model)
            access.of(request.scope).facts.update(completion=head.id, stream=body.stream)
            requests = to_chat_requests(body, head.id, self._exchange.limits)
        prefixes = tuple(p if body.echo and isinstance(p, str) else "" for p in body.prompt)
        fingerprint = self._exchange.fingerprint(body.model)
        head = head if fingerprint is None else replace(head, system_fingerprint=fingerprint)
        return body, Shape(head, prefixes, body.n, body.logprobs is not None), requests
