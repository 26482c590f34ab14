"""How an answer is to be sampled: the fields that OpenAI's dialects share.

CommonFields      of all three
SamplingFields    those, and what chat completions and completions have beside them
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import msgspec

from sightline.api.fields import (
    array,
    boolean,
    described,
    integer,
    invalid,
    mapping,
    number,
    string,
    struct,
    to_schema,
)
from sightline.types import SamplingParams

INT64 = 2**63
MAX_STOPS = 4

_one_stop = string(min_length=1)
_stops = array(_one_stop, max_length=MAX_STOPS)


@described({"anyOf": [to_schema(_one_stop), to_schema(_stops)]})
def _stop(value: Any, at: str) -> tuple[str, ...]:
    return (_one_stop(value, at),) if isinstance(value, str) else _stops(value, at)


@described({"type": "object", "additionalProperties": to_schema(number(-100, 100))})
def _logit_bias(value: Any, at: str) -> dict[int, float]:
    bias = {}
    for token, weight in mapping(value, at).items():
        if not (token.isascii() and token.isdecimal() and len(token) <= 10):
            raise invalid(at, f"must have token ids for keys, not {token[:20]!r}")
        bias[int(token)] = number(-100, 100)(weight, f"{at}.{token}")
    return bias


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    include_usage: Annotated[bool, boolean] = False
    include_obfuscation: Annotated[bool, boolean] = False
    """Padding against an observer who counts bytes: checked, and not done."""


class CommonFields(msgspec.Struct, frozen=True, kw_only=True):
    temperature: Annotated[float, number(0, 2)] = 1.0
    top_p: Annotated[float, number(0, 1)] = 1.0
    presence_penalty: Annotated[float, number(-2, 2)] = 0.0
    frequency_penalty: Annotated[float, number(-2, 2)] = 0.0
    stream: Annotated[bool, boolean] = False
    stream_options: Annotated[StreamOptions | None, struct(StreamOptions)] = None

    # Ours (wire contract, section 13).
    top_k: Annotated[int, integer(-1)] = 0
    """0 and, as some clients have it, -1: off."""
    min_p: Annotated[float, number(0, 1)] = 0.0
    repetition_penalty: Annotated[float, number(0, 2, above=True)] = 1.0
    min_tokens: Annotated[int, integer(0)] = 0
    ignore_eos: Annotated[bool, boolean] = False
    stop_token_ids: Annotated[tuple[int, ...], array(integer(0, 2**31 - 1), max_length=128)] = ()
    priority: Annotated[int, integer(-10, 10)] = 0


class SamplingFields(CommonFields, frozen=True, kw_only=True):
    n: Annotated[int, integer(1)] = 1
    stop: Annotated[tuple[str, ...], _stop] = ()
    seed: Annotated[int | None, integer(-INT64, INT64 - 1)] = None
    logit_bias: Annotated[dict[int, float], _logit_bias] = {}


def to_sampling(
    fields: SamplingFields, *, max_tokens: int | None, logprobs: int | None, max_choices: int
) -> SamplingParams:
    """Raises `InvalidRequest` for what the fields say only together, or with the server's `max_choices`."""
    if fields.n > max_choices:
        raise invalid("n", f"must be between 1 and {max_choices}, not {fields.n}")
    common = to_common_sampling(fields, max_tokens=max_tokens, logprobs=logprobs)
    return replace(common, seed=fields.seed, stop=fields.stop, logit_bias=fields.logit_bias)


def to_common_sampling(fields: CommonFields, *, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
    """Raises `InvalidRequest` for what the fields say only together."""
    if fields.stream_options is not None and not fields.stream:
        raise invalid("stream_options", "is only for requests with 'stream' set to true")
    if max_tokens is not None and fields.min_tokens > max_tokens:
        raise invalid("min_tokens", f"must not be above the bound of {max_tokens} tokens for the whole answer")
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=fields.temperature,
        top_p=fields.top_p,
        top_k=max(0, fields.top_k),
        min_p=fields.min_p,
        stop_token_ids=fields.stop_token_ids,
        min_tokens=fields.min_tokens,
        ignore_eos=fields.ignore_eos,
        presence_penalty=fields.presence_penalty,
        frequency_penalty=fields.frequency_penalty,
        repetition_penalty=fields.repetition_penalty,
        logprobs=logprobs,
    )
