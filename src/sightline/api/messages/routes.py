"""Anthropic's messages: the request's side and the routes. `reply.py` has the way back.

to_chat_request   body   -> ChatRequest         pure
to_message        events -> a message           pure; an answer in one piece
Events            events -> events of a stream  pure; an answer as it comes
"""

from __future__ import annotations

import re
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api import access
from sightline.api.dialect import Dialect
from sightline.api.exchange import Exchange, new_id
from sightline.api.extension import to_headers
from sightline.api.fields import invalid, read
from sightline.api.messages.content import to_messages
from sightline.api.messages.models import VERSION
from sightline.api.messages.reply import FRAMING, Events, Head, to_error_response, to_message
from sightline.api.messages.schema import CountBody, InputTokens, MessagesBody
from sightline.api.wire import json_response
from sightline.config import HttpLimits, Settings
from sightline.errors import InvalidRequest
from sightline.service import Service
from sightline.types import ChatRequest, SamplingParams, Tool, ToolChoice

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_FIRST_VERSION = "2023-06-01"
"""In the header `VERSION`. What was before it streamed in another shape; what came after, to that of the SDK
2.12 (2026-10-21), only added to it."""

BodyT = TypeVar("BodyT", bound=CountBody)


def to_chat_request(body: CountBody, request_id: str, limits: HttpLimits) -> ChatRequest:
    """`request_id` must be unique: engines tell sequences apart by it.

    Raises `InvalidRequest` or `UnsupportedFeature`, with `param`, for what fields say only together.
    """
    tools, choice = _to_tools(body)
    return ChatRequest(
        request_id=request_id,
        model=body.model,
        messages=to_messages(body.system, body.messages, limits),
        sampling=_to_sampling(body) if isinstance(body, MessagesBody) else SamplingParams(),
        tools=tools,
        tool_choice=choice,
        response_format=body.output_config,
    )


def _to_sampling(body: MessagesBody) -> SamplingParams:
    return SamplingParams(
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        stop=body.stop_sequences,
    )


def _to_tools(body: CountBody) -> tuple[tuple[Tool, ...], ToolChoice]:
    choice = body.tool_choice or ToolChoice()
    names = {tool.name for tool in body.tools}
    if len(names) != len(body.tools):
        raise invalid("tools", "must not have two tools of the same name")
    if not body.tools:
        if choice.mode == "required":
            raise invalid("tool_choice", "needs 'tools'")
        return (), ToolChoice("none")
    if not names.issuperset(choice.names):
        raise invalid("tool_choice.name", f"names a tool that is not in 'tools': {choice.names[0]!r}")
    return body.tools, choice


# --- routes ----------------------------------------------------------------------------------------------------------


def dialect(service: Service, settings: Settings) -> Dialect:
    api = _Messages(Exchange(service, settings.http))
    routes = [
        Route("/v1/messages", api.create_message, methods=["POST"]),
        Route("/v1/messages/count_tokens", api.count_tokens, methods=["POST"]),
    ]
    return Dialect(routes, ("/v1/messages",), to_error_response, "anthropic")


class _Messages:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def create_message(self, request: Request) -> Response:
        body, chat = await self._read(request, MessagesBody)
        record = access.of(request.scope)
        record.facts.update(completion=chat.request_id, stream=body.stream)
        head = Head(chat.request_id, body.model, body.max_tokens, body.thinking)
        if body.stream:
            source, events = self._exchange.source(request, chat), Events(head, record.request_id)
            response: Response = self._exchange.stream(request, source, events, FRAMING)
        else:
            answer = await self._exchange.collect(request, chat)
            response = json_response(to_message(head, answer))
            response.headers.update(to_headers(answer.prepared.engine, answer.prepared.path))
        response.headers["request-id"] = record.request_id  # the name under which Anthropic's SDKs look for it
        return response

    async def count_tokens(self, request: Request) -> Response:
        _, chat = await self._read(request, CountBody)
        count, _ = await self._exchange.measure(request, chat)
        headers = {"request-id": access.of(request.scope).request_id}
        return json_response(InputTokens(input_tokens=count.prompt_tokens), headers=headers)

    async def _read(self, request: Request, schema: type[BodyT]) -> tuple[BodyT, ChatRequest]:
        with self._exchange.reading(request.scope):
            version = request.headers.get(VERSION, _FIRST_VERSION)
            if not _DATE.fullmatch(version) or version < _FIRST_VERSION:
                raise InvalidRequest(
                    f"The header {VERSION} must be a date from {_FIRST_VERSION} on, or be left out.",
                    param=VERSION,
                )
            body = read(schema, await self._exchange.read_json(request))
            return body, to_chat_request(body, new_id("msg_"), self._exchange.limits)
