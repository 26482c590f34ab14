"""How values travel between processes of ours, whichever two they are: a frame is 4 bytes of length, then msgpack.

Values of `types.py` travel as they are; only what msgspec cannot tell apart or should not copy has a form here: parts
of messages, errors, vectors, and where pixels lie in the memory that two processes share. What two processes say to
each other is theirs: `engines/worker/frames.py`, `frontends/frames.py`; between machines, `cluster/parcels.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from sightline import errors
from sightline.errors import EngineFailed, SightlineError
from sightline.types import (
    Embeddings,
    ImageT,
    Message,
    ResponseFormat,
    Role,
    SamplingParams,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
)

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""A longer one is nonsense. (A request's text can be as long as a body may be; pixels are not in frames.)"""

_ALIGNMENT = 64
"""Bytes: pixels begin on a cache line."""
_FLOAT = np.dtype("<f4")
_LENGTH = struct.Struct("<I")
LENGTH_BYTES = _LENGTH.size

WireImageT = TypeVar("WireImageT")


# --- requests --------------------------------------------------------------------------------------------------------


class WireMessage(msgspec.Struct, Generic[WireImageT], frozen=True, array_like=True):
    role: Role
    content: tuple[str | WireImageT, ...]
    tool_calls: tuple[ToolCall, ...]
    tool_call_id: str | None
    name: str | None


class WireRequest(msgspec.Struct, Generic[WireImageT], frozen=True):
    """What a `ChatRequest` and an `EngineRequest` have in common, field for field. (Tests compare them.)"""

    request_id: str
    model: str
    messages: tuple[WireMessage[WireImageT], ...]
    sampling: SamplingParams
    tools: tuple[Tool, ...]
    tool_choice: ToolChoice
    response_format: ResponseFormat
    priority: int
    tenant: str
    prompt: str | tuple[int, ...] | None


def to_wire_messages(
    messages: Sequence[Message[ImageT]], to_wire: Callable[[ImageT], WireImageT]
) -> tuple[WireMessage[WireImageT], ...]:
    """`to_wire` is called for each picture, in the order the model meets them."""

    def part(content: Text | ImageT) -> str | WireImageT:
        return content.text if isinstance(content, Text) else to_wire(content)

    return tuple(
        WireMessage(m.role, tuple(map(part, m.content)), m.tool_calls, m.tool_call_id, m.name) for m in messages
    )  # fmt: skip


def from_wire_messages(
    messages: Sequence[WireMessage[WireImageT]], from_wire: Callable[[WireImageT], ImageT]
) -> tuple[Message[ImageT], ...]:
    """Undoes `to_wire_messages`."""

    def part(content: str | WireImageT) -> Text | ImageT:
        return Text(content) if isinstance(content, str) else from_wire(content)

    return tuple(
        Message(m.role, tuple(map(part, m.content)), m.tool_calls, m.tool_call_id, m.name) for m in messages
    )  # fmt: skip


def names_of(kind: type[Any], *, but: str) -> tuple[str, ...]:
    """Fields of a dataclass that travel as they are: all but one."""
    return tuple(f.name for f in fields(kind) if f.name != but)


def values_of(request: Any, names: Sequence[str]) -> Mapping[str, Any]:
    return {name: getattr(request, name) for name in names}


def laid_out(arrays: Sequence[npt.NDArray[Any]]) -> tuple[list[int], int]:
    """Where pictures lie in shared memory, one after the other but each array once; and the bytes that they take."""
    offsets: list[int] = []
    places: dict[int, int] = {}
    end = 0
    for array in arrays:
        place = places.get(id(array))
        if place is None:
            place = places[id(array)] = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = place + array.nbytes
        offsets.append(place)
    return offsets, end


# --- errors, vectors -------------------------------------------------------------------------------------------------


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


def to_vectors(embeddings: Embeddings) -> tuple[bytes, int]:
    """Little-endian float32, row by row; and how many rows."""
    vectors = np.ascontiguousarray(embeddings.vectors, _FLOAT)
    return vectors.tobytes(), len(vectors)


def from_vectors(vectors: bytes, rows: int, prompt_tokens: int) -> Embeddings:
    return Embeddings(np.frombuffer(vectors, _FLOAT).reshape(rows, -1), prompt_tokens)


# --- frames ----------------------------------------------------------------------------------------------------------


_encoder = msgspec.msgpack.Encoder()


def encode(frame: msgspec.Struct) -> bytes:
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
