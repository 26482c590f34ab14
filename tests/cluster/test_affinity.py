"""Pictures have homes, homes are not crowded, and a change of replicas moves few."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.cluster.affinity import Affinity, affinity_key

REPLICAS = [f"replica-{i}" for i in range(10)]
PICTURES = [f"picture-{i}" for i in range(2000)]
names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=20, unique=True)


def first(affinity: Affinity, key: str | None, loads: dict[str, float]) -> str:
    return next(affinity.order(key, loads))


# --- the key ---------------------------------------------------------------------------------------------------------


def test_a_conversation_keeps_its_key_when_pictures_are_added() -> None:
    assert affinity_key(["a"]) == affinity_key(["a", "b"])
    assert affinity_key(["a"]) != affinity_key(["b", "a"])


def test_no_cache_is_shared_by_tenants_so_neither_is_a_home() -> None:
    assert affinity_key(["a"], "one") != affinity_key(["a"], "two")


def test_without_a_picture_there_is_no_key() -> None:
    assert affinity_key([]) is None


# --- homes -----------------------------------------------------------------------------------------------------------


def test_homes_are_known_to_everybody() -> None:
    # Literals: another process, another release or another order of the replicas must find the same.
    assert list(Affinity(REPLICAS[:4], slots=8).homes("picture")) == [
        "replica-2",
        "replica-1",
        "replica-3",
        "replica-0",
    ]
    assert list(Affinity(reversed(REPLICAS[:4]), slots=8).homes("picture")) == [
        "replica-2",
        "replica-1",
        "replica-3",
        "replica-0",
    ]


def test_homes_are_spread_evenly() -> None:
    affinity = Affinity(REPLICAS, slots=8)
    count = Counter(first(affinity, key, {}) for key in PICTURES)
    assert set(count) == set(REPLICAS)
    assert max(count.values()) < 1.25 * len(PICTURES) / len(REPLICAS)  # four standard deviations above the mean


@given(names, st.text(max_size=8), st.data())
def test_only_the_pictures_of_a_replica_that_leaves_move(replicas: list[str], key: str, data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(replicas))
    before = list(Affinity(replicas, slots=1).homes(key))
    after = list(Affinity([r for r in replicas if r != gone], slots=1).homes(key))
    assert after == [r for r in before if r != gone]


# --- loads -----------------------------------------------------------------------------------------------------------


@given(names, st.none() | st.text(max_size=8), st.data())
def test_every_replica_is_tried_once(replicas: list[str], key: str | None, data: st.DataObject) -> None:
    loads = data.draw(st.dictionaries(st.sampled_from(replicas), st.integers(0, 50)))
    order = list(Affinity(replicas, slots=data.draw(st.integers(1, 8))).order(key, loads))
    assert sorted(order) == sorted(replicas)


@given(names, st.text(max_size=8), st.data())
def test_nobody_hot_is_asked_first(replicas: list[str], key: str, data: st.DataObject) -> None:
    loads = {r: data.draw(st.integers(0, 50)) for r in replicas}
    slots = data.draw(st.integers(1, 8))
    chosen = first(Affinity(replicas, slots=slots, room=1.25), key, dict(loads))
    mean = (sum(loads.values()) + 1) / len(replicas)
    assert loads[chosen] < max(slots, 1.25 * mean + 1)


@given(names, st.none() | st.text(max_size=8), st.data())
def test_nobody_waits_while_there_is_a_free_slot(replicas: list[str], key: str | None, data: st.DataObject) -> None:
    loads = {r: data.draw(st.integers(0, 50)) for r in replicas}
    slots = data.draw(st.integers(1, 50))
    if min(loads.values()) < slots:
        assert loads[first(Affinity(replicas, slots=slots), key, dict(loads))] < slots


@given(names, st.text(max_size=8), st.integers(1, 8))
def test_a_home_with_a_free_slot_is_kept(replicas: list[str], key: str, slots: int) -> None:
    affinity = Affinity(replicas, slots=slots)
    home = next(affinity.homes(key))
    assert first(affinity, key, {home: slots - 1}) == home  # though all others have nothing to do


def test_a_crowd_before_one_picture_spills_to_its_next_home_and_no_further_than_it_must() -> None:
    affinity = Affinity(REPLICAS, slots=4)
    homes = list(affinity.homes("famous"))
    loads: dict[str, float] = {}
    for _ in range(12):
        chosen = first(affinity, "famous", loads)
        loads[chosen] = loads.get(chosen, 0) + 1
    assert loads == {homes[0]: 4, homes[1]: 4, homes[2]: 4}


def test_when_all_are_busy_queues_grow_together() -> None:
    affinity = Affinity(REPLICAS, slots=4)
    loads: dict[str, float] = {}
    for _ in range(1000):
        chosen = first(affinity, "famous", loads)
        loads[chosen] = loads.get(chosen, 0) + 1
    assert max(loads.values()) <= 1.25 * 100 + 1
    assert len(loads) >= 8  # 1000 of at most 126 each


def test_without_a_key_the_less_loaded_of_two_drawn_is_asked() -> None:
    draws: Iterator[float] = iter([0.0, 0.0, 0.95, 0.0])  # the first and its neighbour; the last and the first
    affinity = Affinity(REPLICAS, slots=4, chance=lambda: next(draws))
    assert first(affinity, None, {"replica-0": 3, "replica-1": 2}) == "replica-1"
    assert first(affinity, None, {"replica-9": 1}) == "replica-0"


def test_without_keys_loads_stay_even() -> None:
    affinity = Affinity(REPLICAS, slots=4, chance=random.Random(0).random)
    loads: dict[str, float] = {}
    for _ in range(1000):
        chosen = first(affinity, None, loads)
        loads[chosen] = loads.get(chosen, 0) + 1
    assert max(loads.values()) <= 105


@pytest.mark.parametrize("key", [None, "picture"])
def test_of_no_replicas_none_is_asked(key: str | None) -> None:
    assert list(Affinity([], slots=4).order(key, {})) == []
