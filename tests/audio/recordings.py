"""Recordings in every container, made with PyAV's own encoders."""

from __future__ import annotations

import io

import av
import numpy as np

from sightline.audio.mel import SAMPLE_RATE
from sightline.types import Samples

CONTAINERS = {
    "flac": ("flac", "flac"),
    "mp3": ("mp3", "libmp3lame"),
    "mp4": ("mp4", "aac"),
    "m4a": ("ipod", "aac"),
    "mpeg": ("mpeg", "mp2"),
    "mpga": ("mp2", "mp2"),
    "ogg": ("ogg", "libopus"),
    "wav": ("wav", "pcm_s16le"),
    "webm": ("webm", "libopus"),
}
"""FFmpeg's writer and codec for each format of the wire contract."""


def tone(seconds: float, hz: float = 440.0, level: float = 0.5) -> Samples:
    at = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (level * np.sin(2 * np.pi * hz * at)).astype(np.float32)


def encoded(
    samples: Samples, name: str = "wav", *, rate: int = 48_000, layout: str = "mono", video: bool = False
) -> bytes:
    """`video`: pictures only, no sound."""
    writer, codec = {**CONTAINERS, "ac3 in webm": ("matroska", "ac3")}[name]
    file = io.BytesIO()
    with av.open(file, "w", format=writer) as container:
        if video:
            pictures = container.add_stream("mpeg4", rate=10)
            pictures.width, pictures.height, pictures.pix_fmt = 32, 32, "yuv420p"
            for index in range(10):
                picture = av.VideoFrame(32, 32, "yuv420p")
                picture.pts = index
                container.mux(pictures.encode(picture))
            container.mux(pictures.encode(None))
            return _finished(container, file)
        stream = container.add_stream(codec, rate=rate)
        stream.layout = layout
        wanted = stream.codec_context.format.name if stream.codec_context.format else "s16"
        resampler = av.AudioResampler(format=wanted, layout=layout, rate=rate)
        frame = av.AudioFrame.from_ndarray((samples[None] * 32767).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        frame.pts = 0
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
        return _finished(container, file)


def _finished(container: av.container.OutputContainer, file: io.BytesIO) -> bytes:
    container.close()
    return file.getvalue()
