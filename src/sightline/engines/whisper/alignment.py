"""Which word was said when: the path along which some heads' attention follows the sound.

openai/whisper `timing.py`: the attention of chosen heads, at each token of the text, is made comparable, smoothed and
averaged; dynamic time warping (Sakoe and Chiba, 1978) finds the path; a word lasts from where the path enters it to
where it leaves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sightline.engines.whisper.checkpoint import Facts
from sightline.engines.whisper.vocabulary import TIMESTAMP_S, Vocabulary
from sightline.engines.whisper.window import SpeechModel
from sightline.types import SpokenWord

_SMOOTHED: Final = 7
"""Places over which a median is taken."""
_CLOSING: Final = "\"'.。,，!！?？:：”)]}、"
"""Marks that belong to the word before them."""
_BOTH, _DOWN, _ALONG = 0, 1, 2
_OPENING: Final = "\"'“¿([{-"


class Aligner:
    def __init__(self, model: SpeechModel, facts: Facts, vocabulary: Vocabulary) -> None:
        self._model = model
        self._room = facts.shape.target_positions
        self._vocabulary = vocabulary

    def words(
        self, heard: Any, start: Sequence[int], text: Sequence[int], places: int, language: str
    ) -> list[SpokenWord]:
        """The words of `text` (tokens, no timestamps) with their times in seconds from the window's beginning.

        `start`: what the transcript began with; `places`: how many of the encoder's are of the recording.
        """
        v = self._vocabulary
        text = text[: self._room - len(start) - 2]
        if not text or places < 1:
            return []
        tokens = [*start, v.without_times, *text, v.end]
        attention = self._model.attention(heard, tokens)[:, :, :places]
        # A row is where the model looked before it said the next token: the first of these is of the first of `text`.
        token_starts = starts(_comparable(attention)[len(start) : -1])
        words, at = [], 0
        for group in v.words(text, language):
            begin, at = at, at + len(group)
            words.append(SpokenWord(v.text(group), token_starts[begin] * TIMESTAMP_S, token_starts[at] * TIMESTAMP_S))
        return _with_marks(words)


def _comparable(attention: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Shape [heads, tokens, places] to [tokens, places]."""
    weights = attention / np.maximum(attention.sum(axis=-1, keepdims=True), 1e-12)
    deviation = weights.std(axis=-2, keepdims=True)
    weights = (weights - weights.mean(axis=-2, keepdims=True)) / np.maximum(deviation, 1e-12)
    return np.asarray(_median(weights).mean(axis=0), np.float64)


def _median(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    half = _SMOOTHED // 2
    if weights.shape[-1] <= half:
        return weights
    padded = np.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(half, half)], mode="reflect")
    return np.asarray(np.median(np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHED, axis=-1), axis=-1))


def starts(weights: npt.NDArray[np.float64]) -> list[int]:
    """For each row the place at which the path of most weight enters it; it goes to the next row, the next place, or
    both, from the first of both to the last."""
    rows, places = weights.shape
    steps = np.zeros((rows + 1, places + 1), np.int8)
    steps[0, :], steps[1:, 0] = _ALONG, _DOWN
    above = [0.0] + [np.inf] * places
    for i in range(1, rows + 1):
        gains: list[float] = weights[i - 1].tolist()
        current = [np.inf] * (places + 1)
        row = [_DOWN] * (places + 1)
        for j in range(1, places + 1):
            both, down, along = above[j - 1], above[j], current[j - 1]
            if both < down and both < along:
                current[j], row[j] = both - gains[j - 1], _BOTH
            elif down < both and down < along:
                current[j], row[j] = down - gains[j - 1], _DOWN
            else:
                current[j], row[j] = along - gains[j - 1], _ALONG
        above, steps[i, 1:] = current, row[1:]
    entered = [0] * rows
    i, j = rows, places
    while i > 0:
        entered[i - 1] = max(0, j - 1)
        step = int(steps[i, j])
        i, j = i - int(step != _ALONG), j - int(step != _DOWN)
    return entered


def _with_marks(words: list[SpokenWord]) -> list[SpokenWord]:
    """Punctuation joins the word that it belongs to, and takes no time of its own."""
    joined: list[SpokenWord] = []
    opening = ""
    opened_at = 0.0
    for word in words:
        mark = word.text.strip()
        if mark and all(c in _OPENING for c in mark) and word.text.startswith(" "):
            opening, opened_at = opening + word.text, word.start
        elif mark and all(c in _CLOSING for c in mark) and joined and not opening:
            last = joined[-1]
            joined[-1] = SpokenWord(last.text + word.text, last.start, last.end)
        else:
            text = opening + word.text.lstrip() if opening else word.text
            joined.append(SpokenWord(text, word.start, word.end))
            opening = ""
    if opening:
        joined.append(SpokenWord(opening, opened_at, opened_at))
    return joined
