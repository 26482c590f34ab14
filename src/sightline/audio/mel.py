"""What a Whisper model hears: the logarithm of a mel spectrogram, in numpy.

Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (arXiv:2212.04356), section 2.2;
openai/whisper `audio.py`; transformers' `WhisperFeatureExtractor`, which a test compares this with. Training uses this
same code.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from sightline.types import Samples

Mel: TypeAlias = npt.NDArray[np.float32]
"""Shape [mel bands, frames]."""

SAMPLE_RATE: Final = 16_000
WINDOW: Final = 400
"""Samples in a frame: 25 ms."""
HOP: Final = 160
"""Samples from frame to frame: 10 ms."""
_BINS: Final = WINDOW // 2 + 1
_FLOOR: Final = 1e-10
_RANGE: Final = 8.0
"""Powers of ten below the loudest that are still told apart."""
_BLOCK_FRAMES: Final = 4096
"""Transformed at a time: a long recording takes no more memory for that than a short one."""


def log_mel(samples: Samples, bands: int, *, padding: int = 0) -> Mel:
    """Shape [bands, frames], a frame for each `HOP` samples; silence of `padding` samples comes after the recording."""
    frames = (len(samples) + padding) // HOP
    half = WINDOW // 2
    padded = np.pad(np.pad(samples, (0, padding)), half, mode="reflect")
    window = _hann()
    filters = mel_filters(bands)
    powers = np.empty((bands, frames), np.float32)
    for begin in range(0, frames, _BLOCK_FRAMES):
        end = min(begin + _BLOCK_FRAMES, frames)
        part = padded[begin * HOP : (end - 1) * HOP + WINDOW]
        framed = np.lib.stride_tricks.sliding_window_view(part, WINDOW)[::HOP]
        spectrum = np.fft.rfft(framed * window)
        powers[:, begin:end] = filters @ (spectrum.real**2 + spectrum.imag**2).T
    logs = np.log10(np.maximum(powers, _FLOOR))
    if frames:
        logs = np.maximum(logs, logs.max() - _RANGE)
    return ((logs + 4.0) / 4.0).astype(np.float32)


@cache
def mel_filters(bands: int) -> npt.NDArray[np.float32]:
    """Slaney's mel filterbank, shape [bands, 201]: triangles of equal area, 0 to 8,000 Hz (Auditory Toolbox, 1998).

    Bands are equally wide below 1,000 Hz (66.7 Hz a mel) and grow by a constant ratio above.
    """
    edges = _to_hz(np.linspace(0.0, _to_mel(SAMPLE_RATE / 2), bands + 2))
    frequencies = np.linspace(0.0, SAMPLE_RATE / 2, _BINS)
    slopes = edges[:, None] - frequencies[None, :]
    widths = np.diff(edges)[:, None]
    rising, falling = -slopes[:-2] / widths[:-1], slopes[2:] / widths[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None], np.float32)


_LINEAR_HZ: Final = 200.0 / 3
_BREAK_HZ: Final = 1000.0
_BREAK_MEL: Final = _BREAK_HZ / _LINEAR_HZ
_LOG_STEP: Final = np.log(6.4) / 27.0


def _to_mel(hz: float) -> float:
    return hz / _LINEAR_HZ if hz < _BREAK_HZ else float(_BREAK_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP)


def _to_hz(mels: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    exponential = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mels, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mels < _BREAK_MEL, mels * _LINEAR_HZ, exponential)


@cache
def _hann() -> npt.NDArray[np.float32]:
    """Periodic, as for spectral analysis."""
    return np.hanning(WINDOW + 1)[:-1].astype(np.float32)
