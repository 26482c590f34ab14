"""OpenAI's chat completions: the request's side and the two routes. `reply.py` has the way back.

    to_chat_request   body   -> ChatRequest              pure
    to_completion     events -> ChatCompletion           pure; an answer in one piece
    Chunks            events -> frames of the stream     pure; an answer as it comes

What lies between them is the service's work.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api import access
from sightline.api.chat.reply import Chunks, Head, to_completion
from sightline.api.chat.schema import REFUSED_PREFIX, ChatBody
from sightline.api.content import PictureDefaults, to_messages
from sightline.api.exchange import Exchange, new_id
from sightline.api.extension import to_headers, to_input_tokens
from sightline.api.fields import invalid, read
from sightline.api.sampling import to_sampling
from sightline.api.tool_choice import choose
from sightline.api.wire import json_response
from sightline.config import HttpLimits, Settings
from sightline.errors import UnsupportedFeature
from sightline.service import Service
from sightline.types import ChatRequest, ToolChoice


def read_chat_body(raw: dict[str, Any]) -> ChatBody:
    """The body's fields, each checked by itself. Raises `InvalidRequest` or `UnsupportedFeature`."""
    for name, value in raw.items():
        if name.startswith(REFUSED_PREFIX) and value is not None:
            shown = name[:64]
            raise UnsupportedFeature(f"'{shown}' is not supported: use 'response_format'.", param=shown)
    return read(ChatBody, raw)


def to_chat_request(body: ChatBody, request_id: str, limits: HttpLimits) -> ChatRequest:
    """`request_id` must be unique: engines tell sequences apart by it.

    Raises `InvalidRequest`, `UnsupportedFeature` or `ImageForbidden`, with `param`, for what fields say only together.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "needs 'logprobs' to be true")
    tools, choice = choose(body.tools, body.tool_choice or ToolChoice(), parallel=body.parallel_tool_calls)
    sampling = to_sampling(
        body,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        max_choices=limits.max_choices,
    )
    return ChatRequest(
        request_id=request_id,
        model=body.model,
        messages=to_messages(body.messages, limits, PictureDefaults(body.max_pixels, body.min_pixels)),
        sampling=sampling,
        tools=tools,
        tool_choice=choice,
        response_format=body.response_format,
        priority=body.priority,
        n=body.n,
    )


# --- routes ----------------------------------------------------------------------------------------------------------


def routes(service: Service, settings: Settings, *, chunks: type[Chunks] = Chunks) -> list[Route]:
    """`chunks`: how a stream is written, where a dialect with these routes has it otherwise."""
    api = _Chat(Exchange(service, settings.http), chunks)
    return [
        Route("/v1/chat/completions", api.create_chat_completion, methods=["POST"]),
        Route("/v1/chat/completions/input_tokens", api.count_input_tokens, methods=["POST"]),
    ]


class _Chat:
    def __init__(self, exchange: Exchange, chunks: type[Chunks]) -> None:
        self._exchange = exchange
        self._chunks = chunks

    async def create_chat_completion(self, request: Request) -> Response:
        head, body, chat = await self._read(request)
        if not body.stream:
            answer = await self._exchange.collect(request, chat)
            completion = to_completion(self._signed(head), answer, logprobs=body.logprobs)
            headers = to_headers(completion.sightline.engine, completion.sightline.path)
            return json_response(completion, headers=headers)
        chunks = self._chunks(
            self._signed(head),
            access.of(request.scope).request_id,
            n=chat.n,
            include_usage=body.stream_options is not None and body.stream_options.include_usage,
            logprobs=body.logprobs,
        )
        return self._exchange.stream(request, self._exchange.source(request, chat), chunks)

    async def count_input_tokens(self, request: Request) -> Response:
        _, _, chat = await self._read(request)
        count, images = await self._exchange.measure(request, chat)
        return json_response(to_input_tokens("input_tokens", count, images))

    async def _read(self, request: Request) -> tuple[Head, ChatBody, ChatRequest]:
        with self._exchange.reading(request.scope):
            body = read_chat_body(await self._exchange.read_json(request))
            head = Head(new_id("chatcmpl-"), int(time.time()), body.model)
            access.of(request.scope).facts.update(completion=head.id, stream=body.stream)
            return head, body, to_chat_request(body, head.id, self._exchange.limits)

    def _signed(self, head: Head) -> Head:
        fingerprint = self._exchange.fingerprint(head.model)
        return head if fingerprint is None else replace(head, system_fingerprint=fingerprint)
