"""The Responses API: from a body and the conversation it goes on with to a `ChatRequest`, and to the response as it is
before anything has happened. Pure, but for `fit`, which asks the service what a prompt costs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import msgspec

from sightline.api.content import PictureDefaults
from sightline.api.fields import invalid, missing
from sightline.api.responses.items import Placed, to_messages
from sightline.api.responses.objects import ReasoningReply, ResponseReply, TextReply
from sightline.api.responses.schema import Reasoning, ResponsesBody
from sightline.api.sampling import to_common_sampling
from sightline.api.tool_choice import choose
from sightline.errors import ContextLengthExceeded
from sightline.types import ChatRequest, ImageRef, Message, ToolChoice


def refuse_contradictions(body: ResponsesBody) -> None:
    """Raises `InvalidRequest` for what fields say only together."""
    if not body.input and body.previous_response_id is None and not isinstance(body.input, str):
        raise missing("input") if body.input is None else invalid("input", "must have 1 or more items")
    if body.background and not body.store:
        raise invalid("background", "needs 'store' to be true: a response that nobody waits for must be kept")


def to_chat_request(body: ResponsesBody, items: Sequence[Placed], request_id: str, tenant: str) -> ChatRequest:
    """`items`: the whole conversation. `request_id` must be unique: engines tell sequences apart by it.

    Raises `InvalidRequest`, with `param`.
    """
    offered = [tool.to_tool(f"tools[{index}].parameters") for index, tool in enumerate(body.tools)]
    asked = ToolChoice() if body.tool_choice is None else body.tool_choice.choice
    tools, choice = choose(offered, asked, parallel=body.parallel_tool_calls)
    logprobs = body.top_logprobs if body.wants_logprobs else None
    sampling = to_common_sampling(body, max_tokens=body.max_output_tokens, logprobs=logprobs)
    return ChatRequest(
        request_id=request_id,
        model=body.model,
        messages=to_messages(items, body.instructions, PictureDefaults(body.max_pixels, body.min_pixels)),
        sampling=sampling,
        tools=tools,
        tool_choice=choice,
        response_format=body.text.format.format,
        priority=body.priority,
        tenant=tenant,
    )


def to_response(body: ResponsesBody, response_id: str, created_at: int) -> ResponseReply:
    """What the request asked for, told back."""
    reasoning = body.reasoning or Reasoning()
    text = TextReply(format=body.text.format.told)
    if body.text.verbosity is not None:
        text = TextReply(format=body.text.format.told, verbosity=body.text.verbosity)
    reply = ResponseReply(
        id=response_id,
        created_at=created_at,
        status="queued" if body.background else "in_progress",
        background=body.background,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        model=body.model,
        parallel_tool_calls=body.parallel_tool_calls,
        previous_response_id=body.previous_response_id,
        reasoning=ReasoningReply(effort=reasoning.effort, summary=reasoning.summary),
        store=body.store,
        temperature=body.temperature,
        top_p=body.top_p,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        top_logprobs=body.top_logprobs,
        text=text,
        tool_choice="auto" if body.tool_choice is None else body.tool_choice.told,
        tools=body.tools,
        truncation=body.truncation,
        safety_identifier=body.safety_identifier,
        prompt_cache_key=body.prompt_cache_key,
        metadata=body.metadata,
    )
    return reply if body.user is None else msgspec.structs.replace(reply, user=body.user)


# --- truncation ------------------------------------------------------------------------------------------------------


async def fit(chat: ChatRequest, measure: Callable[[ChatRequest], Awaitable[object]]) -> tuple[ChatRequest, int]:
    """The request without as many of its oldest turns as it takes for the rest to fit the context, and how many.

    What systems and developers said stays, and so does the newest turn. Raises whatever `measure` raises;
    `ContextLengthExceeded` only where not even the newest turn fits.
    """
    turns = _turns(chat.messages)
    if await _fits(chat, measure, final=len(turns) < 2):
        return chat, 0
    too_few, enough = 0, len(turns) - 1
    await _fits(_without(chat, turns[:enough]), measure, final=True)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if await _fits(_without(chat, turns[:middle]), measure):
            enough = middle
        else:
            too_few = middle
    return _without(chat, turns[:enough]), enough


async def _fits(chat: ChatRequest, measure: Callable[[ChatRequest], Awaitable[object]], *, final: bool = False) -> bool:
    try:
        await measure(chat)
    except ContextLengthExceeded:
        if final:
            raise
        return False
    return True


def _turns(messages: Sequence[Message[ImageRef]]) -> list[set[int]]:
    """The places of messages, by turns. One begins where a user speaks after an assistant, and has all up to the next:
    calls are never parted from their outputs, nor from the pictures in these."""
    turns: list[set[int]] = []
    before = "assistant"
    for place, message in enumerate(messages):
        if message.role == "system":
            continue
        if not turns or (message.role == "user" and before == "assistant"):
            turns.append(set())
        turns[-1].add(place)
        before = message.role
    return turns


def _without(chat: ChatRequest, turns: Sequence[set[int]]) -> ChatRequest:
    gone = set().union(*turns)
    return replace(chat, messages=tuple(m for place, m in enumerate(chat.messages) if place not in gone))
