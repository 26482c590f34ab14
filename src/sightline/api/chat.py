"""OpenAI's chat completions: the request's side and the two routes. `chat_reply.py` has the way back.

    to_chat_request   body   -> ChatRequest              pure
    to_completion     events -> ChatCompletion           pure; an answer in one piece
    Chunks            events -> frames of the stream     pure; an answer as it comes

What lies between them is the service's work.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline import metrics
from sightline.api import access
from sightline.api.chat_reply import Chunks, Head, to_completion, to_input_tokens
from sightline.api.chat_schema import REFUSED_PREFIX, ChatBody
from sightline.api.content import PictureDefaults, to_messages
from sightline.api.disconnect import ClientDisconnected, unless_disconnected
from sightline.api.extension import to_headers
from sightline.api.fields import invalid, read
from sightline.api.sse import EventStream, first_event
from sightline.api.wire import json_response, read_json
from sightline.config import HttpLimits, Settings
from sightline.errors import UnsupportedFeature
from sightline.service import Item, Prepared, Service
from sightline.types import ChatRequest, SamplingParams, Tool, ToolChoice


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
    if body.n > limits.max_choices:
        raise invalid("n", f"must be between 1 and {limits.max_choices}, not {body.n}")
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs", "needs 'logprobs' to be true")
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "is only for requests with 'stream' set to true")
    max_tokens = body.max_completion_tokens or body.max_tokens
    if max_tokens is not None and body.min_tokens > max_tokens:
        raise invalid("min_tokens", f"must not be above the bound of {max_tokens} tokens for the whole answer")
    tools, choice = _to_tools(body)
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=max(0, body.top_k),
        min_p=body.min_p,
        seed=body.seed,
        stop=body.stop,
        stop_token_ids=body.stop_token_ids,
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        repetition_penalty=body.repetition_penalty,
        logit_bias=body.logit_bias,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
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


def _to_tools(body: ChatBody) -> tuple[tuple[Tool, ...], ToolChoice]:
    choice = body.tool_choice
    names = {tool.name for tool in body.tools}
    if len(names) != len(body.tools):
        raise invalid("tools", "must not have two functions of the same name")
    if not body.tools:
        if choice is not None and choice.mode == "required":
            raise invalid("tool_choice", "needs 'tools'")
        return (), ToolChoice("none")
    if not body.parallel_tool_calls:
        raise UnsupportedFeature("Calls cannot be held to one at a time.", param="parallel_tool_calls")
    choice = choice or ToolChoice("auto")
    if unknown := sorted(set(choice.names) - names):
        raise invalid("tool_choice", f"names a function that is not in 'tools': {unknown[0]!r}")
    if choice.mode == "auto" and choice.names:
        return tuple(t for t in body.tools if t.name in choice.names), ToolChoice("auto")
    return body.tools, choice


# --- routes ----------------------------------------------------------------------------------------------------------


def routes(service: Service, settings: Settings) -> list[Route]:
    api = _Chat(service, settings.http)
    return [
        Route("/v1/chat/completions", api.create_chat_completion, methods=["POST"]),
        Route("/v1/chat/completions/input_tokens", api.count_input_tokens, methods=["POST"]),
    ]


class _Chat:
    def __init__(self, service: Service, limits: HttpLimits) -> None:
        self._service = service
        self._limits = limits

    async def create_chat_completion(self, request: Request) -> Response:
        record = access.of(request.scope)
        head, body, chat = await self._read(request)
        items = self._service.generate(chat)
        if not body.stream:
            answer = await unless_disconnected(request.receive, _collect(items))
            completion = to_completion(self._signed(head), answer, n=chat.n, logprobs=body.logprobs)
            record.facts.update(access.to_facts(answer))
            headers = to_headers(completion.sightline.engine, completion.sightline.path)
            return json_response(completion, headers=headers)
        first = await first_event(request.receive, items)
        assert isinstance(first, Prepared), "the service yields Prepared first"
        record.facts["ttft_s"] = record.elapsed_s()
        chunks = Chunks(
            self._signed(head),
            record.request_id,
            n=chat.n,
            include_usage=body.stream_options is not None and body.stream_options.include_usage,
            logprobs=body.logprobs,
        )
        record.at_end = lambda: access.to_facts([first, *chunks.finished])
        headers = to_headers(first.engine, first.path)
        return EventStream(first, items, chunks, keepalive_s=self._limits.keepalive_s, headers=headers)

    async def count_input_tokens(self, request: Request) -> Response:
        _, _, chat = await self._read(request)
        count, images = await unless_disconnected(request.receive, self._service.measure(chat))
        access.of(request.scope).facts.update(prompt_tokens=count.prompt_tokens, images=len(images))
        return json_response(to_input_tokens(count, images))

    async def _read(self, request: Request) -> tuple[Head, ChatBody, ChatRequest]:
        """Counts what it refuses, as the service counts what reaches it."""
        record = access.of(request.scope)
        try:
            return await self._read_uncounted(request, record)
        except Exception as error:
            name = record.facts.get("model")
            is_served = any(status.name == name for status in self._service.models())
            metrics.REQUESTS.labels(name if is_served else "other", _outcome(error)).inc()
            raise

    async def _read_uncounted(self, request: Request, record: access.Record) -> tuple[Head, ChatBody, ChatRequest]:
        raw = await read_json(request, self._limits)
        if isinstance(model := raw.get("model"), str):
            record.facts["model"] = model
        body = read_chat_body(raw)
        # Not the request's id, which a client may choose and send twice.
        head = Head(f"chatcmpl-{os.urandom(12).hex()}", int(time.time()), body.model)
        record.facts.update(completion=head.id, stream=body.stream)
        return head, body, to_chat_request(body, head.id, self._limits)

    def _signed(self, head: Head) -> Head:
        """With the fingerprint of the weights that answer, known once the engine runs."""
        infos = (status.info for status in self._service.models() if status.name == head.model)
        digest = next((info.weights_digest for info in infos if info is not None), None)
        if digest is None:
            return head
        return replace(head, system_fingerprint=f"fp_{digest.removeprefix('sha256:')[:12]}")


def _outcome(error: Exception) -> str:
    """The `outcome` label of a request that never reached the service."""
    match error:
        case ClientDisconnected():
            return "cancelled"
        case HTTPException():
            return HTTPException.__name__
        case _:
            return metrics.outcome(error)


async def _collect(items: AsyncGenerator[Item, None]) -> list[Item]:
    async with aclosing(items):
        return [item async for item in items]
