"""What an engine's process and ours say to each other, in frames (`interprocess.py`).

A stream is known by a number that the parent gives it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from sightline.config import ModelConfig
from sightline.engines import EngineInfo
from sightline.interprocess import (
    WireError,
    WireRequest,
    from_vectors,
    from_wire_messages,
    laid_out,
    names_of,
    to_vectors,
    to_wire_messages,
    values_of,
)
from sightline.types import (
    EmbeddingRequest,
    Embeddings,
    EngineRequest,
    Event,
    Finish,
    Image,
    Pixels,
    ReasoningDelta,
    RefusalDelta,
    Samples,
    Segment,
    SpeechTask,
    TextDelta,
    TokenCount,
    ToolCallDelta,
    Transcribed,
    TranscriptionEvent,
    TranscriptionRequest,
)

WINDOW = 256
"""Events of one stream that may be on their way or wait for their consumer."""


class _Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# --- a request -------------------------------------------------------------------------------------------------------


class Picture(msgspec.Struct, frozen=True, array_like=True):
    """An `Image` without its pixels, and where they lie in the shared memory."""

    offset: int
    served_height: int
    served_width: int
    digest: str
    width: int
    height: int
    media_type: str
    num_bytes: int


class EngineWireRequest(WireRequest[Picture], frozen=True):
    """An `EngineRequest`, field for field (a test compares the two)."""

    timeout_s: float | None


_AS_THEY_ARE = names_of(EngineRequest, but="messages")


def to_wire(request: EngineRequest) -> tuple[EngineWireRequest, int]:
    """The request, its pictures laid out one after the other, and the bytes of shared memory that they take."""
    offsets, size = laid_out([image.pixels for image in request.images])
    following = iter(offsets)

    def picture(image: Image) -> Picture:
        return Picture(
            next(following), image.served_height, image.served_width, image.digest, image.width, image.height,
            image.media_type, image.num_bytes,
        )  # fmt: skip

    messages = to_wire_messages(request.messages, picture)
    return EngineWireRequest(messages=messages, **values_of(request, _AS_THEY_ARE)), size


def from_wire(wire: EngineWireRequest, pixels: Callable[[Picture], Pixels]) -> EngineRequest:
    """The request as it was; `pixels` gives a picture's."""

    def image(of: Picture) -> Image:
        return Image(pixels(of), of.digest, of.width, of.height, of.media_type, of.num_bytes)

    messages = from_wire_messages(wire.messages, image)
    return EngineRequest(messages=messages, **values_of(wire, _AS_THEY_ARE))


class WireTranscription(msgspec.Struct, frozen=True):
    """A `TranscriptionRequest`, field for field (a test compares the two), but that its samples are only counted."""

    request_id: str
    model: str
    samples: int
    task: SpeechTask
    language: str | None
    prompt: str
    temperature: float
    word_times: bool
    logprobs: bool


_SPOKEN = names_of(TranscriptionRequest, but="samples")


def to_wire_transcription(request: TranscriptionRequest) -> WireTranscription:
    return WireTranscription(samples=len(request.samples), **values_of(request, _SPOKEN))


def from_wire_transcription(wire: WireTranscription, samples: Samples) -> TranscriptionRequest:
    return TranscriptionRequest(samples=samples, **values_of(wire, _SPOKEN))


# --- to the child ----------------------------------------------------------------------------------------------------


class Start(_Frame, frozen=True):
    """The first frame, once."""

    config: ModelConfig
    target: str
    """`EngineEntry.target`: the parent has looked it up."""


class Generate(_Frame, frozen=True):
    """With `shared_bytes`, the descriptor of that much shared memory comes beside it."""

    stream: int
    request: EngineWireRequest
    shared_bytes: int


class Count(_Frame, frozen=True):
    """Counts a prompt's tokens. Its pictures have sizes only."""

    stream: int
    request: EngineWireRequest


class Embed(_Frame, frozen=True):
    stream: int
    request: EmbeddingRequest


class Transcribe(_Frame, frozen=True):
    """The descriptor of the samples comes beside it."""

    stream: int
    request: WireTranscription


class Cancel(_Frame, frozen=True):
    stream: int


class Credit(_Frame, frozen=True):
    """The consumer has taken this many events: as many more may be sent."""

    stream: int
    events: int


class Ping(_Frame, frozen=True):
    number: int


class Close(_Frame, frozen=True):
    pass


ToChild: TypeAlias = Start | Generate | Count | Embed | Transcribe | Cancel | Credit | Ping | Close


# --- to the parent ---------------------------------------------------------------------------------------------------


class Loading(_Frame, frozen=True):
    progress: float


class Ready(_Frame, frozen=True):
    info: EngineInfo


class NotReady(_Frame, frozen=True):
    """The engine could not start; the child ends."""

    error: WireError


class Counted(_Frame, frozen=True):
    stream: int
    count: TokenCount


class Embedded(_Frame, frozen=True):
    """`Embeddings`; the vectors as little-endian float32, row by row."""

    stream: int
    vectors: bytes
    rows: int
    prompt_tokens: int


class Failed(_Frame, frozen=True):
    """The last frame of a stream that did not finish."""

    stream: int
    error: WireError


class Pong(_Frame, frozen=True):
    number: int
    measures: dict[str, float] = {}
    """As the engine's `Measures` tells them at that moment."""


# An event travels in a frame of its own kind, because msgspec tells structs apart by their tag, and events have none.


class SaidText(_Frame, frozen=True):
    stream: int
    event: TextDelta


class SaidReasoning(_Frame, frozen=True):
    stream: int
    event: ReasoningDelta


class SaidToolCall(_Frame, frozen=True):
    stream: int
    event: ToolCallDelta


class SaidRefusal(_Frame, frozen=True):
    stream: int
    event: RefusalDelta


class Finished(_Frame, frozen=True):
    """The last frame of a stream that did."""

    stream: int
    event: Finish


class Heard(_Frame, frozen=True):
    stream: int
    event: Segment


class HeardAll(_Frame, frozen=True):
    """The last frame of a transcription that did not fail."""

    stream: int
    event: Transcribed


Said: TypeAlias = SaidText | SaidReasoning | SaidToolCall | SaidRefusal | Finished | Heard | HeardAll
ToParent: TypeAlias = Loading | Ready | NotReady | Counted | Embedded | Failed | Pong | Said

_SAID: dict[type[Any], Callable[[int, Any], Said]] = {
    TextDelta: SaidText,
    ReasoningDelta: SaidReasoning,
    ToolCallDelta: SaidToolCall,
    RefusalDelta: SaidRefusal,
    Finish: Finished,
    Segment: Heard,
    Transcribed: HeardAll,
}


def said(stream: int, event: Event | TranscriptionEvent) -> Said:
    return _SAID[type(event)](stream, event)


def embedded(stream: int, embeddings: Embeddings) -> Embedded:
    return Embedded(stream, *to_vectors(embeddings), embeddings.prompt_tokens)


def to_embeddings(frame: Embedded) -> Embeddings:
    return from_vectors(frame.vectors, frame.rows, frame.prompt_tokens)


# --- bytes -----------------------------------------------------------------------------------------------------------

_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_to_parent: msgspec.msgpack.Decoder[ToParent] = msgspec.msgpack.Decoder(ToParent)
decode_to_child = _to_child.decode
decode_to_parent = _to_parent.decode
