"""Requests as they travel from a front end to the core.

A picture does not: what travels is where it stands, and its pixels come, at the size that the core asks for, when the
core asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import msgspec

from sightline.types import (
    AudioRef,
    ChatRequest,
    Detail,
    ImageRef,
    Message,
    ResponseFormat,
    Role,
    SamplingParams,
    SpeechRequest,
    SpeechTask,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
)

_TELLING = 48
"""Characters of a picture's source that travel, so that the core can tell requests that are alike."""
_ALIGNMENT = 64
"""Bytes: pixels begin on a cache line."""


class Ref(msgspec.Struct, frozen=True, array_like=True):
    """An `ImageRef` without its source, which stays with the front end."""

    telling: str
    param: str
    detail: Detail
    max_pixels: int | None
    min_pixels: int | None


class WireMessage(msgspec.Struct, frozen=True, array_like=True):
    role: Role
    content: tuple[str | Ref, ...]
    tool_calls: tuple[ToolCall, ...]
    tool_call_id: str | None
    name: str | None


class WireChat(msgspec.Struct, frozen=True):
    """A `ChatRequest`, field for field (a test compares the two)."""

    request_id: str
    model: str
    messages: tuple[WireMessage, ...]
    sampling: SamplingParams
    tools: tuple[Tool, ...]
    tool_choice: ToolChoice
    response_format: ResponseFormat
    priority: int
    tenant: str
    prompt: str | tuple[int, ...] | None
    n: int
    whole: bool


_PLAIN_FIELDS = [f.name for f in fields(ChatRequest) if f.name != "messages"]


def to_wire_chat(request: ChatRequest) -> WireChat:
    def part(content: Text | ImageRef) -> str | Ref:
        if isinstance(content, Text):
            return content.text
        return Ref(_to_telling(content), content.param, content.detail, content.max_pixels, content.min_pixels)

    messages = tuple(
        WireMessage(m.role, tuple(map(part, m.content)), m.tool_calls, m.tool_call_id, m.name)
        for m in request.messages
    )  # fmt: skip
    return WireChat(messages=messages, **{name: getattr(request, name) for name in _PLAIN_FIELDS})


def from_wire_chat(wire: WireChat, source: Callable[[int, Ref], str]) -> ChatRequest:
    """The request as the core sees it; `source` gives what stands for a picture's, by its place among them."""
    place = -1

    def part(content: str | Ref) -> Text | ImageRef:
        nonlocal place
        if isinstance(content, str):
            return Text(content)
        place += 1
        return ImageRef(
            source(place, content), content.param, content.detail, content.max_pixels, content.min_pixels
        )  # fmt: skip

    messages = tuple(
        Message[ImageRef](m.role, tuple(map(part, m.content)), m.tool_calls, m.tool_call_id, m.name)
        for m in wire.messages
    )  # fmt: skip
    return ChatRequest(messages=messages, **{name: getattr(wire, name) for name in _PLAIN_FIELDS})


def _to_telling(ref: ImageRef) -> str:
    end = ref.source[-_TELLING:]
    return f"{len(ref.source)}:{end if isinstance(end, str) else end.hex()}"


class WireSpeech(msgspec.Struct, frozen=True):
    """A `SpeechRequest`, field for field (a test compares the two), but that its file is only measured."""

    request_id: str
    model: str
    num_bytes: int
    param: str
    task: SpeechTask
    language: str | None
    prompt: str
    temperature: float
    word_times: bool
    logprobs: bool


_SPOKEN_FIELDS = [f.name for f in fields(SpeechRequest) if f.name != "audio"]


def to_wire_speech(request: SpeechRequest) -> WireSpeech:
    same = {name: getattr(request, name) for name in _SPOKEN_FIELDS}
    return WireSpeech(num_bytes=len(request.audio.file), param=request.audio.param, **same)


def from_wire_speech(wire: WireSpeech, file: bytes) -> SpeechRequest:
    return SpeechRequest(
        audio=AudioRef(file, wire.param), **{name: getattr(wire, name) for name in _SPOKEN_FIELDS}
    )  # fmt: skip


def laid_out(pictures: Sequence[Any]) -> tuple[list[int], int]:
    """Where pictures lie in shared memory, one after the other but each array once; and the bytes that they take."""
    offsets: list[int] = []
    places: dict[int, int] = {}
    end = 0
    for array in pictures:
        place = places.get(id(array))
        if place is None:
            place = places[id(array)] = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = place + array.nbytes
        offsets.append(place)
    return offsets, end
