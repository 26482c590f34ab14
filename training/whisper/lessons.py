"""A scene as a model is taught it: mel spectrogram, tokens, and which of them it should have known.

The sequence is Whisper's (arXiv:2212.04356, figure 1): `<|startofprev|> text before <|startoftranscript|> language task
[<|notimestamps|>] [<|start|>] text [<|end|>] ... <|endoftext|>`; where nobody speaks, `<|nospeech|>` in the language's
place. A phrase that the window cuts is told by its start alone, so that the next window can begin there.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import numpy as np
from tokenizers import Tokenizer

from sightline.audio.mel import SAMPLE_RATE, Mel, log_mel
from training.whisper.speech import Scene, Studio, Take, Word
from training.whisper.tokens import TIMESTAMP_S
from training.whisper.words import NUM_WORDS, Language, Task, written

FRAME_S: Final = 0.02
"""Seconds of a place in the encoder's output."""
_NEAR_S: Final = 0.06
"""What a timestamp is about: the sound around it."""
ENDS_BEFORE_S: Final = 0.04
"""A phrase that comes so close to the window's end is taken for cut."""


@dataclass(frozen=True, slots=True)
class Lesson:
    mel: Mel
    tokens: list[int]
    asked_from: int
    """Index of `<|startoftranscript|>`: what comes before is given, not asked."""
    not_asked: frozenset[int]
    """Indices of tokens that are the user's choice."""
    frames: np.ndarray
    """What is said at each `FRAME_S`: 0 for nothing, else 1 + word, Spanish ones behind the English."""
    places: tuple[tuple[int, int] | None, ...]
    """For each token the frames that it is about, first and behind the last; None for those about none."""


class Teacher:
    def __init__(self, tokenizer: Tokenizer, studio: Studio, bands: int, seed: int) -> None:
        self._tokenizer = tokenizer
        self._studio = studio
        self._bands = bands
        self._random = random.Random(seed)
        self._pool: dict[Language, list[Take]] = {"en": [], "es": []}

    def stock(self, count: int, most: int) -> None:
        """Adds `count` takes; the oldest of more than `most` are forgotten."""
        for _ in range(count):
            language: Language = "en" if self._random.random() < 0.6 else "es"
            pool = self._pool[language]
            pool.append(self._studio.take(language))
            if len(pool) > most:
                pool.pop(0)

    def lesson(self, window_s: float) -> Lesson:
        rng = self._random
        frames = round(window_s / FRAME_S)
        if rng.random() < 0.05:
            mel = log_mel(self._studio.quiet(window_s), self._bands)
            tokens = self._nothing_said()
            not_asked = frozenset({1, 2, 3}) if len(tokens) > 3 else frozenset[int]()
            return Lesson(mel, tokens, 0, not_asked, np.zeros(frames, np.int64), (None,) * len(tokens))
        language: Language = "en" if rng.random() < 0.6 else "es"
        fitting = [t for t in rng.choices(self._pool[language], k=24) if len(t.samples) < 0.85 * window_s * SAMPLE_RATE]
        takes = fitting[: rng.choice((1, 1, 2, 3, 5)) if window_s > 5 else 2]
        return self.of(self._studio.scene(takes, window_s), window_s, with_times=rng.random() < 0.65)

    def of(self, scene: Scene, window_s: float, *, with_times: bool) -> Lesson:
        rng = self._random
        whole = [p for p in scene.phrases if p[-1].end <= window_s - ENDS_BEFORE_S]
        cut = scene.phrases[len(whole) :]
        task: Task = "translate" if rng.random() < (0.3 if scene.language == "es" else 0.05) else "transcribe"
        numerals = False
        prefix: list[int] = []
        if rng.random() < 0.2:
            numerals = rng.random() < 0.5
            prefix = self._ids("<|startofprev|>") + self._encode(self._before(scene.language, task, numerals))
        tokens = prefix + self._ids("<|startoftranscript|>", f"<|{scene.language}|>", f"<|{task}|>")
        not_asked = {len(tokens) - 1}
        samples = scene.samples
        if not with_times:
            not_asked.add(len(tokens))
            tokens += self._ids("<|notimestamps|>")
            samples = samples.copy()
            for phrase in cut:
                samples[max(0, round((phrase[0].start - 0.02) * SAMPLE_RATE)) :] *= 0.001
        places: list[tuple[int, int] | None] = [None] * len(tokens)

        def add(ids: list[int], start: float, end: float) -> None:
            tokens.extend(ids)
            places.extend([(int(start / FRAME_S), max(int(start / FRAME_S) + 1, round(end / FRAME_S)))] * len(ids))

        def add_time(at: float) -> None:
            if with_times:
                add([self._time(at)], max(0.0, at - _NEAR_S), at + _NEAR_S)

        for phrase in whole:
            add_time(phrase[0].start)
            for w in phrase:
                add(self._encode(f" {written(w.word, scene.language, task, numerals)}"), w.start, w.end)
            add_time(phrase[-1].end)
        for phrase in cut:
            add_time(phrase[0].start)
        tokens += self._ids("<|endoftext|>")
        places.append(None)
        heard = scene.phrases if with_times else whole
        return Lesson(
            log_mel(samples, self._bands),
            tokens,
            len(prefix),
            frozenset(not_asked),
            _frames(heard, scene.language, window_s),
            tuple(places),
        )

    def _nothing_said(self) -> list[int]:
        """That nobody speaks; or, as if that were not known, a transcript without words."""
        if self._random.random() < 0.5:
            return self._ids("<|startoftranscript|>", "<|nospeech|>", "<|endoftext|>")
        names = [self._random.choice(("<|en|>", "<|es|>")), self._random.choice(("<|transcribe|>", "<|translate|>"))]
        last = self._random.choice(("<|notimestamps|>", "<|0.00|>"))
        return self._ids("<|startoftranscript|>", *names, last, "<|endoftext|>")

    def _before(self, language: Language, task: Task, numerals: bool) -> str:
        rng = self._random
        words = rng.choices(range(10) if numerals else range(NUM_WORDS), k=rng.randint(2, 6))
        return "".join(f" {written(w, language, task, numerals)}" for w in words)

    def _time(self, at: float) -> int:
        return self._ids("<|0.00|>")[0] + round(max(0.0, at) / TIMESTAMP_S)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def _ids(self, *names: str) -> list[int]:
        ids = [self._tokenizer.token_to_id(name) for name in names]
        assert None not in ids
        return ids


def _frames(
    phrases: list[tuple[Word, ...]] | tuple[tuple[Word, ...], ...], language: Language, window_s: float
) -> np.ndarray:
    frames = np.zeros(round(window_s / FRAME_S), np.int64)
    for phrase in phrases:
        for w in phrase:
            frames[round(w.start / FRAME_S) : round(w.end / FRAME_S)] = (
                1 + w.word + (NUM_WORDS if language == "es" else 0)
            )
    return frames
