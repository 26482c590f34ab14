"""A recording's way through the service: decoded, admitted, written down, segment by segment.

The recording is decoded before it takes a place in line, in a process of its own; the engine's work is a `Call`, which
is admitted, tried again and counted like any other.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, fields
from typing import Any, Protocol

from sightline import metrics, tracing
from sightline.audio.mel import SAMPLE_RATE
from sightline.engines import Engine, Transcribes
from sightline.telling import Tell, pulled, taken
from sightline.types import AudioRef, Samples, SpeechRequest, TranscriptionEvent, TranscriptionRequest


@dataclass(frozen=True, slots=True)
class Listening:
    """Comes before the first event: what is known when an engine has begun to answer."""

    engine: str
    duration_s: float
    """Of the recording."""
    decode_s: float
    """What decoding it took."""


SpeechItem = Listening | TranscriptionEvent


class CallEngine(Protocol):
    async def __call__(self, run: Callable[[Engine], Awaitable[None]], begun: Callable[[], bool]) -> Any:
        """Has `run` done by an engine, once more where that fails before `begun`."""
        ...


def written_down(
    request: SpeechRequest, decode: Callable[[AudioRef], Awaitable[Samples]], call: CallEngine
) -> AsyncGenerator[SpeechItem, None]:
    """Yields `Listening` when the first event of an engine is there (an error before it can still be a true status),
    then segments, then one `Transcribed`. Closing it ends the decoding or the engine's work."""
    has_begun = False

    async def work(tell: Tell[SpeechItem]) -> None:
        started = time.perf_counter()
        samples = await decode(request.audio)
        decode_s = time.perf_counter() - started
        metrics.AUDIO_DECODE_SECONDS.observe(decode_s)
        tracing.stage("audio.decode", decode_s)
        wanted = to_transcription_request(request, samples)

        async def run(engine: Engine) -> None:
            nonlocal has_begun
            assert isinstance(engine, Transcribes), "an engine whose work it is has the method"
            async with aclosing(engine.transcribe(wanted)) as events:
                async for event in events:
                    if not has_begun:
                        has_begun = True
                        await taken(tell(Listening(engine.info.engine, len(samples) / SAMPLE_RATE, decode_s)))
                    await taken(tell(event))

        path = (await call(run, lambda: has_begun)).path
        metrics.AUDIO_SECONDS.labels(path[-1].rpartition("@")[0]).inc(len(samples) / SAMPLE_RATE)

    return pulled(work)


def to_transcription_request(request: SpeechRequest, samples: Samples) -> TranscriptionRequest:
    same = {f.name: getattr(request, f.name) for f in fields(request) if f.name != "audio"}
    return TranscriptionRequest(samples=samples, **same)
