"""Recordings with the truth about them: who says which word when, made anew for every step.

A *take* is a phrase in one voice. A *scene* is a window with takes laid into it at random moments, at random loudness,
over noise, in a room. Voices and speeds of the two splits have nothing in common.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from sightline.audio.mel import SAMPLE_RATE
from sightline.types import Samples
from training.whisper.espeak import Voice, espeak
from training.whisper.words import NUM_WORDS, SPOKEN, Language

Split = Literal["train", "held_out"]

ACCENTS: Final[dict[Split, dict[Language, tuple[str, ...]]]] = {
    "train": {"en": ("en-us", "en", "en-gb-scotland", "en-029", "en-gb-x-rp"), "es": ("es", "es-419")},
    "held_out": {"en": ("en-us", "en", "en-us-nyc"), "es": ("es", "es-419")},
}
VARIANTS: Final[dict[Split, tuple[str, ...]]] = {
    "train": (
        "f1", "f2", "f4", "f5", "m1", "m3", "m4", "m5", "m6", "m8", "klatt", "klatt2", "klatt4", "Alex", "Alicia",
        "Annie", "Denis", "Diogo", "Gene", "Hugo", "Jacky", "Lee", "Marco", "Mario", "Mike", "adam", "anika", "antonio",
        "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "grandma", "grandpa", "gustave",
        "iven", "iven2", "john", "kaukovalta", "marcelo", "max", "michel", "miguel", "norbert", "paul", "pedro",
        "quincy", "rob", "robert", "sandro", "shelby", "steph", "steph2", "travis", "victor", "zac",
    ),
    "held_out": ("f3", "m2", "m7", "klatt3", "Andrea", "Andy", "Michael", "linda", "pablo"),
}  # fmt: skip
SPEEDS: Final[dict[Split, tuple[range, ...]]] = {
    "train": (range(112, 182), range(210, 251)),
    "held_out": (range(100, 110), range(184, 208)),
}
"""Words a minute, as espeak counts them."""
PHRASE_GAP_S: Final = (0.6, 1.6)
"""Between phrases; a pause of this length ends a segment."""


@dataclass(frozen=True, slots=True)
class Word:
    word: int
    """Its place in `SPOKEN`."""
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Take:
    samples: Samples
    words: tuple[Word, ...]
    language: Language


@dataclass(frozen=True, slots=True)
class Scene:
    samples: Samples
    phrases: tuple[tuple[Word, ...], ...]
    """Times in seconds from the window's beginning; a phrase that the window cuts keeps the words before the cut, and
    ends after the window's end."""
    language: Language


class Studio:
    def __init__(self, split: Split, seed: int) -> None:
        self._espeak = espeak()
        self._split = split
        self._random = random.Random(seed)
        self._noise = np.random.default_rng(seed)

    def take(self, language: Language, most_words: int = 8) -> Take:
        rng = self._random
        split = self._split
        voice = Voice(
            rng.choice(ACCENTS[split][language]),
            rng.choice(VARIANTS[split]),
            rng.choice(rng.choice(SPEEDS[split])),
            rng.randint(20, 80),
            rng.randint(20, 80),
        )
        words = rng.choices(range(NUM_WORDS), k=rng.randint(1, most_words))
        pauses = [", " if rng.random() < 0.35 else " " for _ in words]
        text = "".join(SPOKEN[language][w] + p for w, p in zip(words, pauses, strict=True)).rstrip(" ,")
        samples, starts = self._espeak.say(text, voice)
        if len(starts) != len(words):  # two words that the voice runs into one
            return self.take(language, most_words)
        ends = [*starts[1:], len(samples) / SAMPLE_RATE]
        return Take(samples, tuple(map(_Trimmed(samples), words, starts, ends)), language)

    def scene(self, takes: list[Take], window_s: float) -> Scene:
        """Takes of one language, one after the other, as far as the window goes."""
        rng = self._random
        window = round(window_s * SAMPLE_RATE)
        mixed = np.zeros(window, np.float32)
        phrases = []
        at = rng.random() ** 2 * min(2.0, window_s / 2)
        for take in takes:
            take = _stretched(take, rng.uniform(0.9, 1.1)) if self._split == "train" else take
            begin = round(at * SAMPLE_RATE)
            if begin >= window - SAMPLE_RATE // 4:
                break
            part = take.samples[: window - begin]
            mixed[begin : begin + len(part)] += part * rng.uniform(0.5, 1.0)
            phrases.append(tuple(Word(w.word, w.start + at, w.end + at) for w in take.words))
            at = phrases[-1][-1].end + rng.uniform(*PHRASE_GAP_S)
        samples = self._in_a_room(mixed)
        if rng.random() < 0.4:  # a recording that ends before the window does: nothing, not even noise
            samples[round((at - rng.uniform(0.3, PHRASE_GAP_S[0])) * SAMPLE_RATE) :] = 0.0
        return Scene(samples, tuple(phrases), takes[0].language if takes else "en")

    def quiet(self, window_s: float) -> Samples:
        """Nobody speaks."""
        level = 10 ** self._random.uniform(-5, -1.5)
        return (self._hiss(round(window_s * SAMPLE_RATE)) * level).astype(np.float32)

    def _in_a_room(self, samples: Samples) -> Samples:
        rng = self._random
        if rng.random() < 0.25:  # echoes
            tail = round(rng.uniform(0.02, 0.15) * SAMPLE_RATE)
            response = (
                self._noise.standard_normal(tail) * np.exp(-np.arange(tail) * 6.0 / tail) * rng.uniform(0.02, 0.1)
            )
            response[0] = 1.0
            size = len(samples) + tail
            samples = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)[: len(samples)]
        if rng.random() < 0.3:  # a dull or a sharp microphone
            slope = rng.uniform(-0.6, 0.6)
            samples = samples + slope * np.concatenate([[0.0], samples[:-1]])
        power = float(np.sqrt(np.mean(np.square(samples)))) or 1e-3
        if rng.random() < 0.75:
            samples = samples + self._hiss(len(samples)) * power * 10 ** (-rng.uniform(8, 45) / 20)
        loudest = float(np.abs(samples).max()) or 1.0
        return (samples * (10 ** -rng.uniform(0.0, 1.3) / loudest)).astype(np.float32)

    def _hiss(self, count: int) -> np.ndarray:
        """Noise of power 1 that falls by 0 to 6 dB an octave."""
        spectrum = np.fft.rfft(self._noise.standard_normal(count))
        spectrum[1:] *= np.arange(1, len(spectrum)) ** -self._random.uniform(0.0, 1.0)
        noise = np.fft.irfft(spectrum, count)
        return noise / (noise.std() or 1.0)


class _Trimmed:
    """A word's time without the silence around it."""

    def __init__(self, samples: Samples) -> None:
        step = SAMPLE_RATE // 200
        self._levels = np.abs(samples[: len(samples) // step * step]).reshape(-1, step).max(axis=1)
        self._loud = 0.02 * self._levels.max() if len(self._levels) else 0.0

    def __call__(self, word: int, start: float, end: float) -> Word:
        low, high = round(start * 200), round(end * 200)
        loud = np.flatnonzero(self._levels[low:high] > self._loud)
        if not len(loud):
            return Word(word, start, end)
        return Word(word, (low + int(loud[0])) / 200, (low + int(loud[-1]) + 1) / 200)


def _stretched(take: Take, factor: float) -> Take:
    """Slower and lower, or faster and higher: a larger or a smaller speaker."""
    count = max(2, round(len(take.samples) * factor))
    at = np.linspace(0, len(take.samples) - 1, count)
    samples = np.interp(at, np.arange(len(take.samples)), take.samples).astype(np.float32)
    return Take(samples, tuple(Word(w.word, w.start * factor, w.end * factor) for w in take.words), take.language)
