"""What every route that asks a model does around its own dialect: read, count what it refuses, generate, collect.

A dialect's route is then three lines of its own: body -> request, answer -> reply, events -> frames.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from sightline import metrics
from sightline.api import access, caller
from sightline.api.collected import Collected, to_collected
from sightline.api.disconnect import ClientDisconnected, unless_disconnected
from sightline.api.extension import to_headers
from sightline.api.merged import merged
from sightline.api.sse import EVENTS, EventStream, Framer, Framing
from sightline.api.wire import read_json
from sightline.config import HttpLimits
from sightline.errors import InvalidRequest
from sightline.items import Called, ChoiceEvent, Item, Prepared, ServedImage
from sightline.service import Service
from sightline.telling import Source, Tell, told
from sightline.types import ChatRequest, EmbeddingRequest, Embeddings, TokenCount

TIMEOUT = "x-request-timeout"
"""The header by which a client says for how long an answer is of use to it. The engine `remote` sends what is left of
it. OpenAI's SDKs tell a limit too (`x-stainless-read-timeout`), but for the silence between two bytes; when that is
over they leave, which ends the work as well."""
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")

T = TypeVar("T")
Asked = TypeVar("Asked", ChatRequest, EmbeddingRequest)


class ItemFramer(Framer[Item], Protocol):
    """How a dialect writes the service's items."""

    finished: list[ChoiceEvent]
    """The last event of each choice that has ended."""


class Exchange:
    """One for each dialect; knows no dialect."""

    def __init__(self, service: Service, limits: HttpLimits) -> None:
        self.service = service
        self.limits = limits

    @contextmanager
    def reading(self, scope: Scope) -> Iterator[None]:
        """Around all that may refuse a request before the service sees it, which counts the others."""
        try:
            yield
        except Exception as error:
            name = access.of(scope).facts.get("model")
            is_served = any(status.name == name for status in self.service.models())
            metrics.REQUESTS.labels(name if is_served else "other", _outcome(error)).inc()
            raise

    async def read_json(self, request: Request, *, any_type: bool = False) -> dict[str, Any]:
        """The body (`any_type`: `wire.read_json`); the log will know its model. To be called inside `reading`."""
        timeout_s(request)
        raw = await read_json(request, self.limits, any_type=any_type)
        if isinstance(model := raw.get("model"), str):
            access.of(request.scope).facts["model"] = model
        return raw

    async def collect(self, request: Request, *chats: ChatRequest) -> Collected:
        """The whole answer; of several requests, with their choices one after the other. A client that leaves ends the
        work (`ClientDisconnected`)."""
        return to_collected(await self.items(request, *chats), n=sum(chat.n for chat in chats))

    async def items(self, request: Request, *chats: ChatRequest) -> list[Item]:
        """As `collect`, but as the service told it."""
        items: list[Item] = []
        source = self.source(request, *(replace(chat, whole=True) for chat in chats))
        await unless_disconnected(request.scope, request.receive, source(items.append))
        access.of(request.scope).facts.update(access.to_facts(items))
        return items

    async def measure(self, request: Request, chat: ChatRequest) -> tuple[TokenCount, tuple[ServedImage, ...]]:
        """What the prompt would cost; nothing runs."""
        measuring = self.service.measure(_of_caller(request, chat), timeout_s=timeout_s(request))
        count, images = await unless_disconnected(request.scope, request.receive, measuring)
        access.of(request.scope).facts.update(prompt_tokens=count.prompt_tokens, images=len(images))
        return count, images

    async def embed(self, request: Request, wanted: EmbeddingRequest) -> Called[Embeddings]:
        """The vectors. A client that leaves ends the work."""
        embedding = self.service.embed(_of_caller(request, wanted), timeout_s=timeout_s(request))
        called = await self._called(request, embedding)
        access.of(request.scope).facts["prompt_tokens"] = called.value.prompt_tokens
        return called

    async def _called(self, request: Request, work: Coroutine[Any, Any, Called[T]]) -> Called[T]:
        """Of a `Service.call`."""
        called = await unless_disconnected(request.scope, request.receive, work)
        access.of(request.scope).facts.update(engine=called.engine, path=called.path, queue_s=round(called.queue_s, 6))
        return called

    def source(self, request: Request, *chats: ChatRequest) -> Source[Item]:
        """The answer as it comes; of several requests, as one. What is wrong with any of them is told before the first
        item, so that it can be a true status."""
        own = [_of_caller(request, chat) for chat in chats]
        within_s = timeout_s(request)

        async def source(tell: Tell[Item]) -> None:
            if len(own) == 1:
                await self.service.answer(own[0], tell, timeout_s=within_s)
                return
            for chat in own:
                if not chat.whole:
                    await self.service.measure(chat, timeout_s=within_s)
            streams = [self.service.generate(chat, timeout_s=within_s) for chat in own]
            await told(merged(streams, [chat.n for chat in own]))(tell)

        return source

    def stream(
        self,
        request: Request,
        source: Source[Item],
        framer: ItemFramer,
        framing: Framing = EVENTS,
        *,
        ending: Callable[[Exception | None], Awaitable[None]] | None = None,
    ) -> EventStream[Item]:
        """The answer as a dialect's framer writes it. `ending`: as of `EventStream`."""
        record = access.of(request.scope)

        def begin(first: Item) -> Mapping[str, str]:
            assert isinstance(first, Prepared), "the service tells Prepared first"
            record.facts["ttft_s"] = record.elapsed_s()
            record.at_end = lambda: access.to_facts([first, *framer.finished])
            return to_headers(first.engine, first.path)

        return EventStream(
            source, framer, keepalive_s=self.limits.keepalive_s, begin=begin, ending=ending, framing=framing
        )

    def fingerprint(self, model: str) -> str | None:
        """`system_fingerprint`: of the weights that answer, known once the engine has run."""
        info = self.service.info(model)
        digest = None if info is None else info.weights_digest
        return None if digest is None else f"fp_{digest.removeprefix('sha256:')[:12]}"


def _of_caller(request: Request, asked: Asked) -> Asked:
    """Whose request it is is decided here, for every dialect, and nowhere in its body."""
    own = caller.of(request.scope)
    return replace(asked, tenant=own.tenant, priority=asked.priority if own.priority is None else own.priority)


def timeout_s(request: Request) -> float | None:
    """Within how many seconds the client wants its answer, by the header `TIMEOUT`; None: it does not say.

    Raises `InvalidRequest` for what is no such number.
    """
    value = request.headers.get(TIMEOUT)
    if value is None:
        return None
    if not _SECONDS.fullmatch(value) or not (seconds := float(value)):
        raise InvalidRequest(
            f"The header {TIMEOUT} is a number of seconds above 0, such as 30 or 2.5; after so long the request is "
            "given up.",
            param=TIMEOUT,
        )
    return seconds


def new_id(prefix: str) -> str:
    """Unguessable and unique: `chatcmpl-` and 96 random bits. Not the request's id, which a client may choose and send
    twice."""
    return f"{prefix}{os.urandom(12).hex()}"


def _outcome(error: Exception) -> str:
    """The `outcome` label of a request that never reached the service."""
    match error:
        case ClientDisconnected():
            return "cancelled"
        case HTTPException():
            return HTTPException.__name__
        case _:
            return metrics.outcome(error)
