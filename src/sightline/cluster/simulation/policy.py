"""Who is asked. Loads are those of this moment: one ingress, which counts what it has sent and what has come back."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from sightline.cluster.affinity import Affinity, affinity_key
from sightline.cluster.simulation.traffic import Turn

Choice = Callable[[Turn, Mapping[str, int]], str]
"""Of a request and of what each replica has to do, the replica that is asked."""


def at_random(replicas: Sequence[str], slots: int, chance: random.Random) -> Choice:
    return lambda turn, loads: chance.choice(replicas)


def least_loaded(replicas: Sequence[str], slots: int, chance: random.Random) -> Choice:
    """Of all that are least loaded, one at random: the first would otherwise have all pictures of a quiet cluster."""

    def choose(turn: Turn, loads: Mapping[str, int]) -> str:
        least = min(loads.values())
        return chance.choice([replica for replica, load in loads.items() if load == least])

    return choose


def affinity(replicas: Sequence[str], slots: int, chance: random.Random) -> Choice:
    """What `sightline cluster` does."""
    homes = Affinity(replicas, slots=slots, chance=chance.random)
    return lambda turn, loads: next(homes.order(affinity_key([str(turn.picture)]), loads))


POLICIES: Mapping[str, Callable[[Sequence[str], int, random.Random], Choice]] = {
    "random": at_random,
    "least loaded": least_loaded,
    "affinity": affinity,
}
