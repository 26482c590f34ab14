"""The Responses API: from events of the service to the response as it grows, and to the events that tell of it.

    Answer    events -> the response, and events of the wire      pure; one place for the order of both
    Frames    what an `Answer` gives, as frames of a stream

An answer in one piece and a stream are the same response: both are an `Answer` that has been fed the same events.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from msgspec import UNSET

from sightline.api.errors import SERVER_ERROR, to_error
from sightline.api.exchange import new_id
from sightline.api.extension import to_extension
from sightline.api.responses.objects import (
    ArgumentsEvent,
    DeltaEvent,
    ErrorEvent,
    ErrorReply,
    FunctionCall,
    IncompleteDetails,
    InputTokensDetails,
    ItemEvent,
    ItemStatus,
    Logprob,
    OutputItem,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    Part,
    PartDoneEvent,
    PartEvent,
    ReasoningItem,
    ReasoningText,
    Refusal,
    ResponseEvent,
    ResponseExtension,
    ResponseReply,
    Status,
    TopLogprob,
    UsageReply,
    WireEvent,
)
from sightline.api.sse import DONE, to_named_event
from sightline.errors import RateLimited, RequestError, SightlineError
from sightline.items import ChoiceEvent, Item, Prepared
from sightline.types import (
    Event,
    Finish,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

Kind = Literal["output_text", "refusal", "reasoning_text"]

_WORDS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "response_format": "text.format",
    "response_format.json_schema.schema": "text.format.schema",
}
"""What the service and the engines call a field, and what this dialect does."""
_IMAGE_CODES = frozenset(
    {
        "invalid_image_format", "invalid_base64_image", "invalid_image_url", "image_too_large", "image_too_small",
        "image_parse_error", "image_file_too_large", "empty_image_file", "failed_to_download_image",
    }
)  # fmt: skip
"""Of ours, those that a response's `error.code` can hold (`ResponseErrorCode`)."""
_INCOMPLETE: Mapping[FinishReason, Literal["max_output_tokens", "content_filter"]] = {
    "length": "max_output_tokens",
    "content_filter": "content_filter",
}


def in_own_words(error: Exception) -> Exception:
    """The error with the name that the field at fault has in this dialect."""
    if isinstance(error, SightlineError):
        param = error.param or to_error(error, "").error.param
        error.param = _WORDS.get(param or "", param)
    return error


def to_response_error(error: Exception, request_id: str) -> ErrorReply:
    """As a response that failed has it, where an HTTP status can no longer tell."""
    code = error.code if isinstance(error, SightlineError) else None
    if code not in _IMAGE_CODES:
        match error:
            case RateLimited():
                code = "rate_limit_exceeded"
            case RequestError():
                code = "invalid_prompt"
            case _:
                code = SERVER_ERROR
    return ErrorReply(code=code, message=to_error(in_own_words(error), request_id).error.message)


# --- items that are still being written ------------------------------------------------------------------------------


@dataclass(slots=True)
class _OpenPart:
    kind: Kind
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)

    def to_part(self) -> Part:
        text = "".join(self.pieces)
        match self.kind:
            case "output_text":
                return OutputText(text=text, logprobs=tuple(self.logprobs))
            case "refusal":
                return Refusal(refusal=text)
            case "reasoning_text":
                return ReasoningText(text=text)


@dataclass(slots=True)
class _OpenSpeech:
    """A message, or what is reasoned before one."""

    index: int
    id: str
    reasoning: bool
    done: list[Part] = field(default_factory=list)
    part: _OpenPart | None = None

    def to_item(self, status: ItemStatus) -> OutputItem:
        content = tuple(self.done) if self.part is None else (*self.done, self.part.to_part())
        return (ReasoningItem if self.reasoning else OutputMessage)(id=self.id, status=status, content=content)


@dataclass(slots=True)
class _OpenCall:
    index: int
    id: str
    call_id: str
    name: str
    pieces: list[str] = field(default_factory=list)

    def to_item(self, status: ItemStatus) -> OutputItem:
        arguments = "".join(self.pieces)
        return FunctionCall(id=self.id, status=status, call_id=self.call_id, name=self.name, arguments=arguments)


# --- the answer ------------------------------------------------------------------------------------------------------


class Answer:
    """One response, from its first event to its last. Every method gives the events that are due now, in order."""

    def __init__(self, response: ResponseReply, request_id: str, *, logprobs: bool) -> None:
        """`response`: as it is before anything has happened."""
        self._response = response
        self._request_id = request_id
        self.turns_dropped = 0
        """Of the conversation, to make it fit."""
        self._logprobs = logprobs
        self._sequence = 0
        self._prepared: Prepared | None = None
        self._items: list[OutputItem | None] = []
        """Finished ones in their places; None where one is still being written."""
        self._speech: _OpenSpeech | None = None
        self._calls: dict[int, _OpenCall] = {}
        """By the engine's index. They may grow in turns, so all stay open until something else begins."""

    @property
    def id(self) -> str:
        return self._response.id

    @property
    def response(self) -> ResponseReply:
        """As it stands."""
        if self._response.status not in ("queued", "in_progress"):
            return self._response
        return msgspec.structs.replace(self._response, output=self._output("in_progress"))

    def create(self) -> list[WireEvent]:
        """For a response that waits for its turn."""
        return [self._tell("response.created"), self._tell("response.queued")]

    def feed(self, item: Item) -> list[WireEvent]:
        if isinstance(item, Prepared):
            return self._begin(item)
        return self._on_event(item.event)

    def fail(self, error: Exception) -> list[WireEvent]:
        told = to_error(in_own_words(error), self._request_id).error
        reply = to_response_error(error, self._request_id)
        code = told.code or (SERVER_ERROR if reply.code == SERVER_ERROR else None)
        event = ErrorEvent(sequence_number=self._next(), code=code, message=told.message, param=told.param)
        return [event, self._end("failed", error=reply)]

    def cancel(self) -> list[WireEvent]:
        return [self._end("cancelled")]

    def _begin(self, prepared: Prepared) -> list[WireEvent]:
        self._prepared = prepared
        created = [] if self._sequence else [self._tell("response.created")]
        self._response = msgspec.structs.replace(self._response, status="in_progress")
        return [*created, self._tell("response.in_progress")]

    def _on_event(self, event: Event) -> list[WireEvent]:
        match event:
            case TextDelta(text=text, logprobs=tokens):
                logprobs = _to_logprobs(tokens) if self._logprobs else ()
                return self._say("output_text", text, logprobs) if text or logprobs else []
            case RefusalDelta(text=text):
                return self._say("refusal", text)
            case ReasoningDelta(text=text):
                return self._say("reasoning_text", text)
            case ToolCallDelta():
                return self._call(event)
            case Finish():
                return self._finish(event)

    # --- speech ----------------------------------------------------------------------------------------------------

    def _say(self, kind: Kind, text: str, logprobs: tuple[Logprob, ...] = ()) -> list[WireEvent]:
        events = self._open_part(kind)
        assert self._speech is not None
        assert self._speech.part is not None
        part = self._speech.part
        part.pieces.append(text)
        part.logprobs += logprobs
        told = logprobs if kind == "output_text" else UNSET
        events.append(DeltaEvent(type=f"response.{kind}.delta", **self._place(), delta=text, logprobs=told))
        return events

    def _open_part(self, kind: Kind) -> list[WireEvent]:
        """Sees to it that a part of this kind is open."""
        events: list[WireEvent] = []
        reasoning = kind == "reasoning_text"
        if self._speech is None or self._speech.reasoning != reasoning:
            events += self._close_all("completed")
            speech = _OpenSpeech(len(self._items), new_id("rs_" if reasoning else "msg_"), reasoning)
            self._speech = speech
            self._items.append(None)
            events.append(self._tell_item("added", speech.index, speech.to_item("in_progress")))
        if self._speech.part is None or self._speech.part.kind != kind:
            events += self._close_part()
            self._speech.part = part = _OpenPart(kind)
            events.append(PartEvent(type="response.content_part.added", **self._place(), part=part.to_part()))
        return events

    def _close_part(self) -> list[WireEvent]:
        if self._speech is None or (part := self._speech.part) is None:
            return []
        done = part.to_part()
        text = done.refusal if isinstance(done, Refusal) else done.text
        told: dict[str, Any] = {"refusal": text} if part.kind == "refusal" else {"text": text}
        if part.kind == "output_text":
            told["logprobs"] = tuple(part.logprobs)
        events: list[WireEvent] = [
            PartDoneEvent(type=f"response.{part.kind}.done", **self._place(), **told),
            PartEvent(type="response.content_part.done", **self._place(), part=done),
        ]
        self._speech.part = None
        self._speech.done.append(done)
        return events

    # --- calls -----------------------------------------------------------------------------------------------------

    def _call(self, delta: ToolCallDelta) -> list[WireEvent]:
        events: list[WireEvent] = []
        call = self._calls.get(delta.index)
        if call is None:
            events += self._close_speech("completed")
            call = _OpenCall(len(self._items), new_id("fc_"), delta.id or new_id("call_"), delta.name or "")
            self._calls[delta.index] = call
            self._items.append(None)
            events.append(self._tell_item("added", call.index, call.to_item("in_progress")))
        if delta.arguments:
            call.pieces.append(delta.arguments)
            events.append(self._tell_arguments("delta", call, delta=delta.arguments))
        return events

    def _close_calls(self, status: ItemStatus) -> list[WireEvent]:
        events: list[WireEvent] = []
        for left, call in zip(reversed(range(len(self._calls))), self._calls.values(), strict=True):
            events.append(self._tell_arguments("done", call, name=call.name, arguments="".join(call.pieces)))
            events += self._close_item(call, "completed" if left else status)
        self._calls.clear()
        return events

    def _tell_arguments(self, what: str, call: _OpenCall, **fields: Any) -> WireEvent:
        kind = f"response.function_call_arguments.{what}"
        number = self._next()
        return ArgumentsEvent(type=kind, sequence_number=number, item_id=call.id, output_index=call.index, **fields)

    # --- ends ------------------------------------------------------------------------------------------------------

    def _close_speech(self, status: ItemStatus) -> list[WireEvent]:
        if self._speech is None:
            return []
        events = [*self._close_part(), *self._close_item(self._speech, status)]
        self._speech = None
        return events

    def _close_item(self, item: _OpenSpeech | _OpenCall, status: ItemStatus) -> list[WireEvent]:
        self._items[item.index] = done = item.to_item(status)
        return [self._tell_item("done", item.index, done)]

    def _close_all(self, status: ItemStatus) -> list[WireEvent]:
        return [*self._close_speech(status), *self._close_calls(status)]

    def _finish(self, finish: Finish) -> list[WireEvent]:
        reason = _INCOMPLETE.get(finish.reason)
        # An empty answer is a message all the same: clients look for one.
        events = [] if self._items else self._open_part("output_text")
        events += self._close_all("incomplete" if reason else "completed")
        end = self._end(
            "incomplete" if reason else "completed",
            completed_at=None if reason else int(time.time()),
            incomplete_details=IncompleteDetails(reason=reason) if reason else None,
            usage=to_usage_reply(finish.usage),
            sightline=self._to_extension(finish),
        )
        return [*events, end]

    def _to_extension(self, finish: Finish) -> ResponseExtension:
        assert self._prepared is not None, "the service yields Prepared first"
        extension = msgspec.structs.asdict(to_extension(self._prepared, [finish]))
        return ResponseExtension(**extension, turns_dropped=self.turns_dropped or UNSET)

    def _end(self, status: Status, **fields: Any) -> WireEvent:
        # A client that follows one that was cancelled is told of the end by the event whose response says why.
        output = self._output("incomplete")
        self._response = msgspec.structs.replace(self._response, status=status, output=output, **fields)
        return self._tell("response.incomplete" if status == "cancelled" else f"response.{status}")

    def _output(self, status: ItemStatus) -> tuple[OutputItem, ...]:
        """With what is still being written, which `status` is said of: of the last item alone where it is how they
        ended (Open Responses: an incomplete item is the last)."""
        output = list(self._items)
        for item in (self._speech, *self._calls.values()):
            if item is not None:
                is_last = status == "in_progress" or item.index == len(output) - 1
                output[item.index] = item.to_item(status if is_last else "completed")
        return tuple(item for item in output if item is not None)

    def _tell(self, kind: str) -> WireEvent:
        return ResponseEvent(type=kind, sequence_number=self._next(), response=self._response)

    def _tell_item(self, what: str, index: int, item: OutputItem) -> WireEvent:
        kind = f"response.output_item.{what}"
        return ItemEvent(type=kind, sequence_number=self._next(), output_index=index, item=item)

    def _place(self) -> dict[str, Any]:
        """Where the open part stands, in an event of its own number."""
        speech = self._speech
        assert speech is not None
        place = {"item_id": speech.id, "output_index": speech.index, "content_index": len(speech.done)}
        return {"sequence_number": self._next(), **place}

    def _next(self) -> int:
        number, self._sequence = self._sequence, self._sequence + 1
        return number


def _to_logprobs(tokens: Sequence[TokenLogprob]) -> tuple[Logprob, ...]:
    return tuple(
        Logprob(t.token, t.logprob, t.bytes, tuple(TopLogprob(o.token, o.logprob, o.bytes) for o in t.top))
        for t in tokens
    )


def to_usage_reply(usage: Usage) -> UsageReply:
    image_tokens = sum(usage.image_tokens)
    return UsageReply(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(
            cached_tokens=usage.cached_tokens,
            image_tokens=image_tokens,
            text_tokens=usage.prompt_tokens - image_tokens,
        ),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


# --- as frames -------------------------------------------------------------------------------------------------------


def to_frame(event: WireEvent) -> bytes:
    return to_named_event(event.type, event)


class Frames:
    """An answer as its stream is written, in the order of the wire contract, section 7."""

    def __init__(self, answer: Answer) -> None:
        self.finished: list[ChoiceEvent] = []
        self._answer = answer
        self._last: list[WireEvent] = []
        """The events that end it, which are not told before the response is kept."""

    def to_frames(self, item: Item) -> bytes:
        events = self._answer.feed(item)
        if isinstance(item, ChoiceEvent) and isinstance(item.event, Finish):
            self.finished.append(item)
            self._last = [events.pop()]
        return b"".join(map(to_frame, events))

    def end(self) -> bytes:
        return b"".join(map(to_frame, self._last)) + DONE

    def fail(self, error: Exception) -> None:
        """The answer has come to nothing: `to_error_frame` will tell."""
        self._last = self._answer.fail(error)

    def to_error_frame(self, error: Exception) -> bytes:
        """The error, then the response that failed; `[DONE]` all the same, for the event before it has said it all."""
        if not self._last:
            self.fail(error)
        return self.end()
