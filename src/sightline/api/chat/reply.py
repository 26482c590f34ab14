"""Chat completions: from events to what a client gets. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sightline.api.chat.schema import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    CompletionTokensDetails,
    ContentLogprob,
    DeltaReply,
    FunctionCall,
    Logprobs,
    PromptTokensDetails,
    ToolCallPiece,
    ToolCallReply,
    TopLogprob,
    UsageReply,
)
from sightline.api.collected import Collected, CollectedChoice, to_usage
from sightline.api.errors import to_error
from sightline.api.extension import to_extension
from sightline.api.sse import DONE, to_event
from sightline.api.wire import encode
from sightline.items import ChoiceEvent, Item, Prepared
from sightline.types import (
    Finish,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
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


# --- an answer in one piece -------------------------------------------------------------------------------------------


def to_completion(head: Head, answer: Collected, *, logprobs: bool = False) -> ChatCompletion:
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        system_fingerprint=head.system_fingerprint,
        choices=[_to_choice(index, choice, logprobs) for index, choice in enumerate(answer.choices)],
        usage=to_usage_reply(answer.usage),
        sightline=to_extension(answer.prepared, answer.finishes),
    )


def _to_choice(index: int, choice: CollectedChoice, logprobs: bool) -> Choice:
    calls = [ToolCallReply(call.id, FunctionCall(call.arguments, call.name)) for call in choice.tool_calls]
    message = AssistantMessage(
        content=choice.text if choice.text or not (calls or choice.refusal) else None,
        refusal=choice.refusal or None,
        tool_calls=calls or msgspec.UNSET,
        reasoning_content=choice.reasoning or msgspec.UNSET,
    )
    return Choice(index, message, to_logprobs(choice.logprobs) if logprobs else None, choice.finish.reason)


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


# --- an answer as it comes --------------------------------------------------------------------------------------------


class Chunks:
    """Items of the service as frames of the stream, in the order of the wire contract, section 1.

    A chunk's head and tail are the same throughout, so they are encoded once; each event encodes only its choice, and
    of a text, which nearly all are, only that.
    """

    opening = DeltaReply(role="assistant", content="")
    """What each choice begins with."""

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
        self._around_text = [_around(self._frame(i, DeltaReply(content=""))) for i in range(n)]

    def to_frames(self, item: Item) -> bytes:
        """The frames that an item becomes: none, one, or for `Prepared` one for each choice."""
        if isinstance(item, Prepared):
            self._prepared = item
            return b"".join(self._frame(i, self.opening) for i in range(self._n))
        index, event = item.index, item.event
        match event:
            case TextDelta(text=text, logprobs=tokens):
                if self._logprobs:
                    return self._frame(index, DeltaReply(content=text), to_logprobs(tokens))
                if not text:
                    return b""
                before, after = self._around_text[index]
                return before + encode(text) + after
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


def _around(frame: bytes) -> tuple[bytes, bytes]:
    """What stands before and behind the text of a frame whose text is empty. No other string looks like that: the
    quotation marks in one are escaped."""
    before, content, after = frame.partition(b'"content":""')
    return before + content[:-2], after


def _to_piece(delta: ToolCallDelta) -> ToolCallPiece:
    if delta.id is None and delta.name is None:
        return ToolCallPiece(index=delta.index, function=FunctionCall(delta.arguments))
    return ToolCallPiece(
        index=delta.index,
        id=delta.id or msgspec.UNSET,
        type="function",
        function=FunctionCall(delta.arguments, delta.name or msgspec.UNSET),
    )
