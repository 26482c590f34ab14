"""A transcript on the wire: JSON, plain text, subtitles, events. All pure.

Source: openai-openapi 2.3.0, `CreateTranscriptionResponseJson`, `...VerboseJson`, `TranscriptTextDeltaEvent`,
`TranscriptTextDoneEvent`; SubRip as players read it; WebVTT: https://www.w3.org/TR/webvtt1/.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from sightline.api.errors import to_error
from sightline.api.sse import to_event
from sightline.audio.languages import to_name
from sightline.speech import Listening, SpeechItem
from sightline.types import Segment, SpeechTask, TokenLogprob, Transcribed

Format = Literal["json", "text", "srt", "verbose_json", "vtt"]


class DurationUsage(msgspec.Struct, frozen=True, kw_only=True):
    type: Literal["duration"] = "duration"
    seconds: float
    """Of the recording."""


class Logprob(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    logprob: float
    bytes: list[int]


class Transcription(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    text: str
    logprobs: list[Logprob] | None = None
    usage: DurationUsage | None = None


class TranscriptionSegment(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    seek: int
    """Where the window began in which it was heard, in hundredths of a second."""
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class TranscriptionWord(msgspec.Struct, frozen=True, kw_only=True):
    word: str
    start: float
    end: float


class VerboseTranscription(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    task: SpeechTask
    language: str
    """Its English name."""
    duration: float
    text: str
    segments: list[TranscriptionSegment] | None = None
    words: list[TranscriptionWord] | None = None
    usage: DurationUsage | None = None


class TextDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="transcript.text.delta"):
    delta: str
    logprobs: list[Logprob] | None = None


class TextDone(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="transcript.text.done"):
    text: str
    logprobs: list[Logprob] | None = None
    usage: DurationUsage


@dataclass(frozen=True, slots=True)
class Transcript:
    """All that came of a recording."""

    listening: Listening
    segments: tuple[Segment, ...]
    end: Transcribed

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments).strip()

    @property
    def usage(self) -> DurationUsage:
        return to_usage(self.listening)


def to_transcript(items: Iterable[SpeechItem]) -> Transcript:
    listening, *segments, end = items
    assert isinstance(listening, Listening), "the service yields Listening first"
    assert isinstance(end, Transcribed), "the service yields Transcribed last"
    return Transcript(listening, tuple(s for s in segments if isinstance(s, Segment)), end)


def to_usage(listening: Listening) -> DurationUsage:
    return DurationUsage(seconds=round(listening.duration_s, 3))


def to_json(transcript: Transcript, *, logprobs: bool) -> Transcription:
    told = [one for segment in transcript.segments for one in to_logprobs(segment.logprobs)]
    return Transcription(text=transcript.text, logprobs=told if logprobs else None, usage=transcript.usage)


def to_translation(transcript: Transcript) -> Transcription:
    return Transcription(text=transcript.text)


def to_verbose(transcript: Transcript, task: SpeechTask, granularities: Sequence[str]) -> VerboseTranscription:
    words = [
        TranscriptionWord(word=word.text.strip(), start=word.start, end=word.end)
        for segment in transcript.segments
        for word in segment.words
    ]
    return VerboseTranscription(
        task=task,
        language="english" if task == "translate" else to_name(transcript.end.language),
        duration=round(transcript.listening.duration_s, 3),
        text=transcript.text,
        segments=[*_segments(transcript.segments)] if "segment" in granularities else None,
        words=words if "word" in granularities else None,
        usage=transcript.usage,
    )


def _segments(segments: Sequence[Segment]) -> Iterator[TranscriptionSegment]:
    for index, segment in enumerate(segments):
        yield TranscriptionSegment(
            id=index,
            seek=segment.seek,
            start=segment.start,
            end=segment.end,
            text=segment.text,
            tokens=list(segment.tokens),
            temperature=segment.temperature,
            avg_logprob=segment.avg_logprob,
            compression_ratio=segment.compression_ratio,
            no_speech_prob=segment.no_speech_prob,
        )


def to_logprobs(logprobs: Sequence[TokenLogprob]) -> list[Logprob]:
    return [Logprob(token=one.token, logprob=one.logprob, bytes=list(one.bytes)) for one in logprobs]


def to_text(transcript: Transcript) -> str:
    return transcript.text + "\n"


def to_srt(transcript: Transcript) -> str:
    cues = _cues(transcript.segments, ",")
    return "".join(f"{number}\n{times}\n{text}\n\n" for number, (times, text) in enumerate(cues, 1))


def to_vtt(transcript: Transcript) -> str:
    def escaped(text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    return "WEBVTT\n\n" + "".join(
        f"{times}\n{escaped(text)}\n\n" for times, text in _cues(transcript.segments, ".")
    )  # fmt: skip


def _cues(segments: Sequence[Segment], point: str) -> Iterator[tuple[str, str]]:
    for segment in segments:
        # An arrow in a text would begin another cue, and so would an empty line.
        text = " ".join(segment.text.replace("-->", "->").split())
        yield f"{_clock(segment.start, point)} --> {_clock(segment.end, point)}", text


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"


WRITERS: dict[Format, tuple[Callable[[Transcript], str], str]] = {
    "text": (to_text, "text/plain"),
    "srt": (to_srt, "text/plain"),
    "vtt": (to_vtt, "text/vtt"),
}
"""Formats that are text, with their media types."""


class Deltas:
    """A transcript as events: a delta for each segment, and the whole at the end."""

    def __init__(self, request_id: str, *, logprobs: bool) -> None:
        self._request_id = request_id
        self._logprobs: list[Logprob] | None = [] if logprobs else None
        self._text = ""
        self._usage: DurationUsage | None = None

    def to_frames(self, event: SpeechItem) -> bytes:
        match event:
            case Listening():
                self._usage = to_usage(event)
                return b""
            case Segment():
                text = event.text if self._text else event.text.lstrip()
                self._text += text
                told = None
                if self._logprobs is not None:
                    told = to_logprobs(event.logprobs)
                    self._logprobs += told
                return to_event(TextDelta(delta=text, logprobs=told))
            case Transcribed():
                assert self._usage is not None
                return to_event(TextDone(text=self._text, logprobs=self._logprobs, usage=self._usage))

    def end(self) -> bytes:
        return b""

    def to_error_frame(self, error: Exception) -> bytes:
        return to_event(to_error(error, self._request_id))
