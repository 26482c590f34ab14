"""One window to tokens: greedy or sampled, and again, warmer, where the answer looks wrong.

Thresholds and temperatures are those of openai/whisper `transcribe.py`, which the paper's section 4.5 explains: an
answer that repeats itself compresses too well, one that the model does not believe in has a low mean log-probability.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from sightline.audio.mel import Mel
from sightline.engines.whisper.checkpoint import Facts
from sightline.engines.whisper.rules import Logits, Rules
from sightline.engines.whisper.vocabulary import Vocabulary

TEMPERATURES: Final = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Of a request that asks for 0, one after the other until an answer is good."""
_MAX_COMPRESSION: Final = 2.4
_MIN_AVG_LOGPROB: Final = -1.0
_MAX_NO_SPEECH: Final = 0.6


class Decoding(Protocol):
    """A transcript as the model writes it: what it was given so far is kept."""

    def step(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Takes these tokens too; logits after each, shape [tokens, vocabulary]."""
        ...


class SpeechModel(Protocol):
    """A Whisper model on some runtime. Used from one thread; one `Decoding` at a time."""

    def encode(self, mel: Mel) -> Any:
        """What the decoder looks at, of a whole window: shape [bands, frames]."""
        ...

    def decoding(self, heard: Any) -> Decoding:
        """A new transcript of what `encode` gave; the one before is over."""
        ...

    def attention(self, heard: Any, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """Where each of the checkpoint's alignment heads looks at each token: shape [heads, tokens, places], rows sum
        to 1."""
        ...


class Cancelled(Exception):
    """Nobody wants the answer any more."""


@dataclass(frozen=True, slots=True)
class Attempt:
    tokens: list[int]
    """Text and timestamps, without the end."""
    logprobs: list[float]
    """Of each token."""
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float

    @property
    def is_silence(self) -> bool:
        return self.no_speech_prob > _MAX_NO_SPEECH and self.avg_logprob < _MIN_AVG_LOGPROB

    @property
    def is_good(self) -> bool:
        """Or nothing that another temperature would mend."""
        return self.is_silence or (self.compression_ratio <= _MAX_COMPRESSION and self.avg_logprob >= _MIN_AVG_LOGPROB)


class Writer:
    """Writes down windows with one model."""

    def __init__(self, model: SpeechModel, facts: Facts, vocabulary: Vocabulary) -> None:
        self._model = model
        self._vocabulary = vocabulary
        self._rules = Rules(facts, vocabulary)
        self._room = facts.shape.target_positions
        self.most_prompt = self._room // 2 - 1
        """Tokens of what was said before, at most; the latest are kept."""

    def language(self, heard: Any) -> str:
        """The likeliest of those that the model knows."""
        v = self._vocabulary
        if not v.is_multilingual:
            return "en"
        logits = self._model.decoding(heard).step([v.start])[-1]
        return max(v.languages, key=lambda code: float(logits[v.languages[code]]))

    def write(
        self,
        heard: Any,
        start: Sequence[int],
        prompt: Sequence[int],
        temperature: float,
        seed: int,
        check: Callable[[], None],
    ) -> Attempt:
        """The best attempt at a window. `check` is called before each token and raises when nobody wants it."""
        v = self._vocabulary
        before = [v.before, *prompt[-self.most_prompt :]] if prompt else []
        temperatures = TEMPERATURES if temperature == 0.0 else (temperature,)
        for index, warmth in enumerate(temperatures):
            random = np.random.default_rng([seed, index])
            attempt = self._attempt(heard, before, start, warmth, random, check)
            if attempt.is_good:
                break
        return attempt

    def _attempt(
        self,
        heard: Any,
        before: Sequence[int],
        start: Sequence[int],
        temperature: float,
        random: np.random.Generator,
        check: Callable[[], None],
    ) -> Attempt:
        v = self._vocabulary
        prefix = [*before, *start]
        check()
        decoding = self._model.decoding(heard)
        first = decoding.step(prefix)
        no_speech_prob = 0.0 if v.no_speech is None else float(_softmax(first[len(before)])[v.no_speech])
        logits: Logits = first[-1].copy()
        tokens: list[int] = []
        logprobs: list[float] = []
        total = 0.0
        for _ in range(min(self._room // 2, self._room - len(prefix))):
            logs = _log_softmax(self._rules.apply(logits, tokens))
            token = _choose(logs, temperature, random)
            total += float(logs[token])
            if token == v.end:
                break
            tokens.append(token)
            logprobs.append(float(logs[token]))
            check()
            logits = decoding.step([token])[-1].copy()
        text = v.text(tokens).strip().encode()
        return Attempt(
            tokens,
            logprobs,
            avg_logprob=total / (len(tokens) + 1),
            no_speech_prob=no_speech_prob,
            compression_ratio=len(text) / len(zlib.compress(text)),
            temperature=temperature,
        )


def _choose(logs: npt.NDArray[np.float32], temperature: float, random: np.random.Generator) -> int:
    if temperature == 0.0:
        return int(logs.argmax())
    weights = _softmax(logs / temperature).astype(np.float64)
    return int(random.choice(len(weights), p=weights / weights.sum()))


def _log_softmax(logits: Logits) -> npt.NDArray[np.float32]:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), np.float32)


def _softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.exp(_log_softmax(logits))
