"""Ollama's API: from events to what a client gets, errors included. Pure, but for the clock."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from msgspec import UNSET
from starlette.responses import Response

from sightline.api import errors
from sightline.api.collected import Collected
from sightline.api.ollama.schema import (
    CalledFunction,
    ErrorReply,
    Line,
    Logprob,
    MessageReply,
    ToolCallReply,
    TopLogprob,
)
from sightline.api.sse import Framing
from sightline.api.wire import json_response
from sightline.errors import EngineFailed
from sightline.items import ChoiceEvent, Item, Prepared
from sightline.jsonlines import to_line
from sightline.types import (
    Finish,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    Timing,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

FRAMING = Framing("application/x-ndjson", ping=None)


@dataclass(frozen=True, slots=True)
class Head:
    """What a reply says of its request."""

    model: str
    """As the client wrote it."""
    chat: bool
    """Else `/api/generate`."""
    thinking: bool = True
    """Whether thoughts are shown."""
    logprobs: bool = False
    started: float = 0.0
    """When the request arrived, by `time.perf_counter`."""
    loaded: bool = True
    """Whether the model was, when the request arrived."""

    def to_line(
        self,
        content: str = "",
        thinking: str = "",
        calls: Sequence[ToolCallReply] = (),
        logprobs: Sequence[TokenLogprob] = (),
        **end: Any,
    ) -> Line:
        told = [_to_logprob(p) for p in logprobs] if self.logprobs and logprobs else UNSET
        thoughts = thinking if thinking and self.thinking else UNSET
        line: dict[str, Any] = {"response": content, "thinking": thoughts}
        if self.chat:
            message = MessageReply(content=content, thinking=thoughts, tool_calls=list(calls) or UNSET)
            line = {"message": message}
        return Line(model=self.model, created_at=now(), logprobs=told, **line, **end)


def now() -> str:
    return to_time(time.time())


def to_time(seconds: float) -> str:
    """Unix seconds as RFC 3339 has them, with a fraction."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def to_nothing(head: Head, reason: Literal["load", "unload"]) -> Line:
    """The answer to a request that asks nothing."""
    return head.to_line(done=True, done_reason=reason)


# --- an answer in one piece -------------------------------------------------------------------------------------------


def to_answer(head: Head, answer: Collected) -> Line:
    (choice,) = answer.choices
    total_s = time.perf_counter() - head.started
    return head.to_line(
        choice.text + choice.refusal,
        choice.reasoning,
        [_to_call(index, call) for index, call in enumerate(choice.tool_calls)],
        choice.logprobs,
        **_to_end(head, answer.prepared, choice.finish, total_s - choice.finish.timing.decode_s, total_s),
    )


def _to_call(index: int, call: ToolCall) -> ToolCallReply:
    """Raises `EngineFailed` for arguments that are no object: this API has no room for them as they are."""
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise EngineFailed(
            f"The model called the tool {call.name[:64]!r} with arguments that are not a JSON object, or was cut off "
            "in them. Ask again, or raise num_predict."
        )
    return ToolCallReply(id=call.id, function=CalledFunction(index=index, name=call.name, arguments=arguments))


def _to_logprob(logprob: TokenLogprob) -> Logprob:
    top = [TopLogprob(token=t.token, logprob=t.logprob, bytes=t.bytes) for t in logprob.top]
    return Logprob(token=logprob.token, logprob=logprob.logprob, bytes=logprob.bytes, top_logprobs=top or UNSET)


def _to_end(head: Head, prepared: Prepared, finish: Finish, begun_s: float, total_s: float) -> dict[str, Any]:
    """The fields of the last line. `begun_s` and `total_s`: from the request's arrival to its first event, and to its
    last."""
    timing, usage = finish.timing, finish.usage
    waited_s = prepared.fetch_s + prepared.decode_s + prepared.queue_s + timing.queue_s
    prompt_s = timing.encode_s + timing.prefill_s
    # An engine that tells no times is taken to have spent all that nothing else took on the answer.
    eval_s = timing.decode_s if timing != Timing() else total_s - waited_s
    load_s = 0.0 if head.loaded else begun_s - waited_s - prompt_s
    return {
        "done": True,
        "done_reason": "length" if finish.reason == "length" else "stop",
        "total_duration": _to_ns(total_s),
        "load_duration": _to_ns(load_s),
        "prompt_eval_count": usage.prompt_tokens,
        "prompt_eval_duration": _to_ns(prompt_s),
        "eval_count": usage.completion_tokens,
        "eval_duration": _to_ns(eval_s),
    }


def _to_ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


# --- an answer as it comes --------------------------------------------------------------------------------------------


class Lines:
    """Items of the service as lines of JSON. A tool call is told when it is whole."""

    def __init__(self, head: Head, request_id: str) -> None:
        self.finished: list[ChoiceEvent] = []
        self._head = head
        self._request_id = request_id
        self._prepared: Prepared | None = None
        self._begun_s = 0.0
        self._finish: Finish | None = None
        self._call: list[ToolCallDelta] = []
        """The pieces of the one that is being made."""
        self._num_calls = 0

    def to_frames(self, item: Item) -> bytes:
        if isinstance(item, Prepared):
            self._prepared = item
            self._begun_s = time.perf_counter() - self._head.started
            return b""
        match item.event:
            case TextDelta(text=text, logprobs=logprobs):
                return to_line(self._head.to_line(text, logprobs=logprobs)) if text or logprobs else b""
            case RefusalDelta(text=text):
                return to_line(self._head.to_line(text))
            case ReasoningDelta(text=text):
                return to_line(self._head.to_line(thinking=text)) if self._head.thinking else b""
            case ToolCallDelta() as delta:
                ended = self._end_call() if self._call and delta.index != self._call[0].index else b""
                self._call.append(delta)
                return ended
            case Finish() as finish:
                self.finished.append(item)
                self._finish = finish
                return self._end_call()

    def end(self) -> bytes:
        assert self._prepared is not None, "the service yields Prepared first"
        assert self._finish is not None, "every choice ends with a Finish"
        total_s = time.perf_counter() - self._head.started
        return to_line(self._head.to_line(**_to_end(self._head, self._prepared, self._finish, self._begun_s, total_s)))

    def to_error_frame(self, error: Exception) -> bytes:
        return to_line(to_error(error, self._request_id))

    def _end_call(self) -> bytes:
        if not self._call:
            return b""
        first, arguments = self._call[0], "".join(delta.arguments for delta in self._call)
        index, self._num_calls = self._num_calls, self._num_calls + 1
        self._call = []
        call = _to_call(index, ToolCall(first.id or "", first.name or "", arguments))
        return to_line(self._head.to_line(calls=[call]))


# --- errors ----------------------------------------------------------------------------------------------------------

_WORDS: Mapping[str, str] = {
    "/v1/models": "/api/tags",
    "frequency_penalty": "options.frequency_penalty",
    "max_tokens": "options.num_predict",
    "min_p": "options.min_p",
    "num_predict": "options.num_predict",
    "presence_penalty": "options.presence_penalty",
    "repetition_penalty": "options.repeat_penalty",
    "response_format": "format",
    "seed": "options.seed",
    "stop": "options.stop",
    "top_k": "options.top_k",
}


def to_error(error: Exception, request_id: str) -> ErrorReply:
    return ErrorReply(errors.to_message(error, request_id, _WORDS))


def to_error_response(error: Exception, request_id: str) -> Response:
    return json_response(to_error(error, request_id), errors.to_status(error), errors.to_headers(error))
