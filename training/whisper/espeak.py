"""Speech from libespeak-ng (Debian: `libespeak-ng1`), in this process: text to samples, with the time of every word.

https://github.com/espeak-ng/espeak-ng/blob/master/src/include/espeak-ng/speak_lib.h has the interface.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sightline.audio.mel import SAMPLE_RATE
from sightline.types import Samples

_RETRIEVAL = 1  # AUDIO_OUTPUT_RETRIEVAL: samples come to the callback
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_UTF8 = 1
_WORD = 1  # espeakEVENT_WORD
_LAST = 0  # espeakEVENT_LIST_TERMINATED


class _Identity(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Identity),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@dataclass(frozen=True, slots=True)
class Voice:
    language: str
    """espeak's: `en-us`, `es-419`."""
    variant: str
    """A file of its `voices/!v`: `m3`, `klatt2`."""
    words_per_minute: int
    pitch: int
    """0..100; 50 is the voice's own."""
    pitch_range: int


class Espeak:
    """The library keeps its state in globals, so there is one for a process (`espeak()`), and one says one thing."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._library: Any = ctypes.CDLL("libespeak-ng.so.1")
        self._rate = self._library.espeak_Initialize(_RETRIEVAL, 0, None, 0)
        if self._rate <= 0:
            raise RuntimeError("espeak-ng did not start")
        self._samples: list[np.ndarray[Any, Any]] = []
        self._starts: list[int] = []
        self._callback = _CALLBACK(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count:
            self._samples.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events and events[index].type != _LAST:
            if events[index].type == _WORD:
                self._starts.append(events[index].sample)
            index += 1
        return 0

    def say(self, text: str, voice: Voice) -> tuple[Samples, list[float]]:
        """The samples, and when each word begins, in seconds. Raises `ValueError` for a voice that does not exist."""
        with self._turn:
            return self._say(text, voice)

    def _say(self, text: str, voice: Voice) -> tuple[Samples, list[float]]:
        if self._library.espeak_SetVoiceByName(f"{voice.language}+{voice.variant}".encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice.language}+{voice.variant}")
        self._library.espeak_SetParameter(_RATE, voice.words_per_minute, 0)
        self._library.espeak_SetParameter(_PITCH, voice.pitch, 0)
        self._library.espeak_SetParameter(_RANGE, voice.pitch_range, 0)
        self._samples.clear()
        self._starts.clear()
        encoded = text.encode() + b"\0"
        self._library.espeak_Synth(encoded, len(encoded), 0, 0, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        raw = np.concatenate(self._samples) if self._samples else np.zeros(0, np.int16)
        return _resample(raw.astype(np.float32) / 32768.0, self._rate), [s / self._rate for s in self._starts]


@cache
def espeak() -> Espeak:
    return Espeak()


def _resample(samples: Samples, rate: int) -> Samples:
    """To 16 kHz, by a transform of the whole: nothing above 8 kHz folds back."""
    wanted = round(len(samples) * SAMPLE_RATE / rate)
    if not wanted or rate == SAMPLE_RATE:
        return samples
    spectrum = np.fft.rfft(samples)
    bins = wanted // 2 + 1
    kept = np.zeros(bins, spectrum.dtype)
    kept[: min(bins, len(spectrum))] = spectrum[:bins]
    return (np.fft.irfft(kept, wanted) * (wanted / len(samples))).astype(np.float32)
