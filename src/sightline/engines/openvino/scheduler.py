"""Which sequences run in the next step, and how many of their tokens. Pure: no tensor, no clock, no thread.

Continuous batching (Yu et al., "Orca", OSDI 2022) with chunked prefill (Agrawal et al., "Sarathi-Serve",
arXiv:2403.02310): every step runs one token of each sequence that decodes, and fills what is left of the step's token
budget with pieces of prompts, so that a long prompt never makes the others wait for more than a step.

When blocks run out, the sequence that came last (of the lowest priority) gives up its blocks and is computed again
later: recomputing beats swapping where memory is one.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from typing import Final

from sightline.engines.openvino.blocks import BlockPool, PrefixNames

_UNDISTURBED: Final = 4
"""How many times longer a step may be when nobody decodes."""


@dataclass(slots=True, eq=False)
class Sequence:
    """One prompt and what has been generated from it."""

    arrival: int
    """Its number in the order of arrival, unique."""
    tokens: list[int]
    """The prompt, then what was generated."""
    names: PrefixNames
    priority: int = 0
    """Higher first."""
    num_computed: int = 0
    """Tokens whose keys and values are in `blocks`."""
    blocks: list[int] = field(default_factory=list)
    num_cached: int | None = None
    """Prompt tokens that were at hand when it was first admitted; None until then."""
    preemptions: int = 0

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller runs first."""
        return (-self.priority, self.arrival)

    @property
    def num_pending(self) -> int:
        return len(self.tokens) - self.num_computed


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `begin` to `end` of a sequence, to be computed in one step."""

    sequence: Sequence
    begin: int
    end: int

    @property
    def is_last(self) -> bool:
        """Whether it reaches the end of what is known, so that the next token can be sampled from it."""
        return self.end == len(self.sequence.tokens)


class Scheduler:
    """Life of a sequence: `add` -> in some steps a chunk of `schedule` -> `finish`, which may come at any moment.

    After a step has run, `advance` is called with its chunks, and then tokens may be appended to the sequences.
    The pool must be able to hold the longest sequence alone, so that the first in rank can always go on.
    """

    def __init__(self, pool: BlockPool, *, max_running: int, step_tokens: int) -> None:
        """`step_tokens`: the most tokens in a step in which someone decodes, raised to `max_running` so that everyone
        who decodes is in every step. When nobody waits for a next token, steps are longer and prompts done sooner."""
        self._pool = pool
        self._max_running = max_running
        self._step_tokens = max(step_tokens, max_running)
        self._prefill_tokens = _UNDISTURBED * self._step_tokens
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []

    @property
    def is_idle(self) -> bool:
        return not self._waiting and not self._running

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def add(self, sequence: Sequence) -> None:
        insort(self._waiting, sequence, key=lambda s: s.rank)

    def finish(self, sequence: Sequence) -> None:
        """It is over or no longer wanted: its blocks are given back at once."""
        if sequence in self._running:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        self._release(sequence)

    def schedule(self) -> list[Chunk]:
        """The next step. Empty only if nothing waits or runs."""
        chunks: dict[int, Chunk] = {}
        decodes = any(sequence.num_pending == 1 for sequence in self._running)
        budget = self._step_tokens if decodes else self._prefill_tokens
        preempted = False
        # Who decodes comes first; among equals, rank.
        for sequence in sorted(self._running, key=lambda s: (s.num_pending > 1, s.rank)):
            if sequence not in self._running or budget == 0:
                continue
            count = min(sequence.num_pending, budget)
            fits, someone_left = self._make_room(sequence, sequence.num_computed + count, chunks)
            preempted |= someone_left
            if fits:
                chunks[sequence.arrival] = Chunk(sequence, sequence.num_computed, sequence.num_computed + count)
                budget -= count
        while self._waiting and not preempted and budget > 0 and len(self._running) < self._max_running:
            if (chunk := self._admit(self._waiting[0], budget)) is None:
                break
            chunks[chunk.sequence.arrival] = chunk
            budget -= chunk.end - chunk.begin
        return list(chunks.values())

    def advance(self, chunks: list[Chunk]) -> None:
        """The chunks have been computed: full blocks get their names."""
        for chunk in chunks:
            sequence = chunk.sequence
            first, last = sequence.num_computed // self._pool.block_size, chunk.end // self._pool.block_size
            sequence.num_computed = chunk.end
            for index, name in enumerate(sequence.names.first(last, sequence.tokens)[first:], first):
                self._pool.publish(sequence.blocks[index], name)

    def _admit(self, sequence: Sequence, budget: int) -> Chunk | None:
        """Moves it from waiting to running if there are blocks for all its tokens; its first chunk, or None."""
        # The last token is always computed: someone has to give the logits.
        reusable = (len(sequence.tokens) - 1) // self._pool.block_size
        cached = self._pool.match(sequence.names.first(reusable, sequence.tokens))
        if self._blocks_for(len(sequence.tokens)) - len(cached) > self._pool.num_available:
            self._pool.release(cached)
            return None
        begin = len(cached) * self._pool.block_size
        end = min(len(sequence.tokens), begin + budget)
        allocated = self._pool.allocate(self._blocks_for(end) - len(cached))
        assert allocated is not None
        sequence.blocks, sequence.num_computed = cached + allocated, begin
        if sequence.num_cached is None:
            sequence.num_cached = begin
        self._waiting.remove(sequence)
        self._running.append(sequence)
        return Chunk(sequence, begin, end)

    def _make_room(self, sequence: Sequence, num_tokens: int, chunks: dict[int, Chunk]) -> tuple[bool, bool]:
        """Gives `sequence` blocks for `num_tokens`, taking them from sequences of a worse rank that are not yet in this
        step. Returns whether it succeeded, and whether someone had to leave."""
        missing = self._blocks_for(num_tokens) - len(sequence.blocks)
        someone_left = False
        while missing > self._pool.num_available:
            victims = [s for s in self._running if s.rank > sequence.rank and s.arrival not in chunks]
            if not victims:
                return False, someone_left
            self._preempt(max(victims, key=lambda s: s.rank))
            someone_left = True
        if missing > 0:
            allocated = self._pool.allocate(missing)
            assert allocated is not None
            sequence.blocks += allocated
        return True, someone_left

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._release(sequence)
        sequence.preemptions += 1
        self.add(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._pool.release(sequence.blocks)
        sequence.blocks, sequence.num_computed = [], 0

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self._pool.block_size)
