"""A recording of any length to segments, window after window.

Each window begins where the last segment that ended in the window before it did, so that no word is cut; what was said
before is given to the model as context. openai/whisper `transcribe.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from sightline.audio.mel import HOP, SAMPLE_RATE, log_mel
from sightline.engines.whisper.alignment import Aligner
from sightline.engines.whisper.checkpoint import Facts
from sightline.engines.whisper.vocabulary import TIMESTAMP_S, Vocabulary
from sightline.engines.whisper.window import Attempt, Cancelled, SpeechModel, Writer
from sightline.types import Segment, SpokenWord, TokenLogprob, TranscriptionRequest

_FRAMES_PER_S: Final = SAMPLE_RATE // HOP
_FRAMES_PER_TIMESTAMP: Final = round(TIMESTAMP_S * _FRAMES_PER_S)
_WARM: Final = 0.5
"""Heard at a higher temperature, a text is no good context for the next."""


class Transcriber:
    """A model with all that is needed to write down recordings with it. Used from one thread."""

    def __init__(self, model: SpeechModel, facts: Facts, vocabulary: Vocabulary) -> None:
        self.model = model
        self.facts = facts
        self.vocabulary = vocabulary
        self.writer = Writer(model, facts, vocabulary)
        self.aligner = Aligner(model, facts, vocabulary)


@dataclass(slots=True)
class _Part:
    """Tokens of a window that make a segment; times from the window's beginning."""

    tokens: list[int]
    logprobs: list[float]
    start: float
    end: float


class Recording:
    """One recording as it is written down: `window` after `window` until `is_over`. Used from one thread at a time."""

    def __init__(self, transcriber: Transcriber, request: TranscriptionRequest, is_wanted: Callable[[], bool]) -> None:
        self._t = transcriber
        self._request = request
        self._is_wanted = is_wanted
        shape = transcriber.facts.shape
        self._mel = log_mel(request.samples, shape.bands, padding=shape.window_samples)
        self._frames = len(request.samples) // HOP
        """Those of the recording; after them comes silence."""
        self._seek = 0
        self._client_prompt = transcriber.vocabulary.encode(" " + request.prompt.strip()) if request.prompt else []
        self._context = list(self._client_prompt)
        self.language = request.language or ""

    @property
    def is_over(self) -> bool:
        return self._seek >= self._frames

    def window(self) -> list[Segment]:
        """Writes down the next window, and moves on. Raises `Cancelled` between two tokens if nobody wants it."""
        t, seek = self._t, self._seek
        shape = t.facts.shape
        size = min(shape.frames, self._frames - seek)
        self._check()
        heard = t.model.encode(self._mel[:, seek : seek + shape.frames])
        if not self.language:
            self.language = t.writer.language(heard)
        start = t.vocabulary.start_of(self.language, self._request.task)
        attempt = t.writer.write(heard, start, self._context, self._request.temperature, seek, self._check)
        if attempt.is_silence:
            self._seek += size
            return []
        parts, moved = _cut(attempt, t.vocabulary, size)
        self._seek += moved
        parts = [part for part in parts if part.end > part.start and t.vocabulary.text(part.tokens).strip()]
        segments = [self._to_segment(part, attempt, seek) for part in parts]
        if self._request.word_times and segments:
            segments = self._with_words(segments, heard, start, size)
        self._remember(parts, attempt.temperature)
        return segments

    def _check(self) -> None:
        if not self._is_wanted():
            raise Cancelled

    def _remember(self, parts: Sequence[_Part], temperature: float) -> None:
        if temperature > _WARM:
            self._context = list(self._client_prompt)
            return
        is_text = self._t.vocabulary.is_text
        self._context += [token for part in parts for token in part.tokens if is_text(token)]

    def _to_segment(self, part: _Part, attempt: Attempt, seek: int) -> Segment:
        v = self._t.vocabulary
        offset = seek / _FRAMES_PER_S
        last = len(self._request.samples) / SAMPLE_RATE
        return Segment(
            start=round(min(offset + part.start, last), 3),
            end=round(min(offset + part.end, last), 3),
            text=v.text(part.tokens),
            tokens=tuple(part.tokens),
            temperature=attempt.temperature,
            avg_logprob=attempt.avg_logprob,
            compression_ratio=attempt.compression_ratio,
            no_speech_prob=attempt.no_speech_prob,
            seek=seek,
            logprobs=self._logprobs(part) if self._request.logprobs else (),
        )

    def _logprobs(self, part: _Part) -> tuple[TokenLogprob, ...]:
        v = self._t.vocabulary
        told = []
        for token, logprob in zip(part.tokens, part.logprobs, strict=True):
            if v.is_text(token):
                spelled = v.spelling(token)
                told.append(TokenLogprob(spelled.decode("utf-8", "replace"), logprob, tuple(spelled)))
        return tuple(told)

    def _with_words(self, segments: list[Segment], heard: Any, start: Sequence[int], size: int) -> list[Segment]:
        """Words of the whole window are found together, then given to the segments in whose text they stand."""
        v = self._t.vocabulary
        texts = [[token for token in segment.tokens if v.is_text(token)] for segment in segments]
        offset = segments[0].seek / _FRAMES_PER_S
        last = len(self._request.samples) / SAMPLE_RATE
        found = self._t.aligner.words(
            heard, start, [token for text in texts for token in text], size // _FRAMES_PER_TIMESTAMP, self.language
        )
        words = iter(found)
        result = []
        for segment in segments:
            own: list[SpokenWord] = []
            rest = len(segment.text.encode())
            while rest > 0 and (word := next(words, None)) is not None:
                rest -= len(word.text.encode())
                own.append(SpokenWord(word.text, min(offset + word.start, last), min(offset + word.end, last)))
            result.append(replace(segment, words=_within(segment, own)))
        return result


def _within(segment: Segment, words: list[SpokenWord]) -> tuple[SpokenWord, ...]:
    """The path of attention spans the pauses around a segment, too: its first word does not begin before it, and its
    last does not end behind it."""
    if words:
        first, last = words[0], words[-1]
        words[0] = replace(first, start=max(first.start, min(segment.start, first.end)))
        words[-1] = replace(words[-1], end=min(last.end, max(segment.end, words[-1].start)))
    return tuple(SpokenWord(word.text, round(word.start, 3), round(word.end, 3)) for word in words)


def _cut(attempt: Attempt, v: Vocabulary, size: int) -> tuple[list[_Part], int]:
    """The segments of a window of `size` frames, and by how many frames to go on.

    A pair of timestamps is the end of one segment and the start of the next.
    """
    tokens, logprobs = attempt.tokens, attempt.logprobs
    pairs = [i + 1 for i in range(len(tokens) - 1) if v.is_time(tokens[i]) and v.is_time(tokens[i + 1])]
    ends_alone = len(tokens) >= 2 and v.is_time(tokens[-1]) and not v.is_time(tokens[-2])
    if not pairs:
        return _uncut(attempt, v, size)
    bounds = [0, *pairs, *([len(tokens)] if ends_alone else [])]
    parts = [
        _Part(tokens[a:b], logprobs[a:b], v.seconds(tokens[a]), v.seconds(tokens[b - 1])) for a, b in pairwise(bounds)
    ]
    if ends_alone:  # nobody speaks after it
        return parts, size
    moved = round(parts[-1].end * _FRAMES_PER_S)
    return parts, min(moved, size) if moved > 0 else size


def _uncut(attempt: Attempt, v: Vocabulary, size: int) -> tuple[list[_Part], int]:
    tokens = attempt.tokens
    times = [v.seconds(token) for token in tokens if v.is_time(token)]
    if len(tokens) == 1 and times and times[0] > 0 and times[0] * _FRAMES_PER_S < size:
        return [], round(
            times[0] * _FRAMES_PER_S
        )  # only told where speech begins that the window cuts: next from there
    if not tokens:
        return [], size
    start = times[0] if v.is_time(tokens[0]) else 0.0
    end = times[-1] if v.is_time(tokens[-1]) and len(times) > 1 else size / _FRAMES_PER_S
    return [_Part(tokens, attempt.logprobs, start, end)], size
