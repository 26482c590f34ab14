from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.engines.openvino.blocks import BlockPool, PrefixNames
from sightline.engines.openvino.scheduler import Chunk, Scheduler, Sequence

BLOCK = 4


def sequence(arrival: int, length: int, *, priority: int = 0, tenant: str | None = None) -> Sequence:
    """A prompt of its own, unless it names a tenant."""
    names = PrefixNames(str(arrival) if tenant is None else tenant, BLOCK, ())
    return Sequence(arrival, list(range(length)), names, priority)


def scheduler(*sequences: Sequence, blocks: int = 100, max_running: int = 4, step_tokens: int = 8) -> Scheduler:
    made = Scheduler(BlockPool(blocks, BLOCK), max_running=max_running, step_tokens=step_tokens)
    for s in sequences:
        made.add(s)
    return made


def step(s: Scheduler) -> dict[int, tuple[int, int]]:
    """Runs a step: each sequence that is known to its end gets one more token. What ran, by arrival."""
    chunks = s.schedule()
    s.advance(chunks)
    for chunk in chunks:
        if chunk.is_last:
            chunk.sequence.tokens.append(1000 + len(chunk.sequence.tokens))
    return {c.sequence.arrival: (c.begin, c.end) for c in chunks}


def test_a_long_prompt_runs_in_pieces() -> None:
    s = scheduler(sequence(0, 70), step_tokens=8)
    assert [step(s)[0] for _ in range(4)] == [(0, 32), (32, 64), (64, 70), (70, 71)]


def test_who_decodes_runs_in_every_step_however_long_the_prompts_are() -> None:
    s = scheduler(sequence(0, 3), step_tokens=8)
    step(s)
    s.add(sequence(1, 50))
    for begin in range(0, 49, 7):
        ran = step(s)
        assert ran[0][1] - ran[0][0] == 1
        assert ran[1] == (begin, min(50, begin + 7))


def test_steps_are_longer_while_nobody_decodes() -> None:
    s = scheduler(sequence(0, 20), sequence(1, 100), step_tokens=8)
    assert step(s) == {0: (0, 20), 1: (0, 12)}
    assert step(s) == {0: (20, 21), 1: (12, 19)}


def test_no_more_run_than_allowed_and_places_are_taken_at_once() -> None:
    sequences = [sequence(i, 2) for i in range(6)]
    s = scheduler(*sequences, max_running=4)
    assert sorted(step(s)) == [0, 1, 2, 3]
    s.finish(sequences[1])
    assert sorted(step(s)) == [0, 2, 3, 4]
    assert (s.num_running, s.num_waiting) == (4, 1)


def test_priority_before_arrival() -> None:
    s = scheduler(sequence(0, 2), sequence(1, 2, priority=5), sequence(2, 2, priority=5), max_running=1)
    order = []
    while not s.is_idle:
        (ran,) = s.schedule()
        order.append(ran.sequence.arrival)
        s.finish(ran.sequence)
    assert order == [1, 2, 0]


def test_a_prompt_waits_until_there_are_blocks_for_all_of_it() -> None:
    first, second = sequence(0, 12), sequence(1, 12)
    s = scheduler(first, second, blocks=5, step_tokens=100)
    assert sorted(step(s)) == [0]
    s.finish(first)
    assert sorted(step(s)) == [1]


def test_the_last_to_come_gives_way_when_blocks_run_out() -> None:
    first, second = sequence(0, 7), sequence(1, 7)
    s = scheduler(first, second, blocks=4, step_tokens=100)
    step(s)  # both full: 7 tokens in 2 blocks each
    step(s)
    ran = step(s)  # the first needs a third block
    assert sorted(ran) == [0]
    assert second.preemptions == 1
    assert second.blocks == []
    s.finish(first)
    assert step(s)[1][1] == 9, "it is computed again with what it had generated"


def test_a_lower_priority_gives_way_even_if_it_came_first() -> None:
    low, high = sequence(0, 7, priority=-1), sequence(1, 7)
    s = scheduler(low, high, blocks=4, step_tokens=100)
    for _ in range(3):
        ran = step(s)
    assert sorted(ran) == [1]
    assert low.preemptions == 1


def test_a_known_beginning_is_not_computed_again() -> None:
    first, second = (sequence(i, 10, tenant="same") for i in (0, 1))
    s = scheduler(first, step_tokens=100)
    step(s)
    s.add(second)
    assert step(s)[1] == (8, 10)
    assert second.num_cached == 8
    assert second.blocks[:2] == first.blocks[:2]
    assert second.blocks[2] != first.blocks[2]


def test_a_beginning_computed_in_several_steps_is_known_whole() -> None:
    first, second = (sequence(i, 60, tenant="same") for i in (0, 1))
    s = scheduler(first, step_tokens=5)
    while first.num_pending > 1 or len(first.tokens) == 60:
        step(s)
    s.add(second)
    s.schedule()
    assert second.num_cached == 56
    assert second.blocks[:14] == first.blocks[:14]


def test_the_last_token_is_always_computed() -> None:
    """Even if all blocks are known: someone must give the logits."""
    first, second = (sequence(i, 8, tenant="same") for i in (0, 1))
    s = scheduler(first, step_tokens=100)
    step(s)
    s.add(second)
    assert step(s)[1] == (4, 8)


def test_blocks_of_a_cancelled_sequence_are_free_at_once() -> None:
    pool = BlockPool(10, BLOCK)
    s = Scheduler(pool, max_running=2, step_tokens=8)
    waiting, running = sequence(1, 5), sequence(0, 30)
    s.add(running)
    s.add(waiting)
    step(s)
    s.finish(running)
    s.finish(waiting)
    assert pool.num_available == 10
    assert s.is_idle


def invariants(chunks: Iterable[Chunk], budget: int, blocks: int) -> None:
    chunks = list(chunks)
    assert chunks, "something waits or runs, and nothing happens"
    assert sum(c.end - c.begin for c in chunks) <= budget
    assert len({c.sequence.arrival for c in chunks}) == len(chunks)
    for c in chunks:
        assert c.begin == c.sequence.num_computed < c.end <= len(c.sequence.tokens)
        assert len(c.sequence.blocks) * BLOCK >= c.end
        assert len(set(c.sequence.blocks)) == len(c.sequence.blocks)
        assert all(0 <= b < blocks for b in c.sequence.blocks)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 24), st.integers(1, 16), st.integers(-1, 1), st.booleans()), min_size=1),
    st.integers(10, 25), st.integers(1, 5), st.integers(1, 30), st.data(),
)  # fmt: skip
def test_everyone_comes_to_an_end(
    prompts: list[tuple[int, int, int, bool]], blocks: int, max_running: int, step_tokens: int, data: st.DataObject
) -> None:
    """Whatever comes, joins late or leaves early: every step does something, blocks are written by one sequence only
    (shared ones are full), and in the end all blocks are back. Forty tokens fit into the smallest pool alone."""
    pool = BlockPool(blocks, BLOCK)
    s = Scheduler(pool, max_running=max_running, step_tokens=step_tokens)
    lengths: dict[int, int] = {}
    coming = list(enumerate(prompts))
    steps = 0
    live: dict[int, Sequence] = {}
    while coming or live:
        for _ in range(data.draw(st.integers(0, 2)) if live else 1):
            if coming:
                arrival, (length, generate, priority, shares) = coming.pop(0)
                live[arrival] = sequence(arrival, length, priority=priority, tenant="shared" if shares else None)
                lengths[arrival] = length + generate
                s.add(live[arrival])
        chunks = s.schedule()
        invariants(chunks, 4 * max(step_tokens, max_running), blocks)
        written = [c.sequence.blocks[i // BLOCK] for c in chunks for i in range(c.begin, c.end, 1)]
        owners: dict[int, int] = {}
        for c in chunks:
            for i in range(c.begin, c.end):
                assert owners.setdefault(c.sequence.blocks[i // BLOCK], c.sequence.arrival) == c.sequence.arrival
        assert written
        s.advance(chunks)
        for c in chunks:
            if c.is_last:
                c.sequence.tokens.append(len(c.sequence.tokens))
            if len(c.sequence.tokens) >= lengths[c.sequence.arrival] or data.draw(st.integers(0, 20)) == 0:
                s.finish(live.pop(c.sequence.arrival))
        steps += 1
        assert steps < 10_000
    assert s.is_idle
    assert pool.num_available == blocks
