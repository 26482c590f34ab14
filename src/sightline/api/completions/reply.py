"""Completions: from events to what a client gets. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

from msgspec import UNSET, UnsetType

from sightline.api.chat.reply import Head, to_usage_reply
from sightline.api.chat.schema import UsageReply
from sightline.api.collected import Collected, to_usage
from sightline.api.completions.schema import Completion, CompletionChoice, CompletionLogprobs
from sightline.api.errors import to_error
from sightline.api.extension import Extension, to_extension
from sightline.api.sse import DONE, to_event
from sightline.items import ChoiceEvent, Item, Prepared
from sightline.types import Finish, ReasoningDelta, RefusalDelta, TextDelta, TokenLogprob, ToolCallDelta, Usage


@dataclass(slots=True)
class Echo:
    """What of a choice is known before and while it is made."""

    prefix: str = ""
    """The prompt, where it is to be repeated."""
    _decoder: codecs.IncrementalDecoder = field(default_factory=lambda: codecs.getincrementaldecoder("utf-8")("ignore"))
    _offset: int = 0

    def to_logprobs(self, tokens: Sequence[TokenLogprob]) -> CompletionLogprobs:
        """Of tokens that follow those of the call before. A token may be a part of a character, which belongs to the
        token that completes it."""
        offsets = []
        for token in tokens:
            offsets.append(len(self.prefix) + self._offset)
            self._offset += len(self._decoder.decode(bytes(token.bytes)))
        return CompletionLogprobs(
            text_offset=offsets,
            token_logprobs=[token.logprob for token in tokens],
            tokens=[token.token for token in tokens],
            top_logprobs=[{t.token: t.logprob for t in (*token.top, token)} for token in tokens],
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a request its reply repeats."""

    head: Head
    prefixes: tuple[str, ...]
    """For each prompt, what its choices begin with."""
    n: int
    """Choices of each prompt."""
    logprobs: bool

    @property
    def choices(self) -> int:
        return len(self.prefixes) * self.n

    def echo(self, index: int) -> Echo:
        return Echo(self.prefixes[index // self.n])

    def usage(self, finishes: Sequence[Finish]) -> Usage:
        """`finishes`: of all choices, by index. A prompt is counted once, whatever the number of its choices."""
        prompts = [to_usage(finishes[start : start + self.n]) for start in range(0, self.choices, self.n)]
        return reduce(_added, prompts)


def _added(a: Usage, b: Usage) -> Usage:
    return Usage(
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        completion_tokens=a.completion_tokens + b.completion_tokens,
        cached_tokens=a.cached_tokens + b.cached_tokens,
        reasoning_tokens=a.reasoning_tokens + b.reasoning_tokens,
    )


def to_completion(shape: Shape, answer: Collected) -> Completion:
    """The answer in one piece."""
    choices = []
    for index, choice in enumerate(answer.choices):
        echo = shape.echo(index)
        # A model that goes on with plain text has no other way to say something: nothing of it is lost.
        text = echo.prefix + choice.reasoning + choice.text + choice.refusal
        logprobs = echo.to_logprobs(choice.logprobs) if shape.logprobs else None
        choices.append(CompletionChoice(text=text, index=index, logprobs=logprobs, finish_reason=choice.finish.reason))
    extension = to_extension(answer.prepared, answer.finishes)
    return _completion(shape, choices, to_usage_reply(shape.usage(answer.finishes)), extension)


class Chunks:
    """Items of the service as frames of the stream: text, then for each choice a chunk with its finish reason, then
    usage if it is wanted, then `[DONE]`."""

    def __init__(self, shape: Shape, request_id: str, *, include_usage: bool) -> None:
        self.finished: list[ChoiceEvent] = []
        self._shape = shape
        self._request_id = request_id
        self._include_usage = include_usage
        self._prepared: Prepared | None = None
        self._echoes = [shape.echo(index) for index in range(shape.choices)]

    def to_frames(self, item: Item) -> bytes:
        if isinstance(item, Prepared):
            self._prepared = item
            return b"".join(self._frame(i, echo.prefix) for i, echo in enumerate(self._echoes) if echo.prefix)
        match item.event:
            case TextDelta(text=text, logprobs=tokens):
                if self._shape.logprobs and tokens:
                    return self._frame(item.index, text, self._echoes[item.index].to_logprobs(tokens))
                return self._frame(item.index, text) if text else b""
            case ReasoningDelta(text=text) | RefusalDelta(text=text):
                return self._frame(item.index, text)
            case ToolCallDelta():  # no tools were given
                return b""
            case Finish(reason=reason):
                self.finished.append(item)
                last = CompletionChoice(text="", index=item.index, finish_reason=reason)
                return to_event(self._chunk([last]))

    def end(self) -> bytes:
        assert self._prepared is not None, "the service yields Prepared first"
        assert len(self.finished) == self._shape.choices, "every choice ends with a Finish"
        if not self._include_usage:
            return DONE
        finishes = [e.event for e in sorted(self.finished, key=lambda e: e.index) if isinstance(e.event, Finish)]
        usage = to_usage_reply(self._shape.usage(finishes))
        return to_event(_completion(self._shape, [], usage, to_extension(self._prepared, finishes))) + DONE

    def to_error_frame(self, error: Exception) -> bytes:
        """In place of `end`; no `[DONE]`, so that nobody takes half an answer for a whole one."""
        return to_event(to_error(error, self._request_id))

    def _frame(self, index: int, text: str, logprobs: CompletionLogprobs | None = None) -> bytes:
        return to_event(self._chunk([CompletionChoice(text=text, index=index, logprobs=logprobs)]))

    def _chunk(self, choices: list[CompletionChoice]) -> Completion:
        return _completion(self._shape, choices, None if self._include_usage else UNSET, UNSET)


def _completion(
    shape: Shape,
    choices: list[CompletionChoice],
    usage: UsageReply | UnsetType | None,
    extension: Extension | UnsetType,
) -> Completion:
    return Completion(
        id=shape.head.id,
        created=shape.head.created,
        model=shape.head.model,
        system_fingerprint=shape.head.system_fingerprint,
        choices=choices,
        usage=usage,
        sightline=extension,
    )
