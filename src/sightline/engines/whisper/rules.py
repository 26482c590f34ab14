"""Which tokens may come next: the grammar of a transcript with timestamps.

Timestamps come in pairs but for the first and the last, never go back, and are preferred where all of them together
are likelier than any word. openai/whisper `decoding.py`, `ApplyTimestampRules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sightline.engines.whisper.checkpoint import Facts
from sightline.engines.whisper.vocabulary import Vocabulary

Logits = npt.NDArray[np.float32]


class Rules:
    def __init__(self, facts: Facts, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._latest_start = facts.latest_start
        always = facts.suppressed | vocabulary.silent
        self._never = np.array(sorted(always), np.int64)
        self._never_first = np.array(sorted(facts.suppressed_first), np.int64)

    def apply(self, logits: Logits, said: Sequence[int]) -> Logits:
        """Of the next token, after `said`, those that may not be are -inf. Changes `logits`, shape [vocabulary]."""
        v = self._vocabulary
        logits[self._never] = -np.inf
        if not said:
            logits[self._never_first] = -np.inf
            logits[: v.first_timestamp] = -np.inf
            if self._latest_start is not None:
                logits[v.first_timestamp + self._latest_start + 1 :] = -np.inf
            return logits
        times = [token for token in said if v.is_time(token)]
        after_time = v.is_time(said[-1])
        after_pair = after_time and (len(said) < 2 or v.is_time(said[-2]))
        if after_pair:
            logits[v.first_timestamp :] = -np.inf
        elif after_time:
            logits[: v.end] = -np.inf
        if times:
            # A segment has a length: only the start of the next one may be the end of this.
            earliest = times[-1] if after_time and not after_pair else times[-1] + 1
            logits[v.first_timestamp : earliest] = -np.inf
        _prefer_times(logits, v.first_timestamp)
        return logits


def _prefer_times(logits: Logits, first: int) -> None:
    times, others = logits[first:], logits[:first]
    if times.size and np.isfinite(times.max()) and _log_sum(times) > others.max():
        others[:] = -np.inf


def _log_sum(logits: Logits) -> Any:
    highest = logits.max()
    return highest + np.log(np.exp(logits - highest).sum())
