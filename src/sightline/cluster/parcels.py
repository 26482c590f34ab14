"""Requests to a replica and what comes back, as bytes: frames of `engines/worker/frames.py`, which belong to stream 0.

Pixels and samples stand behind their frame, because there is no shared memory between machines.
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
import numpy as np

from sightline.engines import EngineInfo
from sightline.engines.worker import frames
from sightline.engines.worker.pictures import size_only
from sightline.errors import EngineFailed, SightlineError
from sightline.interprocess import LENGTH_BYTES, body_length, encode, from_wire_error, to_wire_error
from sightline.types import (
    EmbeddingRequest,
    Embeddings,
    EngineRequest,
    Event,
    Pixels,
    TokenCount,
    TranscriptionEvent,
    TranscriptionRequest,
)

STREAM = 0
_SAMPLE = np.dtype("<f4")

FrameT = TypeVar("FrameT")


# --- requests --------------------------------------------------------------------------------------------------------


def from_request(request: EngineRequest) -> bytes:
    """Copies pixels: not for the event loop where there are pictures."""
    wire, size = frames.to_wire(request)
    head = encode(frames.Generate(STREAM, wire, size))
    parcel = bytearray(len(head) + size)
    parcel[: len(head)] = head
    end = len(head)
    pictures = (part for m in wire.messages for part in m.content if isinstance(part, frames.Picture))
    for picture, image in zip(pictures, request.images, strict=True):
        end = len(head) + picture.offset
        parcel[end : end + image.pixels.nbytes] = np.ascontiguousarray(image.pixels).data.cast("B")
    return bytes(parcel)


def to_request(parcel: bytes) -> EngineRequest:
    """The pixels are views of the parcel, read-only. Raises `EngineFailed` for nonsense."""
    frame, behind = _read(parcel, frames.Generate)

    def pixels(picture: frames.Picture) -> Pixels:
        shape = (picture.served_height, picture.served_width, 3)
        return np.frombuffer(parcel, np.uint8, shape[0] * shape[1] * 3, behind + picture.offset).reshape(shape)

    return frames.from_wire(frame.request, pixels)


def from_count(request: EngineRequest) -> bytes:
    """Sizes of pictures only: what a prompt costs does not depend on more."""
    return encode(frames.Count(STREAM, frames.to_wire(request)[0]))


def to_count(parcel: bytes) -> EngineRequest:
    return frames.from_wire(_read(parcel, frames.Count)[0].request, size_only)


def from_embedding(request: EmbeddingRequest) -> bytes:
    return encode(frames.Embed(STREAM, request))


def to_embedding(parcel: bytes) -> EmbeddingRequest:
    return _read(parcel, frames.Embed)[0].request


def from_transcription(request: TranscriptionRequest) -> bytes:
    head = encode(frames.Transcribe(STREAM, frames.to_wire_transcription(request)))
    return head + np.ascontiguousarray(request.samples, _SAMPLE).tobytes()


def to_transcription(parcel: bytes) -> TranscriptionRequest:
    frame, behind = _read(parcel, frames.Transcribe)
    samples = np.frombuffer(parcel[behind:], _SAMPLE, frame.request.samples)
    return frames.from_wire_transcription(frame.request, samples)


def _read(parcel: bytes, kind: type[FrameT]) -> tuple[FrameT, int]:
    """A request's frame, and where what stands behind it begins."""
    end = LENGTH_BYTES + body_length(parcel[:LENGTH_BYTES])
    frame = frames.decode_to_child(parcel[LENGTH_BYTES:end])
    if not isinstance(frame, kind):
        raise EngineFailed("The replica was sent something else than it was asked for.")
    return frame, end


# --- answers ---------------------------------------------------------------------------------------------------------


def from_info(info: EngineInfo) -> bytes:
    return encode(frames.Ready(info))


def from_counted(count: TokenCount) -> bytes:
    return encode(frames.Counted(STREAM, count))


def from_embeddings(embeddings: Embeddings) -> bytes:
    return encode(frames.embedded(STREAM, embeddings))


def from_event(event: Event | TranscriptionEvent) -> bytes:
    return encode(frames.said(STREAM, event))


def from_error(error: SightlineError) -> bytes:
    return encode(frames.Failed(STREAM, to_wire_error(error)))


def to_answer(parcel: bytes) -> Any:
    """What a replica said: an `EngineInfo`, a `TokenCount`, `Embeddings` or an event. Raises what it failed with."""
    try:
        frame = frames.decode_to_parent(parcel[LENGTH_BYTES:])
    except msgspec.MsgspecError:
        raise EngineFailed("A replica sent what cannot be read: it may be of another version.") from None
    match frame:
        case frames.Ready(info):
            return info
        case frames.Counted(_, count):
            return count
        case frames.Embedded():
            return frames.to_embeddings(frame)
        case frames.Failed(_, error):
            raise from_wire_error(error)
        case frames.Loading() | frames.NotReady() | frames.Pong():
            raise EngineFailed("A replica sent what is not for us.")
        case _:
            return frame.event
