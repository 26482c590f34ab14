from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.engines.openvino.blocks import BlockPool, PictureSpan, PrefixNames


def names(tokens: list[int], count: int, tenant: str = "", pictures: tuple[PictureSpan, ...] = ()) -> list[bytes]:
    return PrefixNames(tenant, 4, pictures).first(count, tokens)


def test_allocates_all_or_nothing() -> None:
    pool = BlockPool(3, 4)
    assert pool.allocate(4) is None
    assert pool.num_available == 3
    blocks = pool.allocate(3)
    assert blocks is not None
    assert sorted(blocks) == [0, 1, 2]
    assert pool.allocate(1) is None
    pool.release(blocks)
    assert pool.num_available == 3


def test_a_double_release_is_noticed() -> None:
    pool = BlockPool(1, 4)
    blocks = pool.allocate(1) or []
    pool.release(blocks)
    with pytest.raises(AssertionError):
        pool.release(blocks)


def test_a_named_block_is_found_again_until_it_is_needed_for_something_else() -> None:
    pool = BlockPool(2, 4)
    (block,) = pool.allocate(1) or []
    pool.publish(block, b"name")
    pool.release([block])
    assert pool.match([b"name"]) == [block]
    pool.release([block])
    assert pool.num_available == 2
    both = pool.allocate(2)
    assert both is not None
    assert pool.match([b"name"]) == []


def test_the_least_recently_used_goes_first_and_of_a_sequence_its_end() -> None:
    pool = BlockPool(3, 4)
    old, new = pool.allocate(1) or [], pool.allocate(2) or []
    for block, name in zip(old + new, (b"old", b"begin", b"end"), strict=True):
        pool.publish(block, name)
    pool.release(new)
    pool.release(old)
    pool.allocate(1)
    assert pool.match([b"end"]) == []
    assert pool.match([b"begin"]) == new[:1]


def test_a_match_ends_at_the_first_unknown_block() -> None:
    pool = BlockPool(3, 4)
    blocks = pool.allocate(3) or []
    pool.publish(blocks[0], b"0")
    pool.publish(blocks[2], b"2")
    assert pool.match([b"0", b"1", b"2"]) == blocks[:1]


def test_names_tell_apart_what_must_not_be_shared() -> None:
    tokens = list(range(12))
    same = names(tokens, 3)
    assert same == names([*tokens, 99], 3)
    assert len(set(same)) == 3
    assert names([7, *tokens[1:]], 3)[1:] != same[1:], "a name depends on everything before it"
    assert names(tokens, 3, tenant="other")[0] != same[0]


def test_pictures_have_a_part_in_the_names_of_their_blocks() -> None:
    tokens = [5] * 12
    red, blue = (PictureSpan(3, 6, colour) for colour in (b"red", b"blue"))
    one, other = names(tokens, 3, pictures=(red,)), names(tokens, 3, pictures=(blue,))
    assert all(a != b for a, b in zip(one, other, strict=True)), "it begins in the first block"
    shifted = PictureSpan(4, 7, b"red")
    assert names(tokens, 3, pictures=(shifted,))[0] == names(tokens, 3)[0], "the first block does not see it"
    assert names(tokens, 3, pictures=(shifted,))[1] != one[1]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 8), st.lists(st.tuples(st.sampled_from("amrp"), st.integers(0, 9)), max_size=60))
def test_every_block_is_in_exactly_one_place(num_blocks: int, actions: list[tuple[str, int]]) -> None:
    """A model of the pool: who holds what is known here, and the pool must agree after every action."""
    pool = BlockPool(num_blocks, 4)
    holds: list[list[int]] = []
    for action, number in actions:
        if action == "a":
            blocks = pool.allocate(number % (num_blocks + 1))
            held = {block for h in holds for block in h}
            if blocks is None:
                assert number % (num_blocks + 1) > num_blocks - len(held)
            else:
                assert held.isdisjoint(blocks), "a held block was given away"
                holds.append(blocks)
        elif action == "m":
            holds.append(pool.match([bytes([number]), bytes([number + 1])]))
        elif action == "r" and holds:
            pool.release(holds.pop(number % len(holds)))
        elif action == "p" and holds and (blocks := holds[number % len(holds)]):
            pool.publish(blocks[0], bytes([number]))
        counts = Counter(block for h in holds for block in h)
        assert pool.num_available == num_blocks - len(counts)
    for blocks in holds:
        pool.release(blocks)
    assert pool.num_available == num_blocks
