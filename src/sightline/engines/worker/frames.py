"""What the two processes say to each other, and how it looks on the wire: 4 bytes of length, then msgpack.

A stream is known by a number that the parent gives it. Values of `types.py` travel as they are; only what msgspec
cannot tell apart or should not copy has a form of its own here: message parts, pixels and errors.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any, TypeAlias

import msgspec
import numpy as np

from sightline import errors
from sightline.config import ModelConfig
from sightline.engines import EngineInfo
from sightline.errors import EngineFailed, SightlineError
from sightline.types import (
    EmbeddingRequest,
    Embeddings,
    EngineRequest,
    Event,
    Finish,
    Image,
    Message,
    Pixels,
    ReasoningDelta,
    RefusalDelta,
    ResponseFormat,
    Role,
    Samples,
    SamplingParams,
    Segment,
    SpeechTask,
    Text,
    TextDelta,
    TokenCount,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Transcribed,
    TranscriptionEvent,
    TranscriptionRequest,
)

WINDOW = 256
"""Events of one stream that may be on their way or wait for their consumer."""
MAX_FRAME_BYTES = 256 * 1024 * 1024
"""A longer one is nonsense. (A request's text can be as long as a body may be; pixels are not in frames.)"""

_FLOAT = np.dtype("<f4")
_LENGTH = struct.Struct("<I")
LENGTH_BYTES = _LENGTH.size


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


class WireMessage(msgspec.Struct, frozen=True, array_like=True):
    role: Role
    content: tuple[str | Picture, ...]
    tool_calls: tuple[ToolCall, ...]
    tool_call_id: str | None
    name: str | None


class WireRequest(msgspec.Struct, frozen=True):
    """An `EngineRequest`, field for field (a test compares the two)."""

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
    timeout_s: float | None


_PLAIN_FIELDS = [f.name for f in fields(EngineRequest) if f.name != "messages"]
_ALIGNMENT = 64
"""Bytes: pixels begin on a cache line."""


def to_wire(request: EngineRequest) -> tuple[WireRequest, int]:
    """The request, its pictures laid out one after the other, and the bytes of shared memory that they take."""
    end = 0

    def part(content: Text | Image) -> str | Picture:
        nonlocal end
        if isinstance(content, Text):
            return content.text
        offset = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = offset + content.pixels.nbytes
        return Picture(
            offset, content.served_height, content.served_width, content.digest, content.width, content.height,
            content.media_type, content.num_bytes,
        )  # fmt: skip

    messages = tuple(
        WireMessage(m.role, tuple(map(part, m.content)), m.tool_calls, m.tool_call_id, m.name)
        for m in request.messages
    )  # fmt: skip
    return WireRequest(messages=messages, **{name: getattr(request, name) for name in _PLAIN_FIELDS}), end


def from_wire(wire: WireRequest, pixels: Callable[[Picture], Pixels]) -> EngineRequest:
    """The request as it was; `pixels` gives a picture's."""

    def part(content: str | Picture) -> Text | Image:
        if isinstance(content, str):
            return Text(content)
        return Image(
            pixels(content), content.digest, content.width, content.height, content.media_type, content.num_bytes
        )  # fmt: skip

    messages = tuple(
        Message[Image](m.role, tuple(map(part, m.content)), m.tool_calls, m.tool_call_id, m.name)
        for m in wire.messages
    )  # fmt: skip
    return EngineRequest(messages=messages, **{name: getattr(wire, name) for name in _PLAIN_FIELDS})


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


_SPOKEN_FIELDS = [f.name for f in fields(TranscriptionRequest) if f.name != "samples"]


def to_wire_transcription(request: TranscriptionRequest) -> WireTranscription:
    return WireTranscription(
        samples=len(request.samples), **{name: getattr(request, name) for name in _SPOKEN_FIELDS}
    )  # fmt: skip


def from_wire_transcription(wire: WireTranscription, samples: Samples) -> TranscriptionRequest:
    return TranscriptionRequest(samples=samples, **{name: getattr(wire, name) for name in _SPOKEN_FIELDS})


# --- an error --------------------------------------------------------------------------------------------------------


class WireError(msgspec.Struct, frozen=True, array_like=True):
    name: str
    message: str
    fields: dict[str, Any]


_ERRORS = {
    name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, SightlineError)
}  # fmt: skip


def to_wire_error(error: SightlineError) -> WireError:
    """By the name of its class, or of the nearest one in the error tree."""
    name = next(c.__name__ for c in type(error).__mro__ if _ERRORS.get(c.__name__) is c)
    plain = {k: v for k, v in vars(error).items() if v is None or isinstance(v, str | int | float)}
    return WireError(name, error.message, plain)


def from_wire_error(wire: WireError) -> SightlineError:
    error = _ERRORS.get(wire.name, EngineFailed)(wire.message)
    vars(error).update(wire.fields)
    return error


# --- to the child ----------------------------------------------------------------------------------------------------


class Start(_Frame, frozen=True):
    """The first frame, once."""

    config: ModelConfig
    target: str
    """`EngineEntry.target`: the parent has looked it up."""


class Generate(_Frame, frozen=True):
    """With `shared_bytes`, the descriptor of that much shared memory comes beside it."""

    stream: int
    request: WireRequest
    shared_bytes: int


class Count(_Frame, frozen=True):
    """Counts a prompt's tokens. Its pictures have sizes only."""

    stream: int
    request: WireRequest


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
    vectors = np.ascontiguousarray(embeddings.vectors, _FLOAT)
    return Embedded(stream, vectors.tobytes(), len(vectors), embeddings.prompt_tokens)


def to_embeddings(frame: Embedded) -> Embeddings:
    return Embeddings(np.frombuffer(frame.vectors, _FLOAT).reshape(frame.rows, -1), frame.prompt_tokens)


# --- bytes -----------------------------------------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()
_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_to_parent: msgspec.msgpack.Decoder[ToParent] = msgspec.msgpack.Decoder(ToParent)
decode_to_child = _to_child.decode
decode_to_parent = _to_parent.decode


def encode(frame: ToChild | ToParent) -> bytes:
    """Length and body. Raises `ValueError` for a frame over `MAX_FRAME_BYTES`."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes")
    return _LENGTH.pack(len(body)) + body


def body_length(length: bytes) -> int:
    """How long the body is, from the `LENGTH_BYTES` before it. Raises `ValueError` for nonsense."""
    (size,) = _LENGTH.unpack(length)
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes")
    return int(size)


class Bodies:
    """Cuts a stream of bytes, as they come, into the bodies of frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Raises `ValueError` for nonsense."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= LENGTH_BYTES:
                body = start + LENGTH_BYTES
                end = body + body_length(bytes(self._buffer[start:body]))
                if len(self._buffer) < end:
                    break
                start = end
                yield bytes(self._buffer[body:end])
        finally:
            del self._buffer[:start]
