"""One replica: the fake engine's steps, and what its caches keep.

Steps are not run one by one: as long as nothing is prefilled and nobody ends, all are alike, and many are one stride.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass

from sightline.cluster.simulation.traffic import Turn

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a replica is and what it keeps. The first four are the fake engine's options."""

    slots: int = 8
    step_s: float = 0.05
    prefill_chunk: int = 256
    prefill_s_per_token: float = 0.0002
    """5,000 tokens in a second. Assumed."""
    encode: float = 0.35
    """What a token of a picture costs in the vision tower, in tokens of prefill: 4 patches in 675 million parameters
    beside 1 token in 7.6 billion (Qwen2-VL-7B, Wang and others, 2024), by arithmetic."""
    prefix_tokens: int = 100_000
    """Of prompts and answers, whose keys and values are kept: 5.7 GB for that model. Assumed."""
    embedding_tokens: int = 200_000
    """Of pictures, whose embeddings are kept: 1.4 GB for that model. Assumed."""


class Kept:
    """What is kept of a cache, up to a number of tokens; the least recently used goes first."""

    def __init__(self, tokens: int) -> None:
        self._room = tokens
        self._kept: OrderedDict[Hashable, int] = OrderedDict()

    def use(self, key: Hashable) -> bool:
        """Whether it is there; it is then the last to go."""
        if key not in self._kept:
            return False
        self._kept.move_to_end(key)
        return True

    def keep(self, key: Hashable, tokens: int) -> None:
        self._room += self._kept.pop(key, 0) - tokens
        self._kept[key] = tokens
        while self._room < 0:
            self._room += self._kept.popitem(last=False)[1]


@dataclass(slots=True, eq=False)
class Asked:
    """A turn under way, and what came of it. Times are seconds since the beginning."""

    turn: Turn
    conversation: int
    arrived: float
    first_token: float = math.nan
    finished: float = math.nan
    seen: bool = False
    """The replica knew the picture: its keys and values, or its embedding."""
    computed_tokens: int = 0
    """Of the prompt; the rest were kept from earlier."""
    to_prefill: int = 0
    left: int = 0


class Replica:
    """Driven by events: at `ends`, call `end`; a request comes by `ask`. Either may change `ends`."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._running: list[Asked] = []
        self._line: deque[Asked] = deque()
        self._prefixes = Kept(pace.prefix_tokens)
        self._embeddings = Kept(pace.embedding_tokens)
        self._began = 0.0
        self._steps = 0
        self._each_s = 0.0

    @property
    def ends(self) -> float:
        """When this stride ends; infinite while there is nothing to do."""
        return self._began + self._steps * self._each_s if self._running else math.inf

    def ask(self, asked: Asked, now: float) -> None:
        self._line.append(asked)
        if not self._running:
            self._begin(now)
        elif len(self._running) < self._pace.slots:  # it is let in after the step that is being run
            run = math.ceil((now - self._began) / self._each_s - _ROUNDING)
            self._steps = min(self._steps, max(1, run))

    def end(self) -> list[Asked]:
        """Who has all of its answer now."""
        now, first = self.ends, self._began + self._each_s
        done = []
        for asked in self._running:
            if asked.to_prefill:
                continue
            if math.isnan(asked.first_token):
                asked.first_token = first
                self._keep_picture(asked.turn)
            asked.left -= self._steps
            if not asked.left:
                asked.finished = now
                self._keep_conversation(asked)
                done.append(asked)
        self._running = [asked for asked in self._running if asked.left]
        self._begin(now)
        return done

    def _begin(self, now: float) -> None:
        while self._line and len(self._running) < self._pace.slots:
            self._running.append(self._admitted(self._line.popleft()))
        self._began = now
        prefilled = self._prefill()
        self._each_s = self._pace.step_s + self._pace.prefill_s_per_token * prefilled
        self._steps = 1 if prefilled else min((asked.left for asked in self._running), default=0)

    def _prefill(self) -> int:
        """Takes the next chunk of prompts, in order of admission; returns its tokens."""
        left = self._pace.prefill_chunk
        for asked in self._running:
            tokens = min(left, asked.to_prefill)
            asked.to_prefill -= tokens
            left -= tokens
        return self._pace.prefill_chunk - left

    # --- caches ----------------------------------------------------------------------------------------------------

    def _admitted(self, asked: Asked) -> Asked:
        """A prompt is the picture, the turns before, the new text: what is kept of it is kept from its beginning on."""
        turn = asked.turn
        prefix = self._prefixes.use(("picture", turn.picture))
        embedded = self._embeddings.use(turn.picture)
        known = turn.picture_tokens if prefix else 0
        if prefix and self._prefixes.use(("conversation", asked.conversation)):
            known += turn.history_tokens
        asked.seen = prefix or embedded
        asked.computed_tokens = turn.prompt_tokens - known
        asked.to_prefill = asked.computed_tokens + (0 if asked.seen else round(self._pace.encode * turn.picture_tokens))
        asked.left = turn.answer_tokens
        return asked

    def _keep_picture(self, turn: Turn) -> None:
        self._prefixes.keep(("picture", turn.picture), turn.picture_tokens)
        self._embeddings.keep(turn.picture, turn.picture_tokens)

    def _keep_conversation(self, asked: Asked) -> None:
        turn = asked.turn
        tokens = turn.history_tokens + turn.text_tokens + turn.answer_tokens
        self._prefixes.keep(("conversation", asked.conversation), tokens)
        self._prefixes.use(("picture", turn.picture))  # it is the beginning of that, and goes after it
