"""What differs between servers that speak chat completions: a row each. Data, and pure readings of their replies.

Sources: each server's documentation and code as of November 2026. Which rows have met their server is told in
docs/engine-remote.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sightline.engines import FEATURES, Work

Reading = Callable[[Any, str], bool]
"""A decoded reply, and the upstream's name of the model: whether the model can be asked."""


@dataclass(frozen=True, slots=True)
class Kind:
    """Paths that begin with a slash are from the server's root, others from the base URL, which ends in `/v1`."""

    features: frozenset[str]
    """Of `FEATURES`: what it honours; an operator may say less or more of one server."""
    state: str
    """Path that tells of the model, in JSON; `{model}` is its name."""
    is_ready: Reading
    health: str | None = None
    """Path that answers 200 when requests are taken."""
    context_length: Callable[[Any, str], Any] = lambda reply, model: None
    """From the reply to `state`, where it tells; not checked."""
    work: frozenset[Work] = frozenset({"messages"})
    """What its models do, where neither it nor the operator says."""
    told_work: Callable[[Any, str], Any] = lambda reply, model: None
    """From the reply to `state`, where it tells; not checked."""
    checks_ids: bool = False
    """Whether token ids can be passed on: it refuses those of special tokens."""
    counts: Literal["input_tokens", "total", "tokenize"] | None = None
    """How it counts a prompt; None: not at all. See counting.py."""
    stops: Literal["told", "here", "sent"] = "sent"
    """Who watches for stop strings. `told`: it, and says which one it met. `sent`: it, and does not say. `here`: we,
    who close the stream at the first, because it would not say, and tells or counts tokens all the same."""
    shortens: bool = False
    """An answer for which the context has no room is cut shorter in silence, where others refuse it."""
    uuids: bool = False
    """A picture part may have a `uuid`, and later be named by that alone."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Fields that have other names there."""
    lacks: frozenset[str] = frozenset()
    """Fields of a feature it honours otherwise that it does not have."""
    hangs_up: bool = False
    """It closes the connection after a stream without having said so: another request would be lost on it."""
    constants: Mapping[str, Any] = field(default_factory=dict)
    """Fields that every request has, unless it says otherwise itself."""


def _answers(reply: Any, model: str) -> bool:
    return reply is not None


def _listed(reply: Any, model: str) -> bool:
    return _model(reply, model) is not None


def _model(reply: Any, model: str) -> Any:
    """The row of `GET /v1/models` that is about this model."""
    rows = reply.get("data") if isinstance(reply, dict) else None
    return next((row for row in _rows(rows) if row.get("id") == model), None)


def _rows(value: Any) -> list[dict[str, Any]]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _max_model_len(reply: Any, model: str) -> Any:
    return (_model(reply, model) or {}).get("max_model_len")


def _available(reply: Any, model: str) -> bool:
    """OVMS is ready before its models are, and stays so when one fails: only this tells."""
    status = reply.get(model) if isinstance(reply, dict) else None
    versions = status.get("model_version_status") if isinstance(status, dict) else None
    return any(version.get("state") == "AVAILABLE" for version in _rows(versions))


def _sightline(reply: Any) -> dict[str, Any]:
    report = reply.get("sightline") if isinstance(reply, dict) else None
    return report if isinstance(report, dict) else {}


def _slot_context(reply: Any, model: str) -> Any:
    settings = reply.get("default_generation_settings") if isinstance(reply, dict) else None
    return settings.get("n_ctx") if isinstance(settings, dict) else None


_OPENAI = frozenset({"seed", "penalties", "logit_bias", "logprobs", "tools", "json_object", "json_schema"})
_TEXT: frozenset[Work] = frozenset({"messages", "completions"})

KINDS: Mapping[str, Kind] = {
    "openai": Kind(
        features=_OPENAI | {"parallel_tool_calls"},
        state="models",
        is_ready=_answers,  # not every provider lists every model that it serves
        names={"max_tokens": "max_completion_tokens"},
        lacks=frozenset({"repetition_penalty"}),
    ),
    "sightline": Kind(
        features=FEATURES,
        state="models/{model}",
        is_ready=lambda reply, model: _sightline(reply).get("state") == "ready",
        context_length=lambda reply, model: _sightline(reply).get("context_length"),
        told_work=lambda reply, model: _sightline(reply).get("work"),
        checks_ids=True,
        counts="input_tokens",
        stops="here",
    ),
    "vllm": Kind(
        features=FEATURES,
        state="models",
        is_ready=_listed,
        health="/health",
        context_length=_max_model_len,
        work=_TEXT,
        counts="tokenize",
        stops="told",
        shortens=True,
        uuids=True,
    ),
    "llamacpp": Kind(
        features=_OPENAI | {"parallel_tool_calls", "top_k", "min_p", "ignore_eos"},
        state="/props",
        is_ready=_answers,
        health="/health",
        context_length=_slot_context,
        work=_TEXT,
        counts="total",
        stops="here",
        shortens=True,
        hangs_up=True,
        names={"repetition_penalty": "repeat_penalty"},
        # It would keep 40 tokens, with at least a twentieth of the likeliest one's probability, and divide by the
        # temperature last.
        constants={
            "timings_per_token": True,
            "top_k": 0,
            "min_p": 0.0,
            "samplers": ("penalties", "temperature", "top_k", "top_p", "min_p"),
        },
    ),
    "ovms": Kind(
        features=frozenset({"seed", "top_k", "penalties", "ignore_eos", "tools", "json_schema"}),
        state="/v1/config",
        is_ready=_available,
        work=_TEXT,
    ),
    "sglang": Kind(
        features=FEATURES,
        state="models",
        is_ready=_listed,
        health="/health",
        context_length=_max_model_len,
        work=_TEXT,
        stops="told",
    ),
    "lmdeploy": Kind(
        features=_OPENAI | {"top_k", "min_p", "ignore_eos"},
        state="models",
        is_ready=_listed,
        health="/health",
        work=_TEXT,
    ),
}
