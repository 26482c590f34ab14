"""Which replica is asked: the one that has seen the picture, unless it is hot. Decisions only; knows no Ray.

Replicas keep the embeddings of pictures and the prefixes of prompts, each its own. So all that is asked about a picture
goes to one replica, its home, as long as that has no more to do than others.

Homes are found by rendezvous hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998):
nothing is remembered, every ingress finds the same ones, and a replica that comes or goes moves only its own pictures.
A home whose slots are all taken is hot, as long as another has a free one: to wait for an answer to end costs more than
to look at a picture again. What it cannot take spills to the picture's next home, always the same, so that the crowd
before a picture is spread over few caches. When all slots of all replicas are taken, the queue of a home is bounded
(Mirrokni, Thorup and Zadimoghaddam, "Consistent Hashing with Bounded Loads", 2018).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

ROOM = 1.25
"""What a home may have to do, as a multiple of the mean: more keeps pictures together, less evens out the queues."""


def affinity_key(pictures: Sequence[str], tenant: str = "") -> str | None:
    """What requests have in common that one replica should answer; None: nothing worth keeping together.

    The first picture, of the digests of all in the order the model meets them: every turn of a conversation has it,
    whatever is added later, and what prompts have in common as a prefix goes through it. The tenant is part of it,
    because caches never cross tenants.
    """
    return f"{tenant}\n{pictures[0]}" if pictures else None


class Affinity:
    """The order in which replicas are asked, for one set of replicas; another set is another `Affinity`."""

    def __init__(
        self,
        replicas: Iterable[str],
        *,
        slots: int,
        room: float = ROOM,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`slots`: requests that a replica runs at once, in the unit of the loads told to `order`. `room`: above 1."""
        self.replicas: Sequence[str] = sorted(set(replicas))
        self._seeds = np.array([_hash(replica) for replica in self.replicas], np.uint64)
        self._slots = slots
        self._room = room
        self._chance = chance

    def homes(self, key: str) -> Iterator[str]:
        """Every replica, those first that are likelier to know the key."""
        for place in np.argsort(~_mixed(self._seeds ^ np.uint64(_hash(key))), kind="stable"):
            yield self.replicas[place]

    def order(self, key: str | None, loads: Mapping[str, float]) -> Iterator[str]:
        """Every replica once, the one to ask first; the others for when it refuses or is gone.

        `loads`: what each replica has to do, running and waiting; one that is missing has nothing. Those of a key that
        are not hot come as `homes` has them, then the rest by load. Without a key two are drawn and the less loaded is
        first (Mitzenmacher, "The Power of Two Choices", 2001), unless both are full: several ingresses with loads of a
        moment ago would otherwise all run to the same replica.
        """
        first = self._lesser_of_two(loads) if key is None else self._cool(key, loads)
        told = set()
        for replica in first:
            told.add(replica)
            yield replica
        yield from sorted((r for r in self.replicas if r not in told), key=lambda r: loads.get(r, 0))

    def bound(self, loads: Mapping[str, float]) -> float:
        """With less than this to do, a replica takes one more of its own, also where that has to wait."""
        total = sum(loads.get(replica, 0) for replica in self.replicas)
        return math.ceil(self._room * (total + 1) / len(self.replicas))

    def _cool(self, key: str, loads: Mapping[str, float]) -> Iterator[str]:
        free = False
        for replica in self.homes(key):
            if loads.get(replica, 0) < self._slots:
                free = True
                yield replica
        if not free and self.replicas:
            bound = self.bound(loads)
            yield from (replica for replica in self.homes(key) if loads.get(replica, 0) < bound)

    def _lesser_of_two(self, loads: Mapping[str, float]) -> Iterator[str]:
        count = len(self.replicas)
        if count:
            one = int(self._chance() * count)
            other = (one + 1 + int(self._chance() * (count - 1))) % count
            lesser = min(self.replicas[one], self.replicas[other], key=lambda r: loads.get(r, 0))
            if loads.get(lesser, 0) < self._slots:
                yield lesser


def _hash(text: str) -> int:
    """64 bits, the same in every process: `hash` of a string is not."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def _mixed(bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A bijection; each bit depends on all others: the finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))
