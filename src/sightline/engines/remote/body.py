"""From a request to the body that a server gets: allow-listed fields, each in its range. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from sightline.engines.remote.kinds import Kind
from sightline.errors import InvalidRequest, UnsupportedFeature
from sightline.types import EngineRequest, Image, Message, SamplingParams, Text, Tool, ToolChoice

_INT64 = 2**63
_BREAK = "\u200b"
"""Zero width space: seen by no reader, and part of no special token."""


@dataclass(frozen=True, slots=True)
class Part:
    """How one picture is sent: as bytes, by a name, or both."""

    data_uri: str | None = None
    uuid: str | None = None


class Specials:
    """Texts that a server takes for special tokens, wherever a client writes them; broken up, they are plain text.

    A server that is given strings tokenises templates and content alike: without this, a client could write turns of
    the assistant or pictures that are not there (vLLM CVE-2025-46560 began so).
    """

    def __init__(self, texts: Sequence[str]) -> None:
        # A single character cannot be broken up; no vocabulary gives one a meaning that a client must not have.
        longest_first = sorted({text for text in texts if len(text) > 1}, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def broken(self, value: Any) -> Any:
        """A value of JSON with every text in it broken up where it must be, also the keys of objects."""
        if self._pattern is None:
            return value
        match value:
            case str():
                while True:  # two that overlap are two matches, one after the other
                    text = self._pattern.sub(lambda m: m[0][:1] + _BREAK + m[0][1:], value)
                    if text == value or len(text) == 0:
                        return text
                    value = text
            case Mapping():
                return {self.broken(key): self.broken(item) for key, item in value.items()}
            case list() | tuple():
                return [self.broken(item) for item in value]
            case _:
                return value


def to_body(
    request: EngineRequest, model: str, kind: Kind, parts: Sequence[Part], specials: Specials
) -> dict[str, Any]:
    """The fields of a streamed chat completion. `parts` are the request's pictures, in order.

    Raises `UnsupportedFeature` or `InvalidRequest` for what this kind of server has no field for.
    """
    return {
        **kind.constants,
        **to_prompt(request, model, parts, specials),
        **_renamed(_sampling(request.sampling, kind), kind),
        **_response_format(request),
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def to_completion_body(request: EngineRequest, model: str, kind: Kind, specials: Specials, room: int) -> dict[str, Any]:
    """The fields of a streamed completion of plain text. `room`: tokens for the answer, where the request names no
    number: servers would take 16.

    Raises as `to_body`, and `UnsupportedFeature` for token ids that the server would not check.
    """
    if not isinstance(request.prompt, str) and not kind.checks_ids:
        raise UnsupportedFeature(
            "The server behind this model is given texts only: its special tokens could be among token ids.",
            param="prompt",
        )
    fields = _sampling(request.sampling, kind)
    max_tokens = fields.pop("max_tokens", room)  # the newer name of it is the chat's alone
    if fields.pop("logprobs", False):
        fields["logprobs"] = _within(fields.pop("top_logprobs"), 0, 5, "logprobs")
    return {
        **kind.constants,
        "model": model,
        "prompt": specials.broken(request.prompt) if isinstance(request.prompt, str) else request.prompt,
        **_renamed(fields, kind),
        "max_tokens": max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def to_prompt(request: EngineRequest, model: str, parts: Sequence[Part], specials: Specials) -> dict[str, Any]:
    """The fields that make the prompt."""
    remaining = iter(parts)
    messages = [_to_message(message, remaining, specials) for message in request.messages]
    return {"model": model, "messages": messages, **_tools(request, specials)}


def encode(body: Mapping[str, Any]) -> bytes:
    """Raises `InvalidRequest` for text that is no Unicode."""
    try:
        return msgspec.json.encode(body)
    except (UnicodeEncodeError, ValueError, TypeError, OverflowError, RecursionError):
        raise InvalidRequest("The request holds a value that cannot be passed on to the model's server.") from None


def spliced(body: Mapping[str, Any], texts: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """The encoded body in pieces, with a text in place of each mark: so pictures are neither looked at nor copied.

    The marks, in the order in which they stand in the body, are what nobody can have written; the texts are what JSON
    writes without escapes. Raises as `encode`.
    """
    pieces, rest = [], encode(body)
    for mark, text in texts:
        before, found, rest = rest.partition(mark.encode())
        assert found, "every mark stands in the body"
        pieces += [before, text]
    return [*pieces, rest]


# --- messages --------------------------------------------------------------------------------------------------------


def _to_message(message: Message[Image], parts: Iterator[Part], specials: Specials) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": _to_content(message, parts, specials)}
    if message.name is not None:
        fields["name"] = specials.broken(message.name)
    if message.tool_call_id is not None:
        fields["tool_call_id"] = specials.broken(message.tool_call_id)
    if message.tool_calls:
        fields["content"] = fields["content"] or None
        fields["tool_calls"] = [
            {
                "id": specials.broken(call.id),
                "type": "function",
                "function": specials.broken({"name": call.name, "arguments": call.arguments}),
            }
            for call in message.tool_calls
        ]
    return fields


def _to_content(message: Message[Image], parts: Iterator[Part], specials: Specials) -> Any:
    """Texts side by side become one, so that no special token is made of two."""
    content: list[Any] = []
    for piece in message.content:
        if not isinstance(piece, Text):
            content.append(_to_picture(next(parts)))
        elif content and isinstance(content[-1], str):
            content[-1] += piece.text
        else:
            content.append(piece.text)
    content = [specials.broken(piece) if isinstance(piece, str) else piece for piece in content]
    if all(isinstance(piece, str) for piece in content):
        return "".join(content)
    return [{"type": "text", "text": piece} if isinstance(piece, str) else piece for piece in content]


def _to_picture(part: Part) -> dict[str, Any]:
    """`detail: high` asks for the picture's own size, which is already what the model is to see."""
    picture: dict[str, Any] = {"type": "image_url", "image_url": None}
    if part.data_uri is not None:
        picture["image_url"] = {"url": part.data_uri, "detail": "high"}
    if part.uuid is not None:
        picture["uuid"] = part.uuid
    return picture


# --- fields ----------------------------------------------------------------------------------------------------------


def _sampling(s: SamplingParams, kind: Kind) -> dict[str, Any]:
    """Only what differs from the default: a server may not know the rest."""
    fields: dict[str, Any] = {
        "temperature": _within(s.temperature, 0, 2, "temperature"),
        "top_p": _within(s.top_p, 0, 1, "top_p"),
    }
    optional: dict[str, tuple[Any, Any, float, float]] = {  # value, default, least, most
        "max_tokens": (s.max_tokens, None, 1, _INT64 - 1),
        "seed": (s.seed, None, -_INT64, _INT64 - 1),
        "top_k": (s.top_k, 0, 0, 2**31 - 1),
        "min_p": (s.min_p, 0.0, 0, 1),
        "min_tokens": (s.min_tokens, 0, 0, _INT64 - 1),
        "presence_penalty": (s.presence_penalty, 0.0, -2, 2),
        "frequency_penalty": (s.frequency_penalty, 0.0, -2, 2),
        "repetition_penalty": (s.repetition_penalty, 1.0, 0, 2),
    }
    for name, (value, default, least, most) in optional.items():
        if value != default:
            fields[name] = _within(value, least, most, name)
    if s.ignore_eos:
        fields["ignore_eos"] = True
    if s.stop_token_ids:
        fields["stop_token_ids"] = [_within(token, 0, 2**31 - 1, "stop_token_ids") for token in s.stop_token_ids]
    if s.logit_bias:
        biases = s.logit_bias.items()
        fields["logit_bias"] = {str(token): _within(bias, -100, 100, "logit_bias") for token, bias in biases}
    if s.logprobs is not None:
        fields |= {"logprobs": True, "top_logprobs": _within(s.logprobs, 0, 20, "top_logprobs")}
    if kind.stops != "here" and (stops := [stop for stop in s.stop if stop]):
        fields["stop"] = stops
    return fields


def _renamed(fields: dict[str, Any], kind: Kind) -> dict[str, Any]:
    for name in kind.lacks & fields.keys():
        raise UnsupportedFeature(f"The server behind this model has no field for {name}.", param=name)
    return {kind.names.get(name, name): value for name, value in fields.items()}


def _within(value: float, least: float, most: float, param: str) -> float:
    if not (math.isfinite(value) and least <= value <= most):
        raise InvalidRequest(f"'{param}' must be between {least:g} and {most:g}.", param=param)
    return value


def _tools(request: EngineRequest, specials: Specials) -> dict[str, Any]:
    choice, tools = request.tool_choice, request.tools
    if not tools:
        return {}
    if choice.names:  # those alone: not every server knows how to be told which of several it may call
        tools = tuple(tool for tool in tools if tool.name in choice.names)
    functions = [specials.broken(_function(tool)) for tool in tools]
    return {
        "tools": [{"type": "function", "function": function} for function in functions],
        "tool_choice": _tool_choice(choice),
        **({} if choice.parallel else {"parallel_tool_calls": False}),
    }


def _function(tool: Tool) -> dict[str, Any]:
    fields: dict[str, Any] = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {**fields, "strict": True} if tool.strict else fields


def _tool_choice(choice: ToolChoice) -> Any:
    if choice.mode == "required" and len(choice.names) == 1:
        return {"type": "function", "function": {"name": choice.names[0]}}
    return choice.mode


def _response_format(request: EngineRequest) -> dict[str, Any]:
    wanted = request.response_format
    if wanted.kind == "text":
        return {}
    if wanted.kind == "json_object":
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "answer", "schema": wanted.schema or {}, "strict": wanted.strict}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}
