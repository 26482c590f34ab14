"""Anthropic's messages: from events to what a client gets, errors included. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from msgspec import UNSET
from starlette.responses import Response

from sightline import errors as e
from sightline.api import errors
from sightline.api.collected import Collected, CollectedChoice
from sightline.api.messages.schema import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    ErrorDetail,
    ErrorReply,
    InputPiece,
    MessageDelta,
    MessageReply,
    MessageStart,
    MessageStop,
    OutputTokensDetails,
    Piece,
    SignaturePiece,
    Stop,
    StopReason,
    TextBlock,
    TextPiece,
    ThinkingBlock,
    ThinkingPiece,
    ToolUseBlock,
    UsageReply,
)
from sightline.api.sse import Framing, to_named_event
from sightline.api.wire import json_response
from sightline.items import ChoiceEvent, Item
from sightline.types import Finish, ReasoningDelta, RefusalDelta, TextDelta, ToolCallDelta, Usage

INVALID_JSON = "INVALID_JSON"
"""The key under which a call's arguments stand that are no JSON object, because the model was cut off or mistaken; the
name is from Anthropic's documentation of fine-grained tool streaming."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a reply says of its request."""

    id: str
    model: str
    max_tokens: int
    thinking: bool
    """Whether thoughts are shown."""


# --- an answer in one piece -------------------------------------------------------------------------------------------


def to_message(head: Head, answer: Collected) -> MessageReply:
    (choice,) = answer.choices
    finish = choice.finish
    return MessageReply(
        id=head.id,
        model=head.model,
        content=list(_to_blocks(head, choice)),
        stop_reason=to_stop_reason(finish, head.max_tokens, refused=bool(choice.refusal)),
        stop_sequence=finish.stop_sequence,
        usage=to_usage_reply(finish.usage),
    )


def _to_blocks(head: Head, choice: CollectedChoice) -> tuple[Block, ...]:
    thoughts = (ThinkingBlock(thinking=choice.reasoning),) if choice.reasoning and head.thinking else ()
    said = choice.text + choice.refusal
    texts = (TextBlock(text=said),) if said else ()
    calls = tuple(ToolUseBlock(id=c.id, name=c.name, input=to_input(c.arguments)) for c in choice.tool_calls)
    return (*thoughts, *texts, *calls)


def to_input(arguments: str) -> dict[str, Any]:
    """A call's arguments, which the model wrote, as an object."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {INVALID_JSON: arguments}


def to_stop_reason(finish: Finish, max_tokens: int, *, refused: bool) -> StopReason:
    if refused:
        return "refusal"
    match finish.reason:
        case "stop":
            return "end_turn" if finish.stop_sequence is None else "stop_sequence"
        case "length":  # by the request's bound, or else by the only other one there is
            within = finish.usage.completion_tokens < max_tokens
            return "model_context_window_exceeded" if within else "max_tokens"
        case "tool_calls":
            return "tool_use"
        case "content_filter":
            return "refusal"


def to_usage_reply(usage: Usage) -> UsageReply:
    thinking = usage.reasoning_tokens
    return UsageReply(
        input_tokens=usage.prompt_tokens - usage.cached_tokens,
        cache_read_input_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(thinking_tokens=thinking) if thinking else UNSET,
    )


# --- an answer as it comes --------------------------------------------------------------------------------------------

FRAMING = Framing("text/event-stream", to_named_event("ping", {"type": "ping"}))


class Events:
    """Items of the service as events of the stream, in the order of the wire contract, section 11: blocks follow each
    other, and one is closed before the next begins."""

    def __init__(self, head: Head, request_id: str) -> None:
        self.finished: list[ChoiceEvent] = []
        self._head = head
        self._request_id = request_id
        self._index = -1
        self._open: str | int | None = None
        """The block that is being written: `text`, `thinking`, or the index of a tool call."""
        self._calls = -1
        """The last call that has begun."""
        self._refused = False

    def to_frames(self, item: Item) -> bytes:
        if not isinstance(item, ChoiceEvent):
            usage = UsageReply(input_tokens=item.token_count.prompt_tokens, output_tokens=0)
            return _frame(
                MessageStart(
                    message=MessageReply(
                        id=self._head.id,
                        model=self._head.model,
                        content=[],
                        stop_reason=None,
                        stop_sequence=None,
                        usage=usage,
                    )
                )
            )
        match item.event:
            case TextDelta(text=text):
                return self._write("text", TextBlock(text=""), TextPiece(text=text)) if text else b""
            case RefusalDelta(text=text):
                self._refused = True
                return self._write("text", TextBlock(text=""), TextPiece(text=text))
            case ReasoningDelta(text=text):
                if not self._head.thinking:
                    return b""
                return self._write("thinking", ThinkingBlock(thinking=""), ThinkingPiece(thinking=text))
            case ToolCallDelta() as delta:
                return self._write_call(delta)
            case Finish() as finish:
                self.finished.append(item)
                return self._close() + _frame(self._to_delta(finish))

    def end(self) -> bytes:
        assert self.finished, "every choice ends with a Finish"
        return _frame(MessageStop())

    def to_error_frame(self, error: Exception) -> bytes:
        """In place of what was to come: no `message_stop`, so that nobody takes half an answer for a whole one."""
        return _frame(to_error(error, self._request_id))

    def _write(self, block: str | int, empty: Block, piece: Piece | None) -> bytes:
        begun = b""
        if self._open != block:
            begun = self._close()
            self._index += 1
            self._open = block
            begun += _frame(BlockStart(index=self._index, content_block=empty))
        return begun if piece is None else begun + _frame(BlockDelta(index=self._index, delta=piece))

    def _write_call(self, delta: ToolCallDelta) -> bytes:
        if delta.index != self._open and delta.index <= self._calls:
            raise e.EngineFailed("The model goes on with a tool call that it had ended. Ask without 'stream'.")
        self._calls = delta.index
        empty = ToolUseBlock(id=delta.id or "", name=delta.name or "", input={})
        return self._write(delta.index, empty, InputPiece(partial_json=delta.arguments) if delta.arguments else None)

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        last = BlockDelta(index=self._index, delta=SignaturePiece()) if self._open == "thinking" else None
        self._open = None
        return (b"" if last is None else _frame(last)) + _frame(BlockStop(index=self._index))

    def _to_delta(self, finish: Finish) -> MessageDelta:
        reason = to_stop_reason(finish, self._head.max_tokens, refused=self._refused)
        return MessageDelta(
            delta=Stop(stop_reason=reason, stop_sequence=finish.stop_sequence), usage=to_usage_reply(finish.usage)
        )


def _frame(value: Any) -> bytes:
    return to_named_event(value.type, value)


# --- errors ----------------------------------------------------------------------------------------------------------

_OVERLOADED = 529
"""Of Anthropic's own; in place of 503, which it does not document."""
_BILLING = 402
_TYPES = {
    401: "authentication_error",
    _BILLING: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    _OVERLOADED: "overloaded_error",
}
_WORDS = {
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
}


def to_status(error: Exception) -> int:
    status = _BILLING if isinstance(error, e.QuotaExceeded) else errors.to_status(error)
    return _OVERLOADED if status == HTTPStatus.SERVICE_UNAVAILABLE else status


def to_error(error: Exception, request_id: str) -> ErrorReply:
    status = to_status(error)
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    message = errors.to_message(error, request_id, _WORDS)
    return ErrorReply(error=ErrorDetail(type=kind, message=message), request_id=request_id)


def to_error_response(error: Exception, request_id: str) -> Response:
    headers = {**errors.to_headers(error), "request-id": request_id}
    return json_response(to_error(error, request_id), to_status(error), headers)
