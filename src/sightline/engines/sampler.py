"""Logits to the next token. Pure numpy, one sequence at a time.

The order is that of vLLM's sampler: what a grammar forbids (`only`), penalties, bias, forbidden tokens, temperature,
min_p, top_k, top_p, draw.

The draw is reproducible whatever else runs: a counter-based generator (Philox, Salmon et al., "Parallel Random Numbers:
As Easy as 1, 2, 3", SC 2011) keyed by the seed and counted by the position gives one number in [0, 1), and the token is
where that number falls in the cumulative distribution, taken in the order of token ids. So a rounding difference in the
logits (another batch, another kernel) changes the token only if the number falls within rounding of a border.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sightline.types import SamplingParams

Logits = npt.NDArray[np.float32]
"""Of one position, shape [vocabulary]."""

MIN_LOGPROB: Final = -9999.0
"""Stands for "very unlikely": the wire contract knows no -inf."""
_TOP_P_CANDIDATES: Final = 1024
"""Tokens sorted first for top_p: nearly always enough, and far cheaper than sorting a vocabulary."""


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Of the model's own distribution, before temperature, penalties and filters."""

    chosen: float
    top_ids: tuple[int, ...]
    """The most likely tokens, best first."""
    top: tuple[float, ...]


class Sampler:
    """Draws the tokens of one sequence."""

    def __init__(
        self, params: SamplingParams, prompt_tokens: Iterable[int], end_tokens: frozenset[int], vocab_size: int
    ) -> None:
        """`end_tokens`: those that end the sequence, which must not come before `params.min_tokens`."""
        self._params = params
        self._end_tokens = np.array(sorted(t for t in end_tokens if t < vocab_size), np.int64)
        self._seed = secrets.randbits(64) if params.seed is None else params.seed % 2**64
        self._counts = np.zeros(vocab_size, np.int32)
        self._in_prompt = np.zeros(vocab_size, np.bool_)
        self._in_prompt[np.fromiter(prompt_tokens, np.int64)] = True
        self._bias_ids = np.array(list(params.logit_bias.keys()), np.int64)
        self._bias = np.array(list(params.logit_bias.values()), np.float32)
        self._position = 0

    def next_token(self, logits: Logits) -> int:
        """The token at the next position; each call is one position further."""
        adjusted = self._adjust(logits)
        if self._params.temperature == 0.0:
            token = int(adjusted.argmax())
        else:
            uniform = uniform_at(self._seed, self._position)
            token = pick(distribution(adjusted, self._params), uniform)
        self._counts[token] += 1
        self._position += 1
        return token

    def _adjust(self, logits: Logits) -> Logits:
        """Logits with penalties, bias and what is forbidden; the argument itself is left alone.

        Presence and frequency count what was generated (OpenAI's formula); repetition also what was asked (Keskar et
        al., "CTRL", arXiv:1909.05858): seen logits are divided by the penalty if positive, else multiplied.
        """
        p = self._params
        forbid = len(self._end_tokens) and self._position < p.min_tokens
        penalised = p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1.0
        if not (penalised or len(self._bias_ids) or forbid):
            return logits
        out = logits.copy()
        if p.repetition_penalty != 1.0:
            seen = self._in_prompt | (self._counts > 0)
            out[seen] = np.where(out[seen] > 0, out[seen] / p.repetition_penalty, out[seen] * p.repetition_penalty)
        if p.presence_penalty or p.frequency_penalty:
            out -= p.frequency_penalty * self._counts.astype(np.float32)
            out -= p.presence_penalty * (self._counts > 0)
        if len(self._bias_ids):
            out[self._bias_ids] += self._bias
        if forbid:
            kept = out[self._end_tokens]
            out[self._end_tokens] = -np.inf
            if out.max() == -np.inf:  # a grammar allows nothing but the end
                out[self._end_tokens] = kept
        return out


def only(allowed: npt.NDArray[np.bool_], logits: Logits) -> Logits:
    """Logits in which other tokens cannot come."""
    return np.where(allowed, logits, np.float32(-np.inf))


def uniform_at(seed: int, position: int) -> float:
    """The number in [0, 1) that belongs to a seed and a position."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, position])).random())


def distribution(logits: Logits, params: SamplingParams) -> npt.NDArray[np.float64]:
    """Probabilities after temperature, min_p, top_k and top_p. Sums to 1; what is filtered out is 0."""
    scaled = logits.astype(np.float64) / params.temperature
    weights = np.exp(scaled - scaled.max())
    if params.min_p > 0.0:
        weights[weights < params.min_p] = 0.0  # the likeliest has weight 1
    if 0 < params.top_k < weights.size:
        # Ties at the border stay in: leaving one out would be a choice by rounding.
        weights[weights < np.partition(weights, -params.top_k)[-params.top_k]] = 0.0
    if params.top_p < 1.0:
        weights[weights < _nucleus_border(weights, params.top_p)] = 0.0
    probabilities: npt.NDArray[np.float64] = weights / weights.sum()
    return probabilities


def pick(probabilities: npt.NDArray[np.float64], uniform: float) -> int:
    """Where `uniform` falls in the cumulative distribution, in the order of token ids."""
    cumulative = probabilities.cumsum()
    token = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    # Rounding may put the number on the far end, behind tokens of probability 0.
    return token if token < probabilities.size else int(probabilities.nonzero()[0][-1])


def logprobs(logits: Logits, token: int, num_top: int) -> Logprobs:
    """Natural logarithms of probabilities, of `token` and of the `num_top` likeliest of those that could come."""
    wide = logits.astype(np.float64)
    best = wide.max()
    log_probabilities = np.maximum(wide - best - np.log(np.exp(wide - best).sum()), MIN_LOGPROB)
    top: npt.NDArray[Any] = np.empty(0, np.int64)
    if num_top:
        count = min(num_top, wide.size)
        candidates = np.argpartition(-wide, count - 1)[:count]
        candidates = candidates[wide[candidates] > -np.inf]
        top = candidates[np.lexsort((candidates, -wide[candidates]))]
    return Logprobs(
        float(log_probabilities[token]),
        tuple(int(t) for t in top),
        tuple(float(v) for v in log_probabilities[top]),
    )


def _nucleus_border(weights: npt.NDArray[np.float64], top_p: float) -> float:
    """The smallest weight in the smallest set of likeliest tokens that holds `top_p` of the mass (Holtzman et al.,
    arXiv:1904.09751)."""
    wanted = top_p * weights.sum()
    if weights.size > _TOP_P_CANDIDATES:
        likeliest = -np.sort(-np.partition(weights, -_TOP_P_CANDIDATES)[-_TOP_P_CANDIDATES:])
        if likeliest.sum() < wanted:
            likeliest = -np.sort(-weights)
    else:
        likeliest = -np.sort(-weights)
    index = int(np.searchsorted(likeliest.cumsum(), wanted, side="left"))
    return float(likeliest[min(index, likeliest.size - 1)])
