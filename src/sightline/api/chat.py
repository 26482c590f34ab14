"""OpenAI's chat completions: JSON to the nouns of `types.py` and back, all pure, and the two routes.

    to_chat_request   body   -> ChatRequest
    to_completion     events -> ChatCompletion       (not streamed)
    Chunks            events -> frames of the stream

Everything a route does between them is the service's work.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api import access
from sightline.api.chat_schema import (
    REFUSED_PREFIX,
    AssistantMessage,
    ChatBody,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    CompletionTokensDetails,
    ContentLogprob,
    DeltaReply,
    FunctionCall,
    InputImage,
    InputTokens,
    Logprobs,
    PromptTokensDetails,
    ToolCallPiece,
    ToolCallReply,
    TopLogprob,
    UsageReply,
)
from sightline.api.content import PictureDefaults, to_messages
from sightline.api.disconnect import unless_disconnected
from sightline.api.errors import to_error
from sightline.api.extension import to_extension, to_usage
from sightline.api.fields import invalid, read
from sightline.api.sse import DONE, EventStream, first_event, to_event
from sightline.api.wire import encode, read_json
from sightline.config import HttpLimits, Settings
from sightline.errors import UnsupportedFeature
from sightline.service import ChoiceEvent, Item, Prepared, ServedImage, Service
from sightline.types import (
    ChatRequest,
    Delta,
    Finish,
    ReasoningDelta,
    RefusalDelta,
    SamplingParams,
    TextDelta,
    TokenCount,
    TokenLogprob,
    Tool,
    ToolCallDelta,
    ToolChoice,
    Usage,
)


@dataclass(frozen=True, slots=True)
class Head:
    """What every object of one reply repeats."""

    id: str
    created: int
    """Unix seconds."""
    model: str
    system_fingerprint: str | msgspec.UnsetType = msgspec.UNSET
    """Left out where the engine has no weight file: the specification has no null here."""


# --- JSON to request -------------------------------------------------------------------------------------------------


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


# --- events to a reply -----------------------------------------------------------------------------------------------


def to_completion(head: Head, items: Iterable[Item], *, n: int = 1, logprobs: bool = False) -> ChatCompletion:
    """A whole stream of the service as one reply."""
    prepared: Prepared | None = None
    events: list[list[Delta | Finish]] = [[] for _ in range(n)]
    for item in items:
        if isinstance(item, Prepared):
            prepared = item
        else:
            events[item.index].append(item.event)
    assert prepared is not None, "the service yields Prepared first"
    finishes = [_finish(of_choice) for of_choice in events]
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        system_fingerprint=head.system_fingerprint,
        choices=[_to_choice(index, of_choice, logprobs) for index, of_choice in enumerate(events)],
        usage=to_usage_reply(to_usage(finishes)),
        sightline=to_extension(prepared, finishes),
    )


def _finish(events: Sequence[Delta | Finish]) -> Finish:
    assert events, "every choice ends with a Finish"
    last = events[-1]
    assert isinstance(last, Finish), "every choice ends with a Finish"
    return last


def _to_choice(index: int, events: Sequence[Delta | Finish], logprobs: bool) -> Choice:
    texts = [e.text for e in events if isinstance(e, TextDelta)]
    refusals = [e.text for e in events if isinstance(e, RefusalDelta)]
    reasoning = [e.text for e in events if isinstance(e, ReasoningDelta)]
    calls = _to_tool_calls([e for e in events if isinstance(e, ToolCallDelta)])
    content = "".join(texts)
    message = AssistantMessage(
        content=content if content or not (calls or refusals) else None,
        refusal="".join(refusals) if refusals else None,
        tool_calls=calls or msgspec.UNSET,
        reasoning_content="".join(reasoning) if reasoning else msgspec.UNSET,
    )
    tokens = [p for e in events if isinstance(e, TextDelta) for p in e.logprobs]
    return Choice(index, message, to_logprobs(tokens) if logprobs else None, _finish(events).reason)


def _to_tool_calls(deltas: Sequence[ToolCallDelta]) -> list[ToolCallReply]:
    ids: dict[int, str] = {}
    names: dict[int, str] = {}
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        if delta.id is not None:
            ids[delta.index] = delta.id
        if delta.name is not None:
            names[delta.index] = delta.name
        arguments.setdefault(delta.index, []).append(delta.arguments)
    return [ToolCallReply(ids[i], FunctionCall("".join(arguments[i]), names[i])) for i in sorted(arguments)]


def to_logprobs(tokens: Sequence[TokenLogprob]) -> Logprobs:
    return Logprobs(
        [
            ContentLogprob(
                t.token, t.logprob, t.bytes, [TopLogprob(other.token, other.logprob, other.bytes) for other in t.top]
            )
            for t in tokens
        ]
    )


def to_usage_reply(usage: Usage) -> UsageReply:
    image_tokens = sum(usage.image_tokens)
    return UsageReply(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=usage.cached_tokens,
            image_tokens=image_tokens,
            text_tokens=usage.prompt_tokens - image_tokens,
        ),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=usage.reasoning_tokens),
    )


# --- events to chunks ------------------------------------------------------------------------------------------------


class Chunks:
    """Items of the service as frames of the stream, in the order of the wire contract, section 1.

    A chunk's head and tail are the same throughout, so they are encoded once; each event encodes only its choice.
    """

    def __init__(self, head: Head, request_id: str, *, n: int, include_usage: bool, logprobs: bool) -> None:
        self.finished: list[ChoiceEvent] = []
        """The last event of each choice that has ended."""
        self._head = head
        self._request_id = request_id
        self._n = n
        self._include_usage = include_usage
        self._logprobs = logprobs
        self._prepared: Prepared | None = None
        empty = to_event(self._chunk((), usage=None if include_usage else msgspec.UNSET))
        before, choices, self._after = empty.partition(b'"choices":[]')
        self._before = before + choices[:-1]
        self._after = b"]" + self._after

    def to_frames(self, item: Item) -> bytes:
        """The frames that an item becomes: none, one, or for `Prepared` one for each choice."""
        if isinstance(item, Prepared):
            self._prepared = item
            return b"".join(self._frame(i, DeltaReply(role="assistant", content="")) for i in range(self._n))
        index, event = item.index, item.event
        match event:
            case TextDelta(text=text, logprobs=tokens):
                if self._logprobs:
                    return self._frame(index, DeltaReply(content=text), to_logprobs(tokens))
                return self._frame(index, DeltaReply(content=text)) if text else b""
            case ReasoningDelta(text=text):
                return self._frame(index, DeltaReply(reasoning_content=text))
            case RefusalDelta(text=text):
                return self._frame(index, DeltaReply(refusal=text))
            case ToolCallDelta():
                return self._frame(index, DeltaReply(tool_calls=(_to_piece(event),)))
            case Finish():
                self.finished.append(item)
                return self._frame(index, DeltaReply(), finish_reason=event.reason)

    def end(self) -> bytes:
        """The chunk with usage, if it is wanted, and `[DONE]`."""
        assert self._prepared is not None, "the service yields Prepared first"
        assert len(self.finished) == self._n, "every choice ends with a Finish"
        if not self._include_usage:
            return DONE
        finishes = [e.event for e in sorted(self.finished, key=lambda e: e.index) if isinstance(e.event, Finish)]
        usage = to_usage_reply(to_usage(finishes))
        return to_event(self._chunk((), usage=usage, extension=to_extension(self._prepared, finishes))) + DONE

    def to_error_frame(self, error: Exception) -> bytes:
        """What a client gets in place of `end`; no `[DONE]`, so that nobody takes half an answer for a whole one."""
        return to_event(to_error(error, self._request_id))

    def _frame(
        self, index: int, delta: DeltaReply, logprobs: Logprobs | None = None, finish_reason: Any = None
    ) -> bytes:
        return self._before + encode(ChunkChoice(index, delta, logprobs, finish_reason)) + self._after

    def _chunk(self, choices: tuple[ChunkChoice, ...], usage: Any, extension: Any = msgspec.UNSET) -> Any:
        return ChatCompletionChunk(
            id=self._head.id,
            created=self._head.created,
            model=self._head.model,
            system_fingerprint=self._head.system_fingerprint,
            choices=choices,
            usage=usage,
            sightline=extension,
        )


def _to_piece(delta: ToolCallDelta) -> ToolCallPiece:
    if delta.id is None and delta.name is None:
        return ToolCallPiece(index=delta.index, function=FunctionCall(delta.arguments))
    return ToolCallPiece(
        index=delta.index,
        id=delta.id or msgspec.UNSET,
        type="function",
        function=FunctionCall(delta.arguments, delta.name or msgspec.UNSET),
    )


# --- counting --------------------------------------------------------------------------------------------------------


def to_input_tokens(count: TokenCount, images: Sequence[ServedImage]) -> InputTokens:
    return InputTokens(
        input_tokens=count.prompt_tokens,
        text_tokens=count.text_tokens,
        image_tokens=sum(count.image_tokens),
        images=[
            InputImage(index=i, tokens=p.tokens, served_width=p.served_width, served_height=p.served_height)
            for i, p in enumerate(images)
        ],
    )


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
            record.facts.update(to_facts(answer))
            return _json(completion, _engine_headers(completion.sightline.engine, completion.sightline.path))
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
        record.at_end = lambda: to_facts([first, *chunks.finished])
        headers = _engine_headers(first.engine, first.path)
        return EventStream(first, items, chunks, keepalive_s=self._limits.keepalive_s, headers=headers)

    async def count_input_tokens(self, request: Request) -> Response:
        _, _, chat = await self._read(request)
        count, images = await unless_disconnected(request.receive, self._service.measure(chat))
        access.of(request.scope).facts.update(prompt_tokens=count.prompt_tokens, images=len(images))
        return _json(to_input_tokens(count, images))

    async def _read(self, request: Request) -> tuple[Head, ChatBody, ChatRequest]:
        record = access.of(request.scope)
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


async def _collect(items: AsyncGenerator[Item, None]) -> list[Item]:
    async with aclosing(items):
        return [item async for item in items]


def _json(value: Any, headers: dict[str, str] | None = None) -> Response:
    return Response(encode(value), headers=headers, media_type="application/json")


def _engine_headers(engine: str, path: Sequence[str]) -> dict[str, str]:
    headers = {"x-sightline-engine": quote(engine)}
    if len(path) > 1:
        headers["x-sightline-path"] = ", ".join(quote(replica, safe="/:@") for replica in path)
    return headers


def to_facts(items: Sequence[Item]) -> dict[str, Any]:
    """What the access log says of an answer: names, counts and seconds, no content."""
    facts: dict[str, Any] = {}
    finishes = []
    for item in items:
        match item:
            case Prepared():
                facts |= {
                    "engine": item.engine,
                    "path": item.path,
                    "images": len(item.images),
                    "queue_s": round(item.queue_s, 6),
                    "prompt_tokens": item.token_count.prompt_tokens,
                    "image_tokens": sum(item.token_count.image_tokens),
                }
            case ChoiceEvent(event=Finish() as finish):
                finishes.append(finish)
    if finishes:
        facts |= {
            "cached_tokens": min(f.usage.cached_tokens for f in finishes),
            "completion_tokens": sum(f.usage.completion_tokens for f in finishes),
            "finish": [f.reason for f in finishes],
        }
    return facts
