"""The Responses API on the wire: the response, its items and the events of its stream.

Source: openai-openapi 2.3.0, `Response` and `ResponseStreamEvent`; what Open Responses 2026-04-24 requires beside it
(`presence_penalty`, `frequency_penalty`, `max_tool_calls`, `background`, ...) is always there.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from sightline.api.extension import Extension
from sightline.api.responses.schema import AllowedTools, FunctionTool, NamedFunction

Status = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


# --- items -----------------------------------------------------------------------------------------------------------


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]


class Logprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: tuple[int, ...]
    top_logprobs: tuple[TopLogprob, ...]


class OutputText(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "output_text"
    text: str
    annotations: tuple[()] = ()
    logprobs: tuple[Logprob, ...] = ()


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "refusal"
    refusal: str


class ReasoningText(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "reasoning_text"
    text: str


Part: TypeAlias = OutputText | Refusal | ReasoningText


class OutputMessage(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "message"
    id: str
    status: ItemStatus
    role: str = "assistant"
    content: tuple[Part, ...]


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "reasoning"
    id: str
    status: ItemStatus
    summary: tuple[()] = ()
    content: tuple[Part, ...]


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "function_call"
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem: TypeAlias = OutputMessage | ReasoningItem | FunctionCall


# --- the response ----------------------------------------------------------------------------------------------------


class InputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int
    cache_write_tokens: int = 0
    image_tokens: int
    """Ours, as are the text's."""
    text_tokens: int


class OutputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    reasoning_tokens: int


class UsageReply(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ErrorReply(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True, kw_only=True):
    reason: Literal["max_output_tokens", "content_filter"]


class TextReply(msgspec.Struct, frozen=True, kw_only=True):
    format: dict[str, Any]
    verbosity: str | UnsetType = UNSET


class ReasoningReply(msgspec.Struct, frozen=True, kw_only=True):
    effort: str | None
    summary: str | None


class ResponseExtension(Extension, frozen=True, kw_only=True):
    turns_dropped: int | UnsetType = UNSET
    """There where `truncation` was `auto` and the model did not see the conversation's oldest turns."""


class ResponseReply(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "response"
    created_at: int
    """Unix seconds, as is `completed_at`."""
    completed_at: int | None = None
    status: Status
    background: bool
    error: ErrorReply | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    model: str
    output: tuple[OutputItem, ...] = ()
    parallel_tool_calls: bool
    previous_response_id: str | None
    reasoning: ReasoningReply
    service_tier: str = "default"
    store: bool
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: int
    text: TextReply
    tool_choice: str | NamedFunction | AllowedTools
    tools: tuple[FunctionTool, ...]
    truncation: str
    usage: UsageReply | None = None
    user: str | UnsetType = UNSET
    safety_identifier: str | None
    prompt_cache_key: str | None
    metadata: dict[str, str]
    sightline: ResponseExtension | UnsetType = UNSET


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: str = "response"
    deleted: bool = True


class ItemList(msgspec.Struct, frozen=True, kw_only=True):
    object: str = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


# --- events ----------------------------------------------------------------------------------------------------------


class ResponseEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`response.created`, `queued`, `in_progress`, `completed`, `incomplete`, `failed`."""

    type: str
    sequence_number: int
    response: ResponseReply


class ItemEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`response.output_item.added`, `done`."""

    type: str
    sequence_number: int
    output_index: int
    item: OutputItem


class PartEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`response.content_part.added`, `done`."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    part: Part


class DeltaEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`response.output_text.delta`, `refusal.delta`, `reasoning_text.delta`."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    delta: str
    logprobs: tuple[Logprob, ...] | UnsetType = UNSET
    """Of `output_text` alone, and always there."""


class PartDoneEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`response.output_text.done`, `refusal.done`, `reasoning_text.done`."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    content_index: int
    text: str | UnsetType = UNSET
    refusal: str | UnsetType = UNSET
    logprobs: tuple[Logprob, ...] | UnsetType = UNSET


class ArgumentsEvent(msgspec.Struct, frozen=True, kw_only=True):
    """`response.function_call_arguments.delta` with `delta`; `done` with `name` and `arguments`."""

    type: str
    sequence_number: int
    item_id: str
    output_index: int
    delta: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ErrorEvent(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "error"
    sequence_number: int
    code: str | None
    message: str
    param: str | None


WireEvent: TypeAlias = ResponseEvent | ItemEvent | PartEvent | DeltaEvent | PartDoneEvent | ArgumentsEvent | ErrorEvent
