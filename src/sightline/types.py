"""The nouns of Sightline: what flows between dialects, images, engines and the service.

A dialect turns its JSON into a `ChatRequest`, whose pictures are still `ImageRef`s: names of pictures that nobody has
looked at. The intake turns each into an `Image`: upright RGB pixels, verified, at the size the model will see. An
engine takes an `EngineRequest`, which can only hold `Image`s (two types, so that no network call can hide in an
engine), and gives back a stream of `Event`s.

Values only, all frozen: standard library and numpy, no behaviour beyond small derived properties.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""RGB, shape [height, width, 3], C-contiguous, 0..255 sRGB."""

Samples: TypeAlias = npt.NDArray[np.float32]
"""Sound: mono at 16 kHz, shape [samples], -1..1."""

Role = Literal["system", "user", "assistant", "tool"]
Detail = Literal["auto", "low", "high", "original"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


# --- what is said ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class Recompression:
    """A picture is to be made a JPEG of at most this size before a model sees it."""

    max_side: int
    """Pixels of the longer side."""
    quality: int
    """libjpeg's, 1..95."""


class FileId(str):
    """Of a file that the client sent before, as the source of a picture. A type of its own, because no text that a
    client writes as a URL may be taken for one."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A picture as a client named it, not yet fetched, decoded or believed."""

    source: str | bytes
    """A URL (`data:`, `http:`, `https:`), a `FileId`, or the file's own bytes. A dialect that takes bare base64
    prefixes `data:,`'s base64 form (`data:;base64,`) so that decoding happens in one place, off the event loop."""
    param: str
    """Where it stood in the request, as the error object names it: `messages[0].content[1].image_url.url`."""
    detail: Detail = "auto"
    max_pixels: int | None = None
    min_pixels: int | None = None
    uuid: str | None = None
    recompression: Recompression | None = None
    """What becomes of the file first: all that is said of the picture later is said of that JPEG."""


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A picture as a model sees it."""

    pixels: Pixels
    """At the served size: what the engine receives and must not resize again."""
    digest: str
    """`sha256:<hex>` of the file's original bytes."""
    width: int
    """Original width in pixels, upright (after the orientation flag)."""
    height: int
    media_type: str
    """From the magic bytes, never from what the client declared."""
    num_bytes: int
    """Size of the original file."""

    @property
    def served_width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def served_height(self) -> int:
        return int(self.pixels.shape[0])


ImageT = TypeVar("ImageT", ImageRef, Image)


@dataclass(frozen=True, slots=True)
class ToolCall:
    id: str
    name: str
    arguments: str
    """A JSON text, as the model wrote it."""


@dataclass(frozen=True)  # no slots: with them, Python 3.11 cannot make a `Message[Image](...)`
class Message(Generic[ImageT]):
    role: Role
    content: tuple[Text | ImageT, ...]
    """In the client's order of text and pictures."""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """A JSON schema."""
    strict: bool = False
    """Calls must have arguments of that schema."""
    param: str | None = None
    """Where the schema stood in the request, as the error object names it; None: `tools[i].function.parameters`."""


@dataclass(frozen=True, slots=True)
class ToolChoice:
    mode: Literal["none", "auto", "required"] = "auto"
    names: tuple[str, ...] = ()
    """With `required`: the tools allowed; empty means any."""
    parallel: bool = True
    """False: at most one call in an answer."""


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    kind: Literal["text", "json_object", "json_schema"] = "text"
    schema: Mapping[str, Any] | None = None
    strict: bool = False
    """False: what an engine cannot enforce of the schema is left to the model."""
    param: str = "response_format.json_schema.schema"
    """Where the schema stood in the request, as the error object names it."""


# --- how it is to be said --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Ranges are those of the wire contract, checked by the dialect; an engine may trust them."""

    max_tokens: int | None = None
    """None: until the context is full."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0: off."""
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    """None: none wanted; else how many alternatives beside the chosen token (0..20)."""


@dataclass(frozen=True, slots=True)
class _Request(Generic[ImageT]):
    request_id: str
    model: str
    messages: tuple[Message[ImageT], ...]
    """Empty where there is a `prompt`."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = field(default_factory=ToolChoice)
    response_format: ResponseFormat = field(default_factory=ResponseFormat)
    priority: int = 0
    """-10..10, higher first."""
    tenant: str = ""
    """Whose request it is: caches and quotas never cross tenants."""
    prompt: str | tuple[int, ...] | None = None
    """In place of messages: plain text to go on with, as it stands and without a chat template; or its tokens' ids."""

    @property
    def param(self) -> Literal["messages", "prompt"]:
        """What an error names that is about all that the model is given."""
        return "messages" if self.prompt is None else "prompt"

    @property
    def images(self) -> tuple[ImageT, ...]:
        """Every picture, in the order the model meets them."""
        return tuple([part for message in self.messages for part in message.content if not isinstance(part, Text)])


@dataclass(frozen=True, slots=True)
class ChatRequest(_Request[ImageRef]):
    """What a dialect makes of a client's request. Its pictures have not been looked at."""

    n: int = 1
    """Choices wanted; the service runs one `EngineRequest` for each."""
    whole: bool = False
    """Nobody is told anything of the answer before it is complete, so that an engine that breaks on the way may be
    asked again."""


@dataclass(frozen=True, slots=True)
class EngineRequest(_Request[Image]):
    """What an engine runs: one choice, pictures as pixels."""

    timeout_s: float | None = None
    """Seconds from now in which it is of use, for engines that can tell somebody; the service itself ends it then.
    None: as long as the engine allows."""


# --- what comes back -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: str
    logprob: float
    """Natural logarithm; -9999.0 stands for "very unlikely", never -inf."""
    bytes: tuple[int, ...] = ()
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """Text that is final: whole UTF-8 characters, and nothing that could still become a stop sequence."""

    text: str
    num_tokens: int = 1
    """Tokens the model produced since the last delta (one delta may carry several, or text held back earlier)."""
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    text: str
    num_tokens: int = 1


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    index: int
    """Which call of this answer; `id` and `name` come with the call's first delta only."""
    arguments: str = ""
    id: str | None = None
    name: str | None = None
    num_tokens: int = 1


@dataclass(frozen=True, slots=True)
class RefusalDelta:
    text: str
    num_tokens: int = 1


@dataclass(frozen=True, slots=True)
class TokenCount:
    """What a prompt costs, before anything runs."""

    prompt_tokens: int
    image_tokens: tuple[int, ...] = ()
    """For each picture in order."""
    exact: bool = True
    """False: an estimate, of an engine behind a server that offers no way to count."""

    @property
    def text_tokens(self) -> int:
        return self.prompt_tokens - sum(self.image_tokens)


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    image_tokens: tuple[int, ...] = ()
    """For each picture in order; part of `prompt_tokens`."""
    images_cached: tuple[bool, ...] = ()
    """For each picture: its embedding was at hand and was not computed for this request."""
    cached_tokens: int = 0
    """Prompt tokens whose attention blocks were at hand."""
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds inside the engine, by stage; 0.0 where a stage did not happen or is not told apart."""

    queue_s: float = 0.0
    encode_s: float = 0.0
    """Pictures to embeddings."""
    prefill_s: float = 0.0
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Finish:
    """The last event of every stream that did not fail."""

    reason: FinishReason
    usage: Usage
    timing: Timing = field(default_factory=Timing)
    stop_sequence: str | None = None
    """The stop string that ended it, if one did."""


Delta: TypeAlias = TextDelta | ReasoningDelta | ToolCallDelta | RefusalDelta
Event: TypeAlias = Delta | Finish


# --- texts as vectors ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    request_id: str
    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    """One or more, none of them empty: texts, or the ids of their tokens."""
    dimensions: int | None = None
    """Numbers of each vector; None: as many as the model gives."""
    tenant: str = ""
    priority: int = 0
    """-10..10, higher first."""


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    vectors: npt.NDArray[np.float32]
    """Shape [inputs, dimensions], in the order of the inputs."""
    prompt_tokens: int
    """Of all inputs together."""


# --- speech ----------------------------------------------------------------------------------------------------------

SpeechTask = Literal["transcribe", "translate"]


@dataclass(frozen=True, slots=True)
class AudioRef:
    """A recording as a client sent it, not yet decoded or believed."""

    file: bytes
    param: str
    """Where it stood in the request: `file`."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Speech:
    request_id: str
    model: str
    task: SpeechTask = "transcribe"
    """`translate`: into English, whatever is spoken."""
    language: str | None = None
    """ISO 639-1 code of what is spoken (`en`); None: the engine finds out."""
    prompt: str = ""
    """What was said before, or names and a style to go by."""
    temperature: float = 0.0
    """0: greedy, and warmer where that fails by the engine's own measures."""
    word_times: bool = False
    logprobs: bool = False


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class SpeechRequest(_Speech):
    """What a dialect makes of a client's request. Its recording has not been listened to."""

    audio: AudioRef


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TranscriptionRequest(_Speech):
    """What an engine writes down."""

    samples: Samples


@dataclass(frozen=True, slots=True)
class SpokenWord:
    text: str
    """As it stands in the text, with the space before it."""
    start: float
    """Seconds from the recording's beginning."""
    end: float


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech that is final. Times in seconds from the recording's beginning."""

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    temperature: float
    """At which it was heard."""
    avg_logprob: float
    compression_ratio: float
    """Bytes of the text by bytes of it compressed: high where a model repeats itself."""
    no_speech_prob: float
    seek: int = 0
    """Where the window began in which it was heard, in hundredths of a second."""
    words: tuple[SpokenWord, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Transcribed:
    """The last event of every transcription that did not fail."""

    language: str
    """ISO 639-1 code of what is spoken."""


TranscriptionEvent: TypeAlias = Segment | Transcribed
