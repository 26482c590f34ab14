"""People who ask about pictures, drawn from a seed. Beside each number stands its source, or that it is assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TURNS = 2.0
"""Of a conversation, in the mean."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request, as it comes out of a conversation."""

    picture: int
    picture_tokens: int
    history_tokens: int
    """Of the turns before it: between the picture and the new text."""
    text_tokens: int
    answer_tokens: int
    wait_s: float
    """Since the answer to the turn before it; for the first, since the beginning."""

    @property
    def prompt_tokens(self) -> int:
        return self.picture_tokens + self.history_tokens + self.text_tokens


Conversation = Sequence[Turn]
"""Turns about one picture, one after the other."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Conversations begin independently of each other, at a constant rate."""

    conversations: int
    per_s: float
    """How many begin in a second."""
    per_picture: float = 200 / 43
    """Conversations for each picture that occurs: VisionArena-Chat has 200,000 with about 43,000 pictures (its data
    card, https://huggingface.co/datasets/lmarena-ai/VisionArena-Chat). That is much: where the arena shows two models
    side by side, a picture has two conversations at least."""
    zipf: float = 0.8
    """Popularity is rank to the power of minus this. Assumed: requests for pages of the web show 0.64 to 0.83 (Breslau
    and others, "Web Caching and Zipf-like Distributions", 1999); none is published for VisionArena."""
    turns: float = TURNS
    """Mean, of a geometric distribution. 2.0 in LMSYS-Chat-1M (Zheng and others, 2023, table 1), of the same arena."""
    text_tokens: float = 69.5
    """Mean of a turn's prompt (the same table); exponential."""
    answer_tokens: float = 214.5
    """Mean of an answer (the same table); exponential."""
    picture_tokens: float = 800.0
    """Median: 0.63 megapixels in tokens of 28 x 28 pixels (Qwen2-VL). Log-normal, from 64 to 4,096. Assumed."""
    picture_spread: float = 0.7
    """Standard deviation of the logarithm. Assumed."""
    think_s: float = 20.0
    """Mean time between an answer and the next question; exponential. Assumed."""


def draw(traffic: Traffic, seed: int) -> list[Conversation]:
    """The same seed draws the same conversations, in the order in which they begin."""
    chance = np.random.default_rng(seed)
    popularity = zipf(catalogue(traffic), traffic.zipf)
    sizes = np.exp(chance.normal(np.log(traffic.picture_tokens), traffic.picture_spread, len(popularity)))
    sizes = np.clip(sizes, 64, 4096).astype(int)
    begins = np.cumsum(chance.exponential(1 / traffic.per_s, traffic.conversations))
    pictures = chance.choice(len(popularity), traffic.conversations, p=popularity)
    turns = chance.geometric(1 / traffic.turns, traffic.conversations)
    return [
        _conversation(traffic, chance, float(begin), int(picture), int(sizes[picture]), int(count))
        for begin, picture, count in zip(begins, pictures, turns, strict=True)
    ]


def _conversation(
    traffic: Traffic, chance: np.random.Generator, begin_s: float, picture: int, picture_tokens: int, count: int
) -> Conversation:
    texts = 1 + chance.exponential(traffic.text_tokens - 1, count).astype(int)
    answers = 1 + chance.exponential(traffic.answer_tokens - 1, count).astype(int)
    waits = [begin_s, *chance.exponential(traffic.think_s, count - 1)]
    turns, history = [], 0
    for text, answer, wait_s in zip(texts.tolist(), answers.tolist(), waits, strict=True):
        turns.append(Turn(picture, picture_tokens, history, text, answer, float(wait_s)))
        history += text + answer
    return turns


def zipf(pictures: int, exponent: float) -> Floats:
    """How likely each is, the most popular first."""
    weights = np.arange(1, pictures + 1, dtype=np.float64) ** -exponent
    return np.asarray(weights / weights.sum(), np.float64)


def catalogue(traffic: Traffic) -> int:
    """Of how many pictures to draw, so that about `conversations / per_picture` different ones occur.

    More pictures mean more different ones, so that halving finds it. Where even a million are too few, a million.
    """
    wanted = traffic.conversations / traffic.per_picture
    low, high = 1, 1_000_000
    while low < high:
        middle = (low + high) // 2
        missed = np.exp(traffic.conversations * np.log1p(-np.minimum(zipf(middle, traffic.zipf), 1 - 1e-12)))
        if middle - missed.sum() < wanted:
            low = middle + 1
        else:
            high = middle
    return low
