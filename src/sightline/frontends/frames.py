"""What a front end and the core say to each other, in frames (`interprocess.py`).

A piece of work is known by a number that the front end gives it (`stream`); the core gives numbers of its own to what
it asks of a front end (`number`). Values of `types.py` and `service.py` travel as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from sightline.access.limits import Cost, Standing
from sightline.engines.worker.frames import Picture
from sightline.frontends.requests import WireChat, WireSpeech
from sightline.images.budget import VisionBudget
from sightline.images.plan import Room
from sightline.interprocess import (
    LENGTH_BYTES,
    Bodies,
    WireError,
    encode,
    from_vectors,
    from_wire_error,
    to_vectors,
    to_wire_error,
)
from sightline.items import Called, ChoiceEvent, Item, Prepared, ServedImage
from sightline.models import ModelStatus
from sightline.speech import Listening, SpeechItem
from sightline.types import (
    EmbeddingRequest,
    Embeddings,
    Finish,
    ReasoningDelta,
    RefusalDelta,
    Segment,
    TextDelta,
    TokenCount,
    ToolCallDelta,
    Transcribed,
)

__all__ = ["LENGTH_BYTES", "Bodies", "Picture", "WireError", "encode", "from_wire_error", "to_wire_error"]

WINDOW = 256
"""Events of one stream that may be on their way or wait for their consumer."""


class Frame(msgspec.Struct, frozen=True, array_like=True, tag=True):
    @property
    def has_descriptor(self) -> bool:
        """Whether a descriptor comes beside it."""
        return False


class Asker(msgspec.Struct, frozen=True, array_like=True):
    """On whose behalf something is asked for, as far as the core must know."""

    key_id: str = ""
    """Of the key that the request came with; empty: it needed none."""
    patient: bool = False
    """Nobody waits for it."""
    trace: dict[str, str] = {}
    """Headers that name the trace of which it is a part (`tracing.outgoing`)."""


# --- to the core -----------------------------------------------------------------------------------------------------


class Generate(Frame, frozen=True):
    stream: int
    by: Asker
    request: WireChat
    timeout_s: float | None


class Measure(Frame, frozen=True):
    stream: int
    by: Asker
    request: WireChat
    timeout_s: float | None


class Embed(Frame, frozen=True):
    stream: int
    by: Asker
    request: EmbeddingRequest
    timeout_s: float | None


class Transcribe(Frame, frozen=True):
    """With `shared_bytes`, the descriptor of that much shared memory comes beside it: the file."""

    stream: int
    by: Asker
    request: WireSpeech
    timeout_s: float | None
    shared_bytes: int

    @property
    def has_descriptor(self) -> bool:
        return self.shared_bytes > 0


class Load(Frame, frozen=True):
    stream: int
    by: Asker
    model: str


class Unload(Frame, frozen=True):
    model: str


class Settle(Frame, frozen=True):
    """Of what was reserved by `Metering.admit`, so much was used."""

    key_id: str
    day: int
    reserved: Cost
    used: Cost


class Call(Frame, frozen=True):
    """A method of one of the core's objects (`calls.py`); the arguments as msgpack."""

    stream: int
    method: str
    arguments: bytes


class Forward(Frame, frozen=True):
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


class Page(Frame, frozen=True):
    """An HTTP request for the page at `/ui`, which the core has. It has been let in already."""

    stream: int
    method: str
    scheme: str
    path: str
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    client: tuple[str, int] | None
    body: bytes


class Resolved(msgspec.Struct, frozen=True, array_like=True):
    """A `ResolvedImage`."""

    picture: Picture
    fetch_s: float
    decode_s: float
    resize_s: float
    scaled_to_fit: bool


class Pictures(Frame, frozen=True):
    """What `Resolve` of this number asked for; the pixels lie in `shared_bytes` of shared memory."""

    number: int
    pictures: tuple[Resolved, ...]
    shared_bytes: int

    @property
    def has_descriptor(self) -> bool:
        return self.shared_bytes > 0


class NoPictures(Frame, frozen=True):
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


class Counted(Frame, frozen=True):
    """What the front end has counted since it started; 0: nobody asked for it just now."""

    number: int
    families: tuple[Family, ...]


class Cancel(Frame, frozen=True):
    stream: int


class Credit(Frame, frozen=True):
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
    | Page
    | Pictures
    | NoPictures
    | Counted
    | Cancel
    | Credit
)


# --- to a front end --------------------------------------------------------------------------------------------------


class Status(Frame, frozen=True):
    """Sent first, and whenever it has changed."""

    models: tuple[ModelStatus, ...]
    ready: bool


class Resolve(Frame, frozen=True):
    """Of a stream's pictures all: to be looked at, and served by these budgets."""

    number: int
    stream: int
    budgets: tuple[VisionBudget, ...]
    room: Room | None
    trace: dict[str, str] = {}
    """As `Asker.trace`, of the core's side."""


class GiveUp(Frame, frozen=True):
    """What `Resolve` asked for is not wanted any more."""

    number: int


class Count(Frame, frozen=True):
    """Asks for `Counted`."""

    number: int


class Begun(Frame, frozen=True):
    stream: int
    prepared: Prepared
    standing: Standing
    """How its key stands."""


# An event travels in a frame of its own kind, because msgspec tells structs apart by their tag, and events have none.


class SaidText(Frame, frozen=True):
    stream: int
    index: int
    event: TextDelta


class SaidReasoning(Frame, frozen=True):
    stream: int
    index: int
    event: ReasoningDelta


class SaidToolCall(Frame, frozen=True):
    stream: int
    index: int
    event: ToolCallDelta


class SaidRefusal(Frame, frozen=True):
    stream: int
    index: int
    event: RefusalDelta


class Finished(Frame, frozen=True):
    stream: int
    index: int
    event: Finish


class Hears(Frame, frozen=True):
    stream: int
    item: Listening


class Heard(Frame, frozen=True):
    stream: int
    item: Segment


class HeardAll(Frame, frozen=True):
    stream: int
    item: Transcribed


class Measured(Frame, frozen=True):
    stream: int
    count: TokenCount
    images: tuple[ServedImage, ...]


class Embedded(Frame, frozen=True):
    stream: int
    vectors: bytes
    rows: int
    prompt_tokens: int
    engine: str
    path: tuple[str, ...]
    queue_s: float
    standing: Standing


class Answered(Frame, frozen=True):
    """What a `Call` returned, as msgpack."""

    stream: int
    value: bytes


class ReplyStart(Frame, frozen=True):
    stream: int
    status: int
    headers: tuple[tuple[bytes, bytes], ...]


class ReplyBody(Frame, frozen=True):
    stream: int
    body: bytes


class Ended(Frame, frozen=True):
    """The last frame of a stream that did not fail."""

    stream: int


class Failed(Frame, frozen=True):
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
    vectors, rows = to_vectors(called.value)
    return Embedded(
        stream, vectors, rows, called.value.prompt_tokens, called.engine, called.path, called.queue_s, standing
    )  # fmt: skip


def from_embedded(frame: Embedded) -> Called[Embeddings]:
    embeddings = from_vectors(frame.vectors, frame.rows, frame.prompt_tokens)
    return Called(embeddings, frame.engine, frame.path, frame.queue_s)


# --- bytes -----------------------------------------------------------------------------------------------------------

_to_core: msgspec.msgpack.Decoder[ToCore] = msgspec.msgpack.Decoder(ToCore)
_to_front_end: msgspec.msgpack.Decoder[ToFrontEnd] = msgspec.msgpack.Decoder(ToFrontEnd)
decode_to_core = _to_core.decode
decode_to_front_end = _to_front_end.decode
