"""Ollama's own API: the requests' side and the routes. `reply.py` has the way back.

to_chat_request   body   -> ChatRequest          pure; of /api/chat and of /api/generate
to_answer         events -> a line               an answer in one piece
Lines             events -> lines of a stream    an answer as it comes, which is what clients get unless they say so
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sightline.api import access, home
from sightline.api.dialect import Dialect
from sightline.api.exchange import Exchange, new_id
from sightline.api.extension import to_headers
from sightline.api.fields import invalid, missing, read
from sightline.api.ollama import embed as ollama_embed
from sightline.api.ollama.models import resolve, to_ps, to_shown, to_tags
from sightline.api.ollama.reply import FRAMING, Head, Lines, to_answer, to_error_response, to_nothing
from sightline.api.ollama.schema import Asked, ChatBody, GenerateBody, MessageBody, Options, ShowBody
from sightline.api.wire import json_response
from sightline.config import HttpLimits, Settings
from sightline.errors import Forbidden, UnsupportedFeature
from sightline.service import Service
from sightline.types import ChatRequest, ImageRef, Message, SamplingParams, Text, ToolCall, ToolChoice

VERSION = "0.17.0"
"""Of Ollama: that whose API this is. Clients ask for it to learn what they may use."""
REFUSED = ("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs/{digest:path}")

_ANYTHING: Message[ImageRef] = Message("user", (Text("?"),))

AskedT = TypeVar("AskedT", ChatBody, GenerateBody)


# --- requests --------------------------------------------------------------------------------------------------------


def to_chat_request(body: ChatBody | GenerateBody, request_id: str, limits: HttpLimits) -> ChatRequest:
    """`request_id` must be unique: engines tell sequences apart by it.

    Raises `InvalidRequest` or `UnsupportedFeature`, with `param`, for what fields say only together.
    """
    if body.top_logprobs and not body.logprobs:
        raise invalid("top_logprobs", "needs 'logprobs' to be true")
    request = ChatRequest(
        request_id=request_id,
        model=body.model,
        messages=(),
        sampling=replace(_to_sampling(body.options), logprobs=body.top_logprobs if body.logprobs else None),
        response_format=body.format,
        tool_choice=ToolChoice("none"),
    )
    if isinstance(body, GenerateBody):
        if body.raw:
            return replace(request, prompt=_to_raw(body))
        return replace(request, messages=_to_prompt(body))
    if len({tool.name for tool in body.tools}) != len(body.tools):
        raise invalid("tools", "must not have two functions of the same name")
    choice = ToolChoice("auto" if body.tools else "none")
    return replace(request, messages=_to_messages(body, limits), tools=body.tools, tool_choice=choice)


def _to_sampling(options: Options) -> SamplingParams:
    return SamplingParams(
        max_tokens=options.num_predict if options.num_predict > 0 else None,
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=max(0, options.top_k),
        min_p=options.min_p,
        seed=options.seed if options.seed >= 0 else None,
        stop=options.stop,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        repetition_penalty=options.repeat_penalty if options.repeat_last_n else 1.0,
    )


def _to_raw(body: GenerateBody) -> str:
    """The prompt as it stands, which has no place for anything else."""
    for name in ("system", "images"):
        if getattr(body, name):
            raise UnsupportedFeature(f"'{name}' is not supported with 'raw': the prompt is all there is.", param=name)
    return body.prompt


def _to_prompt(body: GenerateBody) -> tuple[Message[ImageRef], ...]:
    system = (Message[ImageRef]("system", (Text(body.system),)),) if body.system else ()
    return (*system, Message("user", _to_content(body.prompt, body.images, "images")))


def _to_messages(body: ChatBody, limits: HttpLimits) -> tuple[Message[ImageRef], ...]:
    if len(body.messages) > limits.max_messages:
        raise invalid("messages", f"must have at most {limits.max_messages} items, and has {len(body.messages)}")
    messages = []
    unanswered: list[ToolCall] = []
    for index, value in enumerate(body.messages):
        at = f"messages[{index}]"
        messages.append(_to_message(read(MessageBody, value, at), at, index, unanswered))
    if (parts := sum(len(m.content) for m in messages)) > limits.max_parts:
        raise invalid("messages", f"must have at most {limits.max_parts} texts and pictures, and has {parts}")
    return tuple(messages)


def _to_message(body: MessageBody, at: str, index: int, unanswered: list[ToolCall]) -> Message[ImageRef]:
    """Calls need no ids in Ollama's API: who answers is told by name, and else by order."""
    if body.images and body.role not in ("user", "tool"):
        raise invalid(f"{at}.images", f"cannot be in a message of the role {body.role!r}")
    if body.tool_calls and body.role != "assistant":
        raise invalid(f"{at}.tool_calls", "can only stand in a message of the role 'assistant'")
    content = _to_content(body.content, body.images, f"{at}.images")
    if body.role == "tool":
        return Message("tool", content, tool_call_id=body.tool_call_id or _answered(body, index, unanswered))
    calls = tuple(
        ToolCall(
            call.id or f"call_{index}_{number}",
            call.function.name,
            json.dumps(call.function.arguments, ensure_ascii=False),
        )
        for number, call in enumerate(body.tool_calls)
    )
    unanswered += calls
    return Message(body.role, content, calls)


def _answered(body: MessageBody, index: int, unanswered: list[ToolCall]) -> str:
    """The id of the call that a message of the role `tool` answers."""
    named = [call for call in unanswered if call.name == body.tool_name]
    for call in named or unanswered:
        unanswered.remove(call)
        return call.id
    return f"call_{index}"


def _to_content(text: str, images: tuple[str, ...], at: str) -> tuple[Text | ImageRef, ...]:
    """Pictures first, as Ollama puts them."""
    pictures = tuple(ImageRef(_to_url(image), f"{at}[{i}]") for i, image in enumerate(images))
    return (*pictures, Text(text)) if text or not pictures else pictures


def _to_url(image: str) -> str:
    """Bare base64 as a URL, without the line breaks that Ollama reads over. What is a data: URL already, as some
    clients send it, stays one."""
    if "\n" in image:
        image = "".join(image.split())
    return image if image[:5].lower() == "data:" else f"data:;base64,{image}"


# --- routes ----------------------------------------------------------------------------------------------------------


def dialect(service: Service, settings: Settings) -> Dialect:
    exchange = Exchange(service, settings.http)
    api = _Ollama(exchange)
    routes = [
        Route("/api/chat", api.chat, methods=["POST"]),
        Route("/api/generate", api.generate, methods=["POST"]),
        *ollama_embed.routes(exchange),
        Route("/api/tags", api.tags),
        Route("/api/show", api.show, methods=["POST"]),
        Route("/api/ps", api.ps),
        Route("/api/version", _version),
        *home.routes(has_page=settings.ui),
        *(Route(path, _refuse, methods=["HEAD", "POST", "DELETE"]) for path in REFUSED),
    ]
    return Dialect(routes, ("/api/",), to_error_response, "ollama")


async def _version(request: Request) -> Response:
    return json_response({"version": VERSION})


async def _refuse(request: Request) -> Response:
    raise Forbidden("Which models there are is decided by who runs this server; clients cannot change it.")


class _Ollama:
    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def chat(self, request: Request) -> Response:
        body, asked, head = await self._read(request, ChatBody)
        return await self._answer(request, body, asked, head, is_empty=not body.messages)

    async def generate(self, request: Request) -> Response:
        body, asked, head = await self._read(request, GenerateBody)
        return await self._answer(request, body, asked, head, is_empty=not (body.prompt or body.images))

    async def tags(self, request: Request) -> Response:
        return json_response(to_tags(self._exchange.service.models()))

    async def ps(self, request: Request) -> Response:
        return json_response(to_ps(self._exchange.service.models()))

    async def show(self, request: Request) -> Response:
        body = read(ShowBody, await self._exchange.read_json(request, any_type=True))
        name = body.model or body.name
        if name is None:
            raise missing("model")
        return json_response(to_shown(resolve(name, self._exchange.service)))

    async def _answer(
        self, request: Request, body: Asked, chat: ChatRequest, head: Head, *, is_empty: bool
    ) -> Response:
        if is_empty:
            return await self._load(request, body, chat, head)
        if body.stream:
            lines = Lines(head, access.of(request.scope).request_id)
            return self._exchange.stream(request, self._exchange.source(request, chat), lines, FRAMING)
        answer = await self._exchange.collect(request, chat)
        headers = to_headers(answer.prepared.engine, answer.prepared.path)
        return json_response(to_answer(head, answer), headers=headers)

    async def _load(self, request: Request, body: Asked, chat: ChatRequest, head: Head) -> Response:
        """Nothing is asked: the model is only to be loaded, or unloaded."""
        if body.keep_alive:
            await self._exchange.measure(request, replace(chat, prompt=None, messages=(_ANYTHING,)))
            return json_response(to_nothing(head, "load"))
        if not self._exchange.service.unload(chat.model):
            raise UnsupportedFeature(
                "'keep_alive' cannot unload this model: its operator keeps it loaded.", param="keep_alive"
            )
        return json_response(to_nothing(head, "unload"))

    async def _read(self, request: Request, schema: type[AskedT]) -> tuple[AskedT, ChatRequest, Head]:
        record = access.of(request.scope)
        with self._exchange.reading(request.scope):
            body = read(schema, await self._exchange.read_json(request, any_type=True))
            status = resolve(body.model, self._exchange.service)
            record.facts["model"] = status.name
            chat = to_chat_request(body, new_id("ollama-"), self._exchange.limits)
        record.facts.update(completion=chat.request_id, stream=body.stream)
        head = Head(
            body.model,
            chat=schema is ChatBody,
            thinking=body.think,
            logprobs=body.logprobs,
            started=record.started,
            loaded=status.state == "ready",
        )
        return body, replace(chat, model=status.name), head
