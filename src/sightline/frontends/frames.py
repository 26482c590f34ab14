"""What a front end and the core say to each other, and how it looks on the wire: as `engines/worker/frames.py`, whose
forms of messages, errors and vectors these frames use.

A piece of work is known by a number that the front end gives it (`stream`); the core gives numbers of its own to what
it asks of a front end (`number`). Values of `types.py` and `service.py` travel as they are. A picture does not: what
travels is where it stands, and its pixels come, at the size that the core asked for, when the core asks for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeAlias

import msgspec

from sightline import __version__
from sightline.access.limits import Cost, Standing
from sightline.config import Settings
from sightline.engines.worker.frames import (
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    Bodies,
    Picture,
    WireError,
    embedded,
    from_wire_error,
    to_embeddings,
    to_wire_error,
)
from sightline.engines.worker.frames import Embedded as Vectors
from sightline.images.budget import VisionBudget
from sightline.images.plan import Room
from sightline.models import ModelStatus
from sightline.service import Called, ChoiceEvent, Item, Prepared, ServedImage
from sightline.speech import Listening, SpeechItem
from sightline.types import (
    AudioRef,
    ChatRequest,
    Detail,
    EmbeddingRequest,
    Embeddings,
    Finish,
    ImageRef,
    Message,
    ReasoningDelta,
    RefusalDelta,
    ResponseFormat,
    Role,
    SamplingParams,
    Segment,
    SpeechRequest,
    SpeechTask,
    Text,
    TextDelta,
    TokenCount,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Transcribed,
)

__all__ = ["LENGTH_BYTES", "Bodies", "Picture", "WireError", "from_wire_error", "to_wire_error"]

WINDOW = 256
"""Events of one stream that may be on their way or wait for their consumer."""
_TELLING = 48
"""Characters of a picture's source that travel, so that the core can tell requests that are alike."""


class _Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    pass


# --- requests --------------------------------------------------------------------------------------------------------


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


class Asker(msgspec.Struct, frozen=True, array_like=True):
    """On whose behalf something is asked for, as far as the core must know."""

    key_id: str = ""
    """Of the key that the request came with; empty: it needed none."""
    patient: bool = False
    """Nobody waits for it."""
    trace: dict[str, str] = {}
    """Headers that name the trace of which it is a part (`tracing.outgoing`)."""


# --- to the core -----------------------------------------------------------------------------------------------------


class Generate(_Frame, frozen=True):
    stream: int
    by: Asker
    request: WireChat
    timeout_s: float | None


class Measure(_Frame, frozen=True):
    stream: int
    by: Asker
    request: WireChat
    timeout_s: float | None


class Embed(_Frame, frozen=True):
    stream: int
    by: Asker
    request: EmbeddingRequest
    timeout_s: float | None


class Transcribe(_Frame, frozen=True):
    """With `shared_bytes`, the descriptor of that much shared memory comes beside it: the file."""

    stream: int
    by: Asker
    request: WireSpeech
    timeout_s: float | None
    shared_bytes: int


class Load(_Frame, frozen=True):
    stream: int
    by: Asker
    model: str


class Unload(_Frame, frozen=True):
    model: str


class Settle(_Frame, frozen=True):
    """Of what was reserved by `Metering.admit`, so much was used."""

    key_id: str
    day: int
    reserved: Cost
    used: Cost


class Call(_Frame, frozen=True):
    """A method of one of the core's objects (`calls.py`); the arguments as msgpack."""

    stream: int
    method: str
    arguments: bytes


class Forward(_Frame, frozen=True):
    """An HTTP request that the core's own application is to answer. It has been let in already."""

    stream: int
    by: Asker
    method: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    caller: bytes
    """`api.caller.Caller` as msgpack."""


class Resolved(msgspec.Struct, frozen=True, array_like=True):
    """A `ResolvedImage`."""

    picture: Picture
    fetch_s: float
    decode_s: float
    resize_s: float
    scaled_to_fit: bool


class Pictures(_Frame, frozen=True):
    """What `Resolve` of this number asked for; the pixels lie in `shared_bytes` of shared memory."""

    number: int
    pictures: tuple[Resolved, ...]
    shared_bytes: int


class NoPictures(_Frame, frozen=True):
    """None: it is a bug, of which the front end's log tells."""

    number: int
    error: WireError | None


class Sample(msgspec.Struct, frozen=True, array_like=True):
    name: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Family(msgspec.Struct, frozen=True, array_like=True):
    """A metric, and its samples of one process."""

    name: str
    kind: str
    meaning: str
    samples: tuple[Sample, ...]


class Counted(_Frame, frozen=True):
    """What the front end has counted since it started; 0: nobody asked for it just now."""

    number: int
    families: tuple[Family, ...]


class Cancel(_Frame, frozen=True):
    stream: int


class Credit(_Frame, frozen=True):
    """The consumer has taken this many events: as many more may be sent."""

    stream: int
    events: int


ToCore: TypeAlias = (
    Generate
    | Measure
    | Embed
    | Transcribe
    | Load
    | Unload
    | Settle
    | Call
    | Forward
    | Pictures
    | NoPictures
    | Counted
    | Cancel
    | Credit
)


# --- to a front end --------------------------------------------------------------------------------------------------


class Status(_Frame, frozen=True):
    """Sent first, and whenever it has changed."""

    models: tuple[ModelStatus, ...]
    ready: bool


class Resolve(_Frame, frozen=True):
    """Of a stream's pictures all: to be looked at, and served by these budgets."""

    number: int
    stream: int
    budgets: tuple[VisionBudget, ...]
    room: Room | None
    trace: dict[str, str] = {}
    """As `Asker.trace`, of the core's side."""


class GiveUp(_Frame, frozen=True):
    """What `Resolve` asked for is not wanted any more."""

    number: int


class Count(_Frame, frozen=True):
    """Asks for `Counted`."""

    number: int


class Begun(_Frame, frozen=True):
    stream: int
    prepared: Prepared
    standing: Standing
    """How its key stands."""


# An event travels in a frame of its own kind, because msgspec tells structs apart by their tag, and events have none.


class SaidText(_Frame, frozen=True):
    stream: int
    index: int
    event: TextDelta


class SaidReasoning(_Frame, frozen=True):
    stream: int
    index: int
    event: ReasoningDelta


class SaidToolCall(_Frame, frozen=True):
    stream: int
    index: int
    event: ToolCallDelta


class SaidRefusal(_Frame, frozen=True):
    stream: int
    index: int
    event: RefusalDelta


class Finished(_Frame, frozen=True):
    stream: int
    index: int
    event: Finish


class Hears(_Frame, frozen=True):
    stream: int
    item: Listening


class Heard(_Frame, frozen=True):
    stream: int
    item: Segment


class HeardAll(_Frame, frozen=True):
    stream: int
    item: Transcribed


class Measured(_Frame, frozen=True):
    stream: int
    count: TokenCount
    images: tuple[ServedImage, ...]


class Embedded(_Frame, frozen=True):
    stream: int
    vectors: bytes
    rows: int
    prompt_tokens: int
    engine: str
    path: tuple[str, ...]
    queue_s: float
    standing: Standing


class Answered(_Frame, frozen=True):
    """What a `Call` returned, as msgpack."""

    stream: int
    value: bytes


class ReplyStart(_Frame, frozen=True):
    stream: int
    status: int
    headers: tuple[tuple[bytes, bytes], ...]


class ReplyBody(_Frame, frozen=True):
    stream: int
    body: bytes


class Ended(_Frame, frozen=True):
    """The last frame of a stream that did not fail."""

    stream: int


class Failed(_Frame, frozen=True):
    """The last frame of one that did. None: it is a bug, of which the core's log tells."""

    stream: int
    error: WireError | None


Said: TypeAlias = SaidText | SaidReasoning | SaidToolCall | SaidRefusal | Finished
ToFrontEnd: TypeAlias = (
    Status
    | Resolve
    | GiveUp
    | Count
    | Begun
    | Said
    | Hears
    | Heard
    | HeardAll
    | Measured
    | Embedded
    | Answered
    | ReplyStart
    | ReplyBody
    | Ended
    | Failed
)

_SAID: dict[type[Any], Callable[[int, int, Any], Said]] = {
    TextDelta: SaidText,
    ReasoningDelta: SaidReasoning,
    ToolCallDelta: SaidToolCall,
    RefusalDelta: SaidRefusal,
    Finish: Finished,
}
_HEARD: dict[type[Any], Callable[[int, Any], ToFrontEnd]] = {
    Listening: Hears,
    Segment: Heard,
    Transcribed: HeardAll,
}


def to_frame(stream: int, item: Item | SpeechItem, standing: Callable[[], Standing]) -> ToFrontEnd:
    """An item of `Service.generate` or `Service.transcribe`."""
    if isinstance(item, ChoiceEvent):
        return _SAID[type(item.event)](stream, item.index, item.event)
    if isinstance(item, Prepared):
        return Begun(stream, item, standing())
    return _HEARD[type(item)](stream, item)


def to_embedded(stream: int, called: Called[Embeddings], standing: Standing) -> Embedded:
    plain = embedded(stream, called.value)
    return Embedded(
        stream, plain.vectors, plain.rows, plain.prompt_tokens, called.engine, called.path, called.queue_s, standing
    )  # fmt: skip


def from_embedded(frame: Embedded) -> Called[Embeddings]:
    plain = Vectors(frame.stream, frame.vectors, frame.rows, frame.prompt_tokens)
    return Called(to_embeddings(plain), frame.engine, frame.path, frame.queue_s)


# --- between the processes and their parent --------------------------------------------------------------------------


class Start(_Frame, frozen=True):
    """The first frame, once, to the core and to a front end alike."""

    settings: Settings
    processes: int
    """Front ends, of which each has its share of what the settings allow the server."""
    version: str = __version__
    """Of the program that the parent runs, and so the core."""


class Join(_Frame, frozen=True):
    """To the core: a front end's end of the link comes beside it."""


class Retire(_Frame, frozen=True):
    """To a front end: another takes its place; no client is to notice."""


class Drain(_Frame, frozen=True):
    """To a front end: the server ends."""


class Up(_Frame, frozen=True):
    """From both: requests are answered from now on."""


FromParent: TypeAlias = Start | Join | Retire | Drain
ToParent: TypeAlias = Up


# --- bytes -----------------------------------------------------------------------------------------------------------

_encoder = msgspec.msgpack.Encoder()
_to_core: msgspec.msgpack.Decoder[ToCore] = msgspec.msgpack.Decoder(ToCore)
_to_front_end: msgspec.msgpack.Decoder[ToFrontEnd] = msgspec.msgpack.Decoder(ToFrontEnd)
_from_parent: msgspec.msgpack.Decoder[FromParent] = msgspec.msgpack.Decoder(FromParent)
_to_parent: msgspec.msgpack.Decoder[ToParent] = msgspec.msgpack.Decoder(ToParent)
decode_to_core = _to_core.decode
decode_to_front_end = _to_front_end.decode
decode_from_parent = _from_parent.decode
decode_to_parent = _to_parent.decode


def encode(frame: ToCore | ToFrontEnd | FromParent | ToParent) -> bytes:
    """Length and body. Raises `ValueError` for a frame that is too long."""
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {len(body)} bytes")
    return len(body).to_bytes(LENGTH_BYTES, "little") + body


def has_descriptor(frame: Any) -> bool:
    """Whether a descriptor comes beside it."""
    return isinstance(frame, Join) or bool(getattr(frame, "shared_bytes", 0))


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


_ALIGNMENT = 64
"""Bytes: pixels begin on a cache line."""
