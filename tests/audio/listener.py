"""An engine that listens without a model: it tells tones apart, so that what it says depends on what it was given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import numpy as np

from sightline.audio.mel import SAMPLE_RATE
from sightline.engines import EngineInfo
from sightline.errors import UnsupportedFeature
from sightline.types import (
    EngineRequest,
    Event,
    Segment,
    SpokenWord,
    TokenCount,
    TokenLogprob,
    Transcribed,
    TranscriptionEvent,
    TranscriptionRequest,
)

NOTES = {300: "low", 600: "middle", 1200: "high"}
"""Hertz."""


@dataclass
class Listener:
    """A segment for each second: the note that is heard in it."""

    hook: Callable[[int], None] = lambda index: None
    """Called before each segment, with its index; may raise."""
    requests: list[TranscriptionRequest] = field(default_factory=list)
    open: int = 0

    info = EngineInfo(engine="listener", context_length=100, work=frozenset({"transcription"}))

    async def start(self) -> None:
        pass

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        raise UnsupportedFeature("It only listens.", param="model")

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        raise UnsupportedFeature("It only listens.", param="model")
        yield

    async def close(self) -> None:
        pass

    async def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[TranscriptionEvent, None]:
        self.requests.append(request)
        self.open += 1
        try:
            for index in range(-(-len(request.samples) // SAMPLE_RATE)):
                self.hook(index)
                await asyncio.sleep(0)
                yield self._segment(request, index)
            yield Transcribed(request.language or "es")
        finally:
            self.open -= 1

    def _segment(self, request: TranscriptionRequest, index: int) -> Segment:
        second = request.samples[index * SAMPLE_RATE : (index + 1) * SAMPLE_RATE]
        hz = float(np.abs(np.fft.rfft(second)).argmax() * SAMPLE_RATE / len(second))
        word = " " + NOTES[min(NOTES, key=lambda note: abs(note - hz))]
        start, end = float(index), index + len(second) / SAMPLE_RATE
        return Segment(
            start, end, word, tokens=(index,), temperature=request.temperature, avg_logprob=-0.25,
            compression_ratio=0.5, no_speech_prob=0.125, seek=0,
            words=(SpokenWord(word, start, end),) if request.word_times else (),
            logprobs=(TokenLogprob(word, -0.5, tuple(word.encode())),) if request.logprobs else (),
        )  # fmt: skip
