"""OpenAI's completions on the wire: plain text in, and what a model goes on with out.

Source: openai-openapi 2.3.0, `CreateCompletionRequest`, `CreateCompletionResponse`. `user` is ignored.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, UnsetType

from sightline.api.chat.schema import UsageReply
from sightline.api.extension import Extension
from sightline.api.fields import (
    boolean,
    integer,
    refused,
    string,
    texts_or_token_ids,
)
from sightline.api.sampling import SamplingFields
from sightline.types import FinishReason

MAX_PROMPTS = MAX_CHOICES = 128
MAX_TOKEN_IDS = 1_000_000

_prompt = texts_or_token_ids(string(), integer(0, 2**31 - 1), max_items=MAX_PROMPTS, max_token_ids=MAX_TOKEN_IDS)


class CompletionBody(SamplingFields, frozen=True, kw_only=True):
    model: Annotated[str, string(min_length=1)]
    prompt: Annotated[tuple[str | tuple[int, ...], ...], _prompt]
    """One text or up to 128, or their token ids. `n` choices for each, the first prompt's first."""
    max_tokens: Annotated[int, integer(1)] = 16
    best_of: Annotated[int | None, integer(1)] = None
    """Taken where it changes nothing: equal to `n`."""
    echo: Annotated[bool, boolean] = False
    """Begins each choice with its prompt, which must be text."""
    logprobs: Annotated[int | None, integer(0, 5)] = None
    suffix: Annotated[None, refused("models here go on from the prompt's end, and fill in nothing.")] = None
    prompt_embeds: Annotated[None, refused("send text or token ids.")] = None


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """A token in the same place of each list."""

    text_offset: list[int]
    """At which character of the choice's text each begins."""
    token_logprobs: list[float]
    tokens: list[str]
    top_logprobs: list[dict[str, float]]
    """The likeliest ones, and the token itself."""


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    text: str
    index: int
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    """Null in a stream until the choice's last chunk."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer, and each chunk of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str | UnsetType = UNSET
    choices: list[CompletionChoice]
    usage: UsageReply | UnsetType | None = UNSET
    sightline: Extension | UnsetType = UNSET
