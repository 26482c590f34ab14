"""From the chunks of a streamed chat completion to our events. Pure.

Source: openai-openapi 2.3.0, `CreateChatCompletionStreamResponse`; vLLM's `stop_reason` and `reasoning`, SGLang's
`matched_stop`, llama.cpp's `timings`. Nothing is believed: numbers are in their ranges, an end is said once, and a
stream that does not say its end, and then `[DONE]`, is a broken one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, Any, cast

import msgspec

from sightline.engines.remote.failures import status_in_stream, to_error, to_refusal
from sightline.engines.remote.sse import ServerEvent
from sightline.engines.stops import StopStrings
from sightline.errors import UpstreamFailed
from sightline.types import (
    Delta,
    FinishReason,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_REASONS: Mapping[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_UNLIKELY = -9999.0
_MAX_CALLS = 128


class _Top(msgspec.Struct):
    token: str
    logprob: float
    bytes: tuple[Annotated[int, msgspec.Meta(ge=0, le=255)], ...] | None = None


class _Logprob(_Top):
    top_logprobs: tuple[_Top, ...] = ()


class _Logprobs(msgspec.Struct):
    """A chat's `content`; or a completion's lists, in which a token has the same place in each."""

    content: tuple[_Logprob, ...] | None = None
    tokens: tuple[str, ...] = ()
    token_logprobs: tuple[float | None, ...] = ()
    top_logprobs: tuple[dict[str, float] | None, ...] | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: Annotated[int, msgspec.Meta(ge=0, lt=_MAX_CALLS)] = 0
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: tuple[_Call, ...] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    """Of a completion."""
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    matched_stop: str | int | None = None


class _PromptDetails(msgspec.Struct):
    cached_tokens: _Count | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: _Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: _Count = 0
    completion_tokens: _Count = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Timings(msgspec.Struct):
    """llama.cpp's: what of the prompt was computed and what was at hand, and what has been made so far."""

    prompt_n: _Count = 0
    cache_n: _Count = 0
    predicted_n: _Count = 0


class _Chunk(msgspec.Struct):
    choices: tuple[_Choice, ...] = ()
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


@dataclass(slots=True)
class _Held:
    """A token that is in no delta yet: the character at which it begins."""

    start: int
    logprobs: tuple[TokenLogprob, ...]
    num_tokens: int


class Answer:
    """One stream. `take` its events until `done`; then `reason`, `stop_sequence` and `usage` hold."""

    def __init__(self, request_id: str, *, stops: tuple[str, ...] = (), min_tokens: int = 0) -> None:
        """`stops`: those that the server does not watch for. What comes before `min_tokens` is not looked at."""
        self.reason: FinishReason | None = None
        self.stop_sequence: str | None = None
        self.usage: Usage | None = None
        """As the server counted, without pictures; None: it has not told."""
        self.num_tokens = 0
        """Made, as far as chunks tell: one each, or as many as have log-probabilities."""
        self.done = False
        self.cut = False
        """Done because we met a stop: the server has more to say."""
        self._request_id = request_id
        self._watches = bool(stops)
        self._stops = StopStrings(stops)
        self._min_tokens = min_tokens
        self._held: list[_Held] = []
        self._num_chars = 0
        self._num_shown = 0
        self._calls: set[int] = set()

    def take(self, event: ServerEvent) -> list[Delta]:
        """Raises what the server's error means, or `UpstreamFailed` for what makes no sense."""
        if self.done:
            raise _nonsense()
        if event.data.strip() == "[DONE]":
            if self.reason is None:
                raise UpstreamFailed("The server behind this model ended its answer without saying why.")
            self.done = True
            return []
        try:
            chunk = _decoder.decode(event.data)
        except (msgspec.MsgspecError, UnicodeError):
            raise _nonsense() from None
        if chunk.error is not None or event.event == "error":
            raise to_error(to_refusal(status_in_stream(chunk.error), chunk.error))
        if chunk.usage is not None or chunk.timings is not None:
            self._count(chunk)
        if len(chunk.choices) == 1:
            return self._choice(chunk.choices[0])
        return [delta for choice in chunk.choices for delta in self._choice(choice)]

    def broke_off(self) -> UpstreamFailed:
        """What it means that no more comes before `done`."""
        return UpstreamFailed("The server behind this model broke off its answer.")

    # --- parts of a chunk ----------------------------------------------------------------------------------------

    def _count(self, chunk: _Chunk) -> None:
        if (told := chunk.usage) is not None:
            cached = told.prompt_tokens_details and told.prompt_tokens_details.cached_tokens
            reasoning = told.completion_tokens_details and told.completion_tokens_details.reasoning_tokens
            self.usage = Usage(
                told.prompt_tokens,
                told.completion_tokens,
                cached_tokens=min(cached or 0, told.prompt_tokens),
                reasoning_tokens=min(reasoning or 0, told.completion_tokens),
            )
        elif (timings := chunk.timings) is not None and self.reason is None:
            prompt = timings.prompt_n + timings.cache_n
            self.usage = Usage(prompt, timings.predicted_n, cached_tokens=timings.cache_n)

    def _choice(self, choice: _Choice) -> list[Delta]:
        if choice.index != 0:
            raise _nonsense()
        deltas = self._deltas(choice)
        if deltas and self.reason is not None:
            raise _nonsense()
        if self._watches or self.done:
            shown = [shown for delta in deltas for shown in self._watched(delta)]
        else:
            self.num_tokens += sum([delta.num_tokens for delta in deltas])
            shown = deltas
        if choice.finish_reason is not None and not self.done:
            shown += self._end(choice, choice.finish_reason)
        return shown

    def _deltas(self, choice: _Choice) -> list[Delta]:
        logprobs = _to_logprobs(choice.logprobs) if choice.logprobs is not None else ()
        d = choice.delta or (None if choice.text is None else _Delta(choice.text))
        if d is None:
            return []
        deltas: list[Delta] = []
        if thought := d.reasoning_content or d.reasoning:
            deltas.append(ReasoningDelta(thought))
        text = d.content or ""
        if choice.finish_reason == "stop" and _ends_in_more_than(logprobs, text):
            # The token that ended it, which vLLM tells: it was made, and is no part of the answer.
            logprobs = logprobs[:-1]
            self.num_tokens += 1
        if text or logprobs:
            deltas.append(TextDelta(text, len(logprobs) or 1, logprobs))
        if d.refusal:
            deltas.append(RefusalDelta(d.refusal))
        if d.tool_calls:
            deltas += [self._call(call) for call in d.tool_calls]
        return deltas

    def _call(self, call: _Call) -> ToolCallDelta:
        """`id` and `name` come with the first delta of a call, here and only here."""
        name = call.function.name if call.function else None
        arguments = (call.function.arguments if call.function else None) or ""
        if call.index in self._calls:
            return ToolCallDelta(call.index, arguments)
        if not name:
            raise _nonsense()
        self._calls.add(call.index)
        return ToolCallDelta(call.index, arguments, call.id or f"call_{self._request_id}_{call.index}", name)

    def _end(self, choice: _Choice, said: str) -> list[Delta]:
        reason = _REASONS.get(said)
        if reason is None:  # `abort`, `error`, and what we do not know, are no ends of an answer
            raise UpstreamFailed("The server behind this model did not finish its answer.")
        if self.reason is not None:  # said again, as some do beside their usage; but not otherwise
            if reason != self.reason:
                raise _nonsense()
            return []
        self.reason = reason
        told = choice.stop_reason if choice.stop_reason is not None else choice.matched_stop
        if reason == "stop" and isinstance(told, str):
            self.stop_sequence = told
        return self._flushed()

    # --- stop strings that we watch for --------------------------------------------------------------------------

    def _watched(self, delta: Delta) -> list[Delta]:
        if self.done:  # the rest of a chunk in which we have met a stop
            return []
        self.num_tokens += delta.num_tokens
        if not isinstance(delta, TextDelta):
            return [*self._flushed(), delta]
        self._held.append(_Held(self._num_chars, delta.logprobs, delta.num_tokens))
        self._num_chars += len(delta.text)
        early = self.num_tokens < self._min_tokens
        safe, stop = (delta.text, None) if early else self._stops.push(delta.text)
        shown = self._shown(safe)
        if stop is not None:
            self.reason, self.stop_sequence, self.done, self.cut = "stop", stop, True, True
        return shown

    def _shown(self, text: str) -> list[Delta]:
        """With the text go the tokens that begin in it; those of a stop string are never told."""
        self._num_shown += len(text)
        told = [held for held in self._held if held.start < self._num_shown or held.start == self._num_chars]
        if not text and not any(held.logprobs for held in told):
            return []
        del self._held[: len(told)]
        logprobs = tuple(logprob for held in told for logprob in held.logprobs)
        return [TextDelta(text, sum(held.num_tokens for held in told), logprobs)]

    def _flushed(self) -> list[Delta]:
        return self._shown(rest) if (rest := self._stops.flush()) else []


def joined(deltas: Sequence[Delta]) -> list[Delta]:
    """The same with texts that stand side by side as one."""
    if len(deltas) < 2:
        return list(deltas)
    parts: list[Delta] = []
    for kind, run in groupby(deltas, type):
        if kind is not TextDelta:
            parts += run
            continue
        texts = cast(list[TextDelta], list(run))
        logprobs = tuple(logprob for delta in texts for logprob in delta.logprobs)
        parts.append(TextDelta("".join(d.text for d in texts), sum(d.num_tokens for d in texts), logprobs))
    return parts


def with_pictures(usage: Usage, image_tokens: tuple[int, ...], prompt_tokens: int | None = None) -> Usage:
    """Usage with what each picture costs; zeros where that is more than the whole prompt, and so cannot be right."""
    if prompt_tokens is not None:
        usage = replace(usage, prompt_tokens=prompt_tokens)
    if sum(image_tokens) > usage.prompt_tokens:
        image_tokens = (0,) * len(image_tokens)
    return replace(usage, image_tokens=image_tokens, images_cached=(False,) * len(image_tokens))


def _ends_in_more_than(logprobs: Sequence[TokenLogprob], text: str) -> bool:
    """Whether the last of these tokens is not in the text, which the others are."""
    return bool(logprobs) and b"".join(bytes(p.bytes) for p in logprobs[:-1]) == text.encode()


def _to_logprobs(said: _Logprobs) -> tuple[TokenLogprob, ...]:
    if not said.tokens:
        return tuple(map(_to_logprob, said.content or ()))
    if len(said.token_logprobs) != len(said.tokens) or len(said.top_logprobs or said.tokens) != len(said.tokens):
        raise _nonsense()
    tops = said.top_logprobs or (None,) * len(said.tokens)
    return tuple(
        _to_logprob(_Logprob(token, _UNLIKELY if p is None else p, None, tuple(_Top(*t) for t in (top or {}).items())))
        for token, p, top in zip(said.tokens, said.token_logprobs, tops, strict=True)
    )


def _to_logprob(said: _Logprob) -> TokenLogprob:
    tops = tuple(TokenLogprob(t.token, _in_range(t.logprob), _bytes(t)) for t in said.top_logprobs)
    return TokenLogprob(said.token, _in_range(said.logprob), _bytes(said), tops)


def _in_range(logprob: float) -> float:
    return min(0.0, max(_UNLIKELY, logprob))


def _bytes(said: _Top) -> tuple[int, ...]:
    return said.bytes if said.bytes is not None else tuple(said.token.encode("utf-8", "replace"))


def _nonsense() -> UpstreamFailed:
    return UpstreamFailed("The server behind this model sent what is no answer.")
