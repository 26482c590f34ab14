"""Turns of Anthropic's messages: roles, content blocks, pictures. Pure; no picture is fetched or decoded here.

| role | blocks |
|---|---|
| user | text, image, tool_result (text, image) |
| assistant | text, tool_use, thinking, redacted_thinking (the last two are read and left out: models think anew) |
| system | text |

A `tool_result` becomes a message of its own, of the role `tool`, where it stood.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec

from sightline.api.fields import (
    Schema,
    boolean,
    described,
    invalid,
    mapping,
    missing,
    one_of,
    read,
    string,
    struct,
    tagged,
    wrong_type,
)
from sightline.config import HttpLimits
from sightline.errors import UnsupportedFeature
from sightline.types import FileId, ImageRef, Message, Role, Text, ToolCall

_BLOCKS = {
    "user": ("text", "image", "tool_result"),
    "assistant": ("text", "tool_use", "thinking", "redacted_thinking"),
    "system": ("text",),
    "tool_result": ("text", "image"),
}
_KNOWN = frozenset(kind for kinds in _BLOCKS.values() for kind in kinds)
_INSTEAD = {
    "document": "send its pages as pictures, or its text as a text block.",
    "search_result": "send its text as a text block.",
    "container_upload": "this server has no containers.",
}


def to_messages(system: Any, turns: Sequence[Any], limits: HttpLimits) -> tuple[Message[ImageRef], ...]:
    """`turns` are one or more. Raises `InvalidRequest` or `UnsupportedFeature`, with `param`, for the first fault."""
    if len(turns) > limits.max_messages:
        raise invalid("messages", f"must have at most {limits.max_messages} items, and has {len(turns)}")
    if (blocks := sum(map(_count_blocks, turns))) > limits.max_parts:
        raise invalid("messages", f"must have at most {limits.max_parts} content blocks together, and has {blocks}")
    told = () if system is None else _to_texts(system, "system")
    messages = [Message[ImageRef]("system", told)] if told else []
    calls: set[str] = set()
    for index, value in enumerate(turns):
        at = f"messages[{index}]"
        messages += _to_turn(read(TurnBody, value, at), at, calls)
    if messages[-1].role == "assistant":
        raise UnsupportedFeature(
            "The last message is the assistant's, which asks that the answer goes on where it ends; that is not "
            "supported. End with a user message.",
            param=f"messages[{len(turns) - 1}].role",
        )
    return tuple(messages)


def _count_blocks(value: Any) -> int:
    """Of a turn, or of a tool's result."""
    content = value.get("content") if isinstance(value, dict) else None
    return sum(1 + _count_blocks(block) for block in content) if isinstance(content, list) else 0


# --- turns -----------------------------------------------------------------------------------------------------------


def _contents() -> Schema:
    block = [
        tagged(TextBody, "text"),
        tagged(Picture, "image"),
        tagged(ToolUse, "tool_use"),
        tagged(ToolResult, "tool_result"),
        tagged(Thinking, "thinking"),
        tagged(RedactedThinking, "redacted_thinking"),
    ]
    return {"anyOf": [{"type": "string"}, {"type": "array", "items": {"anyOf": block}}]}


@described(_contents)
def _content(value: Any, at: str) -> Any:
    if not isinstance(value, str | list):
        raise wrong_type(at, "a string or an array of blocks", value)
    return value


class TurnBody(msgspec.Struct, frozen=True, kw_only=True):
    role: Annotated[Any, one_of("user", "assistant", "system")]
    content: Annotated[Any, _content]


def _to_turn(turn: TurnBody, at: str, calls: set[str]) -> Iterator[Message[ImageRef]]:
    """The messages that a turn is. `calls` are the ids of all tool calls so far."""
    role: Role = turn.role
    place = f"{at}.content"
    if isinstance(turn.content, str):
        yield Message(role, (Text(turn.content),))
        return
    if not turn.content:
        raise invalid(place, "must have 1 or more items")
    content: list[Text | ImageRef] = []
    made: list[ToolCall] = []
    for index, block in enumerate(turn.content):
        here = f"{place}[{index}]"
        match _kind(block, here, turn.role):
            case "tool_result":
                if content:
                    yield Message(role, tuple(content))
                    content = []
                yield _to_result(read(ToolResult, block, here), here, calls)
            case "tool_use":
                made.append(_to_call(read(ToolUse, block, here)))
                calls.add(made[-1].id)
            case "thinking":
                read(Thinking, block, here)
            case "redacted_thinking":
                read(RedactedThinking, block, here)
            case kind:
                content.append(_to_part(kind, block, here))
    if content or role != "user":
        yield Message(role, tuple(content), tuple(made))


def _kind(block: Any, at: str, where: str) -> str:
    """The type of a block, which `where`, a role or a tool's result, can hold."""
    kind = read(BlockType, block, at).type
    if kind in _BLOCKS[where]:
        return kind
    if kind in _KNOWN:
        holder = "the result of a tool" if where == "tool_result" else f"a message of the role {where!r}"
        raise invalid(f"{at}.type", f"cannot be {kind!r} in {holder}")
    reason = _INSTEAD.get(kind, "send text and pictures.")
    raise UnsupportedFeature(f"Blocks of the type {kind[:64]!r} are not supported: {reason}", param=f"{at}.type")


# --- blocks ----------------------------------------------------------------------------------------------------------


class BlockType(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, string()]


class TextBody(msgspec.Struct, frozen=True, kw_only=True):
    text: Annotated[str, string()]


SYSTEM: Schema = {"anyOf": [{"type": "string"}, {"type": "array", "items": tagged(TextBody, "text")}]}
"""The system prompt."""


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    thinking: Annotated[str, string()]
    signature: Annotated[str, string()] = ""


class RedactedThinking(msgspec.Struct, frozen=True, kw_only=True):
    data: Annotated[str, string()]


class ToolUse(msgspec.Struct, frozen=True, kw_only=True):
    id: Annotated[str, string(min_length=1)]
    name: Annotated[str, string(min_length=1)]
    input: Annotated[dict[str, Any], mapping]


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    tool_use_id: Annotated[str, string(min_length=1)]
    content: Annotated[Any, _content] = ()
    is_error: Annotated[bool, boolean] = False


class Source(msgspec.Struct, frozen=True, kw_only=True):
    type: Annotated[str, one_of("base64", "url", "file")]
    media_type: Annotated[str | None, string()] = None
    """Not believed: the bytes say what they are."""
    data: Annotated[str | None, string()] = None
    url: Annotated[str | None, string(min_length=1)] = None
    file_id: Annotated[str | None, string(min_length=1)] = None
    """Of a file at `/v1/files`."""


class Transformations(msgspec.Struct, frozen=True, kw_only=True):
    oversized_image: Annotated[str, one_of("downsize", "error")] = "downsize"


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    source: Annotated[Source, struct(Source)]
    transformations: Annotated[Transformations, struct(Transformations)] = Transformations()


def _to_texts(value: Any, at: str) -> tuple[Text, ...]:
    """Of the system prompt: a string, or text blocks. None of an empty one, which some clients send for none."""
    content = _content(value, at)
    if isinstance(content, str):
        return (Text(content),) if content else ()
    for index, block in enumerate(content):
        _kind(block, f"{at}[{index}]", "system")
    return tuple(Text(read(TextBody, block, f"{at}[{index}]").text) for index, block in enumerate(content))


def _to_part(kind: str, block: Any, at: str) -> Text | ImageRef:
    return Text(read(TextBody, block, at).text) if kind == "text" else _to_image_ref(read(Picture, block, at), at)


def _to_image_ref(picture: Picture, at: str) -> ImageRef:
    source, place = picture.source, f"{at}.source"
    if picture.transformations.oversized_image == "error":
        raise UnsupportedFeature(
            "A picture that is larger than the model sees is always scaled down; leave out 'oversized_image', or say "
            "'downsize'.",
            param=f"{at}.transformations.oversized_image",
        )
    match source.type:
        case "base64":
            if source.data is None:
                raise missing(f"{place}.data")
            return ImageRef(f"data:;base64,{source.data}", f"{place}.data")
        case "url":
            if source.url is None:
                raise missing(f"{place}.url")
            return ImageRef(source.url, f"{place}.url")
        case _:
            if source.file_id is None:
                raise missing(f"{place}.file_id")
            return ImageRef(FileId(source.file_id), f"{place}.file_id")


def _to_call(block: ToolUse) -> ToolCall:
    return ToolCall(block.id, block.name, json.dumps(block.input, ensure_ascii=False))


def _to_result(block: ToolResult, at: str, calls: set[str]) -> Message[ImageRef]:
    if block.tool_use_id not in calls:
        raise invalid(f"{at}.tool_use_id", "must be the id of a 'tool_use' block in an earlier message")
    # Chat templates know no failed results; this way the model is told all the same.
    content: list[Text | ImageRef] = [Text("Error: ")] if block.is_error else []
    if isinstance(block.content, str):
        content.append(Text(block.content))
    else:
        for index, inner in enumerate(block.content):
            place = f"{at}.content[{index}]"
            content.append(_to_part(_kind(inner, place, "tool_result"), inner, place))
    return Message("tool", tuple(content), tool_call_id=block.tool_use_id)
