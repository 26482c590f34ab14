"""Discrete events: turns arrive, are sent on and come back, strides end. What came of them."""

from __future__ import annotations

import heapq
import math
import random
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sightline.cluster.simulation.policy import POLICIES, Choice
from sightline.cluster.simulation.replica import Asked, Pace, Replica
from sightline.cluster.simulation.traffic import Conversation


@dataclass(frozen=True, slots=True)
class Way:
    """Of an ingress, in which requests wait until one of all the replicas' slots is free. Seconds."""

    out_s: float = 0.0
    """From the ingress, which has a slot for it, to the line of the replica's engine."""
    back_s: float = 0.0
    """From when the engine makes a word until the ingress knows; with the last one the next request is sent on."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of the requests that arrived after the caches had become warm."""

    requests: int
    hit_rate: float
    """Requests whose picture the replica knew."""
    computed: float
    """Tokens of prompts that were computed, of all."""
    ttft_p50_s: float
    ttft_p99_s: float
    imbalance: float
    """Requests that the busiest replica had at once, in the mean over time, as a multiple of the mean of all."""
    busy: float
    """Slots that were taken, of all, in the mean over time; what waits counts too, so that it may exceed 1."""
    tokens_per_s: float


def simulate(
    conversations: Sequence[Conversation], replicas: int, policy: str, pace: Pace, *, seed: int = 0, warm: float = 1 / 3
) -> Outcome:
    """Runs all conversations to their end. `policy`: of `POLICIES`. `warm`: the share of the arrivals of conversations
    that are not told of."""
    told = trace(conversations, replicas, policy, pace, seed=seed)
    begins = [conversation[0].wait_s for conversation in conversations]
    since, until = float(np.quantile(begins, warm)), max(begins)
    return _outcome(told, replicas, pace, since, until)


def trace(
    conversations: Sequence[Conversation],
    replicas: int,
    policy: str,
    pace: Pace,
    *,
    seed: int = 0,
    way: Way | None = None,
) -> list[tuple[str, Asked]]:
    """Every request with the replica that answered it, in the order in which they ended. `way`: of the ingress; None:
    there is nothing in between, and requests wait at the replicas."""
    names = [f"replica-{number}" for number in range(replicas)]
    choose = POLICIES[policy](names, pace.slots, random.Random(seed))
    return list(_Cluster(names, pace, way).run(conversations, choose))


@dataclass(frozen=True, slots=True, eq=False)
class _Sent:
    """A request that comes to its replica."""

    asked: Asked
    to: str


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """A request of which the ingress knows that it has ended."""

    asked: Asked
    by: str


class _Cluster:
    def __init__(self, names: Sequence[str], pace: Pace, way: Way | None = None) -> None:
        self._replicas = {name: Replica(pace) for name in names}
        self._loads = dict.fromkeys(names, 0)
        self._way = way or Way()
        self._free = math.inf if way is None else pace.slots * len(names)
        """Slots, as far as the ingress knows."""
        self._line: deque[Asked] = deque()
        """Before the ingress' slots."""
        self._due: list[tuple[float, int, int | str | _Sent | _Known]] = []
        """When, in which order of those at once, and what: a conversation goes on, a replica's stride ends, a request
        is on its way."""
        self._count = 0

    def run(self, conversations: Sequence[Conversation], choose: Choice) -> Iterator[tuple[str, Asked]]:
        """Each request with its replica, as it ends."""
        turns = [iter(conversation) for conversation in conversations]
        coming = [next(turn) for turn in turns]
        for number, turn in enumerate(coming):
            self._at(turn.wait_s, number)
        while self._due:
            now, _, what = heapq.heappop(self._due)
            if isinstance(what, int):
                self._line.append(Asked(coming[what], what, now))
                self._send_on(now, choose)
            elif isinstance(what, _Sent):
                self._arrive(what, now)
            elif isinstance(what, _Known):
                self._loads[what.by] -= 1
                self._free += 1
                yield what.by, what.asked
                following = next(turns[what.asked.conversation], None)
                if following is not None:
                    coming[what.asked.conversation] = following
                    self._at(now + following.wait_s, what.asked.conversation)
                self._send_on(now, choose)
            elif self._replicas[what].ends == now:  # else a request came in between: the stride has become shorter
                for asked in self._replicas[what].end():
                    self._at(now + self._way.back_s, _Known(asked, what))
                self._at(self._replicas[what].ends, what)

    def _send_on(self, now: float, choose: Choice) -> None:
        """Of those that wait, as many as there are slots for."""
        while self._line and self._free:
            asked = self._line.popleft()
            name = choose(asked.turn, self._loads)
            self._loads[name] += 1
            self._free -= 1
            sent = _Sent(asked, name)
            if self._way.out_s:
                self._at(now + self._way.out_s, sent)
            else:
                self._arrive(sent, now)

    def _arrive(self, sent: _Sent, now: float) -> None:
        replica = self._replicas[sent.to]
        before = replica.ends
        replica.ask(sent.asked, now)
        if replica.ends != before:
            self._at(replica.ends, sent.to)

    def _at(self, time: float, what: int | str | _Sent | _Known) -> None:
        if time < float("inf"):
            self._count += 1
            heapq.heappush(self._due, (time, self._count, what))


def _outcome(told: Sequence[tuple[str, Asked]], replicas: int, pace: Pace, since: float, until: float) -> Outcome:
    """Of what arrived from `since` to `until`; loads are those in between, whenever what they are of arrived."""
    asked = [asked for _, asked in told if since <= asked.arrived <= until]
    waits = np.array([one.first_token - one.arrived for one in asked])
    load_s: defaultdict[str, float] = defaultdict(float)
    for name, one in told:
        load_s[name] += max(0.0, min(one.finished, until) - max(one.arrived, since))
    mean = sum(load_s.values()) / replicas
    finished = [one for _, one in told if since <= one.finished <= until]
    return Outcome(
        requests=len(asked),
        hit_rate=sum(one.seen for one in asked) / len(asked),
        computed=sum(one.computed_tokens for one in asked) / sum(one.turn.prompt_tokens for one in asked),
        ttft_p50_s=float(np.quantile(waits, 0.5)),
        ttft_p99_s=float(np.quantile(waits, 0.99)),
        imbalance=max(load_s.values()) / mean,
        busy=mean / pace.slots / (until - since),
        tokens_per_s=sum(one.turn.answer_tokens for one in finished) / (until - since),
    )
