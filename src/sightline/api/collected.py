"""A stream of the service as one value: what every dialect makes an answer in one piece of. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sightline.items import Item, Prepared
from sightline.types import (
    Delta,
    Finish,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
    Usage,
)


@dataclass(frozen=True, slots=True)
class CollectedChoice:
    text: str
    refusal: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    """In the order in which the model began them."""
    logprobs: tuple[TokenLogprob, ...]
    """Of the text's tokens."""
    finish: Finish


@dataclass(frozen=True, slots=True)
class Collected:
    prepared: Prepared
    choices: tuple[CollectedChoice, ...]
    """By index."""

    @property
    def finishes(self) -> tuple[Finish, ...]:
        return tuple(choice.finish for choice in self.choices)

    @property
    def usage(self) -> Usage:
        return to_usage(self.finishes)


def to_collected(items: Iterable[Item], *, n: int = 1) -> Collected:
    """`items`: a whole stream of the service, of a request for `n` choices."""
    prepared: Prepared | None = None
    events: list[list[Delta | Finish]] = [[] for _ in range(n)]
    for item in items:
        if isinstance(item, Prepared):
            prepared = item
        else:
            events[item.index].append(item.event)
    assert prepared is not None, "the service yields Prepared first"
    return Collected(prepared, tuple(_to_choice(of_choice) for of_choice in events))


def _to_choice(events: Sequence[Delta | Finish]) -> CollectedChoice:
    finish = events[-1] if events else None
    assert isinstance(finish, Finish), "every choice ends with a Finish"
    return CollectedChoice(
        text="".join(e.text for e in events if isinstance(e, TextDelta)),
        refusal="".join(e.text for e in events if isinstance(e, RefusalDelta)),
        reasoning="".join(e.text for e in events if isinstance(e, ReasoningDelta)),
        tool_calls=_to_tool_calls([e for e in events if isinstance(e, ToolCallDelta)]),
        logprobs=tuple(p for e in events if isinstance(e, TextDelta) for p in e.logprobs),
        finish=finish,
    )


def _to_tool_calls(deltas: Sequence[ToolCallDelta]) -> tuple[ToolCall, ...]:
    ids: dict[int, str] = {}
    names: dict[int, str] = {}
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        if delta.id is not None:
            ids[delta.index] = delta.id
        if delta.name is not None:
            names[delta.index] = delta.name
        arguments.setdefault(delta.index, []).append(delta.arguments)
    return tuple(ToolCall(ids[i], names[i], "".join(arguments[i])) for i in sorted(arguments))


def to_usage(finishes: Sequence[Finish]) -> Usage:
    """The usage of a whole request. Its choices share one prompt, which is counted once; what only some of them found
    in a cache was computed for this request all the same."""
    usages = [f.usage for f in finishes]
    return Usage(
        prompt_tokens=usages[0].prompt_tokens,
        completion_tokens=sum(u.completion_tokens for u in usages),
        image_tokens=usages[0].image_tokens,
        images_cached=tuple(all(hits) for hits in zip(*(u.images_cached for u in usages), strict=False)),
        cached_tokens=min(u.cached_tokens for u in usages),
        reasoning_tokens=sum(u.reasoning_tokens for u in usages),
    )
