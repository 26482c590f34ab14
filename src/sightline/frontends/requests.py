"""Requests as they travel from a front end to the core.

A picture does not: what travels is where it stands, and its pixels come, at the size that the core asks for, when the
core asks for them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec

from sightline.interprocess import WireRequest, from_wire_messages, names_of, to_wire_messages, values_of
from sightline.types import AudioRef, ChatRequest, Detail, ImageRef, SpeechRequest, SpeechTask

_TELLING = 48
"""Characters of a picture's source that travel, so that the core can tell requests that are alike."""


class Ref(msgspec.Struct, frozen=True, array_like=True):
    """An `ImageRef` without its source, which stays with the front end."""

    telling: str
    param: str
    detail: Detail
    max_pixels: int | None
    min_pixels: int | None


class WireChat(WireRequest[Ref], frozen=True):
    """A `ChatRequest`, field for field (a test compares the two)."""

    n: int
    whole: bool


_AS_THEY_ARE = names_of(ChatRequest, but="messages")


def to_wire_chat(request: ChatRequest) -> WireChat:
    def ref(image: ImageRef) -> Ref:
        return Ref(_to_telling(image), image.param, image.detail, image.max_pixels, image.min_pixels)

    messages = to_wire_messages(request.messages, ref)
    return WireChat(messages=messages, **values_of(request, _AS_THEY_ARE))


def from_wire_chat(wire: WireChat, source: Callable[[int, Ref], str]) -> ChatRequest:
    """The request as the core sees it; `source` gives what stands for a picture's, by its place among them."""
    places = itertools.count()

    def image(ref: Ref) -> ImageRef:
        return ImageRef(source(next(places), ref), ref.param, ref.detail, ref.max_pixels, ref.min_pixels)

    messages = from_wire_messages(wire.messages, image)
    return ChatRequest(messages=messages, **values_of(wire, _AS_THEY_ARE))


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


_SPOKEN = names_of(SpeechRequest, but="audio")


def to_wire_speech(request: SpeechRequest) -> WireSpeech:
    return WireSpeech(num_bytes=len(request.audio.file), param=request.audio.param, **values_of(request, _SPOKEN))


def from_wire_speech(wire: WireSpeech, file: bytes) -> SpeechRequest:
    return SpeechRequest(audio=AudioRef(file, wire.param), **values_of(wire, _SPOKEN))
