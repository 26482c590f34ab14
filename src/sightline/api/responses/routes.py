"""The routes, and what is kept between requests.

What lies between request and events is the service's work.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api import access, caller, errors
from sightline.api.dialect import Dialect
from sightline.api.disconnect import unless_disconnected
from sightline.api.exchange import Exchange, new_id, timeout_s
from sightline.api.extension import to_headers, to_input_tokens
from sightline.api.fields import array, integer, invalid, missing, one_of, read
from sightline.api.responses import compact as responses_compact
from sightline.api.responses.answer import Answer, Frames, in_own_words
from sightline.api.responses.background import Background, Replay, Run
from sightline.api.responses.compact import CompactBody, to_compacted
from sightline.api.responses.items import Item, Placed, read_items
from sightline.api.responses.objects import Deleted, ItemList
from sightline.api.responses.request import fit, refuse_contradictions, to_chat_request, to_response
from sightline.api.responses.schema import IMAGE_URLS, INCLUDABLE, ResponsesBody, read_responses_body
from sightline.api.responses.store import (
    MemoryStore,
    ResponseStore,
    StoredResponse,
    is_finished,
    to_input,
    to_output,
    to_record,
    with_response,
    without_urls,
)
from sightline.api.shared import ALONE, Shared
from sightline.api.sse import EventStream
from sightline.api.wire import json_response
from sightline.config import Settings
from sightline.errors import InvalidRequest, ModelNotFound, ObjectNotFound
from sightline.items import Item as ServiceItem
from sightline.items import Prepared
from sightline.service import Service
from sightline.telling import Tell, taken, told
from sightline.types import ChatRequest

PATH = "/v1/responses"


def dialect(service: Service, settings: Settings, shared: Shared = ALONE) -> Dialect:
    return Dialect(routes(service, settings, shared), (PATH,), _to_error_response)


def routes(service: Service, settings: Settings, shared: Shared) -> list[Route]:
    store = shared.responses or MemoryStore(settings.responses)
    api = _Responses(Exchange(service, settings.http), store, shared.forward)
    one = PATH + "/{id}"
    return [
        Route(PATH, api.create_response, methods=["POST"]),
        Route(f"{PATH}/input_tokens", api.count_input_tokens, methods=["POST"]),
        Route(f"{PATH}/compact", api.compact_conversation, methods=["POST"]),
        Route(one, api.retrieve_response, methods=["GET"]),
        Route(one, api.delete_response, methods=["DELETE"]),
        Route(f"{one}/cancel", api.cancel_response, methods=["POST"]),
        Route(f"{one}/input_items", api.list_input_items, methods=["GET"]),
    ]


def _to_error_response(error: Exception, request_id: str) -> Response:
    return errors.to_response(in_own_words(error), request_id)


def _tenant(request: Request) -> str:
    return caller.of(request.scope).tenant


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request for a response, read and checked."""

    body: ResponsesBody
    chat: ChatRequest
    answer: Answer
    items: list[Item]
    """Those that came with it."""
    tenant: str
    raw: dict[str, Any]
    """The request's body."""


class _Responses:
    def __init__(
        self, exchange: Exchange, store: ResponseStore, forward: Callable[[Request, bytes], Response] | None
    ) -> None:
        """`forward`: as `Shared.forward`."""
        self._exchange = exchange
        self._store = store
        self._forward = forward
        self._background = Background(store)

    # --- to get one -------------------------------------------------------------------------------------------------

    async def create_response(self, request: Request) -> Response:
        asked = await self._read(request)
        if asked.body.background:
            if self._forward is not None:
                return self._forward(request, await asyncio.to_thread(msgspec.json.encode, asked.raw))
            return await self._begin_in_background(request, asked)
        chat = asked.chat
        if asked.body.truncation == "auto":
            chat = await unless_disconnected(request.scope, request.receive, self._fit(asked))
        if asked.body.stream:
            return self._stream(request, asked, chat)
        items = await self._exchange.items(request, chat)
        for item in items:
            asked.answer.feed(item)
        await self._keep(asked)
        prepared = items[0]
        assert isinstance(prepared, Prepared), "the service tells Prepared first"
        return json_response(asked.answer.response, headers=to_headers(prepared.engine, prepared.path))

    def _stream(self, request: Request, asked: _Asked, chat: ChatRequest) -> Response:
        """The response is kept before its last event is sent, so that whoever has read it can go on from it."""
        frames = Frames(asked.answer)

        async def ending(error: Exception | None) -> None:
            if error is not None:
                frames.fail(error)
            await self._keep(asked)

        return self._exchange.stream(request, self._exchange.source(request, chat), frames, ending=ending)

    async def _read(self, request: Request) -> _Asked:
        with self._exchange.reading(request.scope):
            raw = await self._exchange.read_json(request)
            body = read_responses_body(raw)
            refuse_contradictions(body)
            tenant = _tenant(request)
            before, items = await self._read_items(body, tenant)
            response_id = new_id("resp_")
            access.of(request.scope).facts.update(response=response_id, stream=body.stream, background=body.background)
            chat = to_chat_request(body, [*before, *items], response_id, tenant)
            answer = Answer(
                to_response(body, response_id, int(time.time())),
                access.of(request.scope).request_id,
                logprobs=body.wants_logprobs,
            )
            return _Asked(body, chat, answer, [placed.item for placed in items], tenant, raw)

    async def _read_items(self, body: ResponsesBody | CompactBody, tenant: str) -> tuple[list[Placed], list[Placed]]:
        """What came before, and what is new."""
        before = await self._before(body.previous_response_id, tenant)
        items = read_items(body.input, self._exchange.limits, before=len(before))
        return before, [await self._referred(item, tenant) for item in items]

    async def _fit(self, asked: _Asked) -> ChatRequest:
        chat, asked.answer.turns_dropped = await fit(asked.chat, self._exchange.service.measure)
        return chat

    async def count_input_tokens(self, request: Request) -> Response:
        asked = await self._read(request)
        count, images = await self._exchange.measure(request, asked.chat)
        return json_response(to_input_tokens("response.input_tokens", count, images))

    async def compact_conversation(self, request: Request) -> Response:
        response_id, tenant = new_id("resp_"), _tenant(request)
        with self._exchange.reading(request.scope):
            body = read(CompactBody, await self._exchange.read_json(request))
            access.of(request.scope).facts["response"] = response_id
            before, items = await self._read_items(body, tenant)
            if not (conversation := [*before, *items]):
                raise missing("input")
            chat = responses_compact.to_chat_request(body, conversation, response_id, tenant)
        answer = await self._exchange.collect(request, chat)
        compacted = to_compacted(response_id, int(time.time()), conversation, answer)
        return json_response(compacted, headers=to_headers(answer.prepared.engine, answer.prepared.path))

    # --- in the background ------------------------------------------------------------------------------------------

    async def _begin_in_background(self, request: Request, asked: _Asked) -> Response:
        if all(status.name != asked.body.model for status in self._exchange.service.models()):
            with self._exchange.reading(request.scope):
                self._exchange.service.refuse_foreign(asked.body.model)
                raise ModelNotFound(
                    f"The model {asked.body.model[:128]!r} does not exist. GET /v1/models lists what is served."
                )
        run = Run(asked.answer, await _to_record(asked))
        await self._background.start(run, lambda: self._generate(asked, timeout_s(request)))
        if not asked.body.stream:
            return json_response(run.answer.response)
        return self._follow(run.follow(-1))

    async def _generate(self, asked: _Asked, timeout_s: float | None) -> AsyncGenerator[ServiceItem, None]:
        chat = await self._fit(asked) if asked.body.truncation == "auto" else asked.chat
        async with aclosing(self._exchange.service.generate(chat, timeout_s=timeout_s)) as items:
            async for item in items:
                yield item

    def _follow(self, frames: AsyncGenerator[bytes, None]) -> Response:
        async def source(tell: Tell[bytes]) -> None:
            await taken(tell(b""))  # it has begun, though there may be nothing to tell yet
            await told(frames)(tell)

        return EventStream(source, Replay(), keepalive_s=self._exchange.limits.keepalive_s)

    # --- what is kept -----------------------------------------------------------------------------------------------

    async def _keep(self, asked: _Asked) -> None:
        if asked.body.store:
            await self._store.put(with_response(await _to_record(asked), asked.answer.response))

    async def _before(self, response_id: str | None, tenant: str) -> list[Placed]:
        """The conversation that ends with a stored response: every item, with its pictures."""
        if response_id is None:
            return []
        try:
            items = await self._conversation(response_id, tenant)
        except ObjectNotFound as error:
            raise ObjectNotFound(
                error.message, param="previous_response_id", code="previous_response_not_found"
            ) from None
        return [Placed(item, f"previous_response_id[{index}]") for index, item in enumerate(items)]

    async def _conversation(self, response_id: str, tenant: str) -> list[Item]:
        chain: list[StoredResponse] = []
        before: str | None = response_id
        while before is not None:
            chain.append(await self._store.get(before, tenant))
            before = chain[-1].previous_id
        if not is_finished(chain[0]):
            raise InvalidRequest(
                "The response that 'previous_response_id' names is not finished. Ask for it again when it is.",
                param="previous_response_id",
            )
        return [item for stored in reversed(chain) for item in (*to_input(stored), *to_output(stored))]

    async def _referred(self, placed: Placed, tenant: str) -> Placed:
        """The item itself, where one only refers to it."""
        if placed.item["type"] != "item_reference":
            return placed
        item_id = placed.item["id"]
        try:
            stored = await self._store.holder_of(item_id, tenant)
        except ObjectNotFound as error:
            raise ObjectNotFound(error.message, param=f"{placed.at}.id") from None
        items = (*to_input(stored), *to_output(stored))
        return Placed(next(item for item in items if item["id"] == item_id), placed.at)

    async def retrieve_response(self, request: Request) -> Response:
        if self._forward is not None:
            return self._forward(request, b"")
        _read_include(request)
        streams, starting_after = _read_stream(request)
        response_id, tenant = request.path_params["id"], _tenant(request)
        run = self._background.find(response_id, tenant)
        if run is not None:
            if streams:
                return self._follow(run.follow(starting_after))
            return json_response(run.answer.response)
        stored = await self._store.get(response_id, tenant)
        if not streams:
            return Response(stored.response, media_type="application/json")
        if not stored.events:
            raise InvalidRequest(
                "Only a response that was made with 'background' set to true can be streamed again.", param="stream"
            )
        return self._follow(_replay(stored.events[starting_after + 1 :]))

    async def delete_response(self, request: Request) -> Response:
        if self._forward is not None:
            return self._forward(request, b"")
        response_id, tenant = request.path_params["id"], _tenant(request)
        if (run := self._background.find(response_id, tenant)) is not None:
            await self._background.cancel(run)
        await self._store.delete(response_id, tenant)
        return json_response(Deleted(id=response_id))

    async def cancel_response(self, request: Request) -> Response:
        if self._forward is not None:
            return self._forward(request, b"")
        response_id, tenant = request.path_params["id"], _tenant(request)
        if (run := self._background.find(response_id, tenant)) is not None:
            await self._background.cancel(run)
            return json_response(run.answer.response)
        stored = await self._store.get(response_id, tenant)
        if not stored.events:
            raise InvalidRequest(
                "Only a response that was made with 'background' set to true can be cancelled; any other ends when "
                "its client leaves."
            )
        return Response(stored.response, media_type="application/json")

    async def list_input_items(self, request: Request) -> Response:
        include, (limit, order, after) = _read_include(request), _read_page(request)
        stored = await self._store.get(request.path_params["id"], _tenant(request))
        before = [] if stored.previous_id is None else await self._conversation(stored.previous_id, stored.tenant)
        items = [*before, *to_input(stored)]
        if order == "desc":
            items.reverse()
        if after is not None:
            places = [place for place, item in enumerate(items) if item["id"] == after]
            if not places:
                raise invalid("after", "must be the id of one of the response's input items")
            items = items[places[0] + 1 :]
        page = items[:limit] if IMAGE_URLS in include else without_urls(items[:limit])
        ends = (page[0]["id"], page[-1]["id"]) if page else (None, None)
        listed = ItemList(data=page, first_id=ends[0], last_id=ends[1], has_more=len(items) > limit)
        return await asyncio.to_thread(json_response, listed)  # with pictures it takes a while


# --- pieces ----------------------------------------------------------------------------------------------------------


async def _to_record(asked: _Asked) -> StoredResponse:
    return await to_record(asked.answer.response, asked.tenant, asked.items)


async def _replay(frames: Sequence[bytes]) -> AsyncGenerator[bytes, None]:
    for frame in frames:
        yield frame


def _read_include(request: Request) -> tuple[str, ...]:
    query = request.query_params
    asked_for = [*query.getlist("include"), *query.getlist("include[]")]
    return array(one_of(*INCLUDABLE))(asked_for, "include")


def _read_stream(request: Request) -> tuple[bool, int]:
    """Whether a stream is wanted, and the number of the last event that is not."""
    query = request.query_params
    streams = one_of("true", "false")(query.get("stream", "false").lower(), "stream") == "true"
    starting_after = query.get("starting_after")
    if starting_after is None:
        return streams, -1
    if not streams:
        raise invalid("starting_after", "is only for requests with 'stream' set to true")
    return streams, _whole("starting_after", starting_after, 0, 2**31 - 1)


def _read_page(request: Request) -> tuple[int, str, str | None]:
    query = request.query_params
    limit = _whole("limit", query.get("limit", "20"), 1, 100)
    return limit, one_of("asc", "desc")(query.get("order", "desc"), "order"), query.get("after")


def _whole(name: str, given: str, low: int, high: int) -> int:
    """A whole number of a query string."""
    if not (given.isascii() and given.isdecimal() and len(given) <= 10):
        raise invalid(name, "must be a whole number")
    return integer(low, high)(int(given), name)
