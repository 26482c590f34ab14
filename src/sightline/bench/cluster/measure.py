"""One figure after the other, of a cluster that runs. Seconds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from sightline.bench.cluster import processes
from sightline.bench.cluster.load import Answer, Clients, Load
from sightline.bench.cluster.system import MODEL, Cluster, Single, kill_replica, replicas

SLOTS, STEP_S, PREFILL_S = 8, 0.05, 0.0002
"""Of the paced engine: 160 tokens a second when all its slots are taken."""
CLIENTS = 10
"""For each replica: two of them wait at any time."""
WORDS = 40
TEXT_WORDS = 540
"""Of a prompt, which has 600 tokens then, as if its picture were a larger one."""
PICTURE_BYTES = 200_000
QUICK = "quick"
"""A model whose engine takes no time, so that all the time is the way to it and back."""
GROWING = "growing"
ONE_SLOT = "one-slot"
"""As `QUICK`, for one request at a time."""
_WARM_S = 4.0
_ROUND_S = 3.5
"""In which no client has had so many answers as it was to have: each takes 2 s and waits for its turn."""
_SETTLE_S = 2.0


@dataclass(frozen=True)
class Point:
    """A closed loop: each client asks one thing after the other."""

    replicas: int
    clients: int
    requests: int
    """Of each client."""
    tokens_per_s: float
    """While all clients were at it and had been for some seconds."""
    whole_tokens_per_s: float
    """From the first request to the last token, as the simulation counts."""
    prompt_tokens: int
    ttft_p50_s: float
    delay_p50_s: float
    """Of a word, from when the engine made it until it arrived."""
    delay_p99_s: float
    cores: Mapping[str, float]
    """By who took them, in the mean."""
    idle: Mapping[str, float]
    """The same before anybody asked."""
    cpu_ms_a_token: Mapping[str, float]
    """Of what was taken beside that."""
    wrong: int
    why: str
    """What the first of these got instead."""


def point(cluster: Cluster, replicas: int, requests: int) -> Point:
    """Raises `SystemExit` where nothing was answered."""
    before, since = processes.spent(), time.monotonic()
    time.sleep(_SETTLE_S)
    idle = _cores(processes.since(before, processes.spent()), time.monotonic() - since)
    load = Load(
        ports=(cluster.port,), clients=CLIENTS * replicas, words=WORDS, text_words=TEXT_WORDS, requests=requests
    )
    clients = Clients(load)
    time.sleep(_WARM_S)
    before, since = processes.spent(clients=clients.pid), time.monotonic()
    time.sleep(requests * _ROUND_S - _WARM_S)
    spent, until = processes.spent(clients=clients.pid), time.monotonic()
    return to_point(replicas, requests, clients.finish(), processes.since(before, spent), idle, since, until)


def _cores(spent: Mapping[str, float], seconds: float) -> dict[str, float]:
    return {who: each / seconds for who, each in spent.items()}


def to_point(
    replicas: int,
    requests: int,
    answers: Sequence[Answer],
    spent: Mapping[str, float],
    idle: Mapping[str, float],
    since: float,
    until: float,
) -> Point:
    """`spent`: seconds; `idle`: cores. `since`, `until`: the time that is measured, which ends sooner where the first
    client was done."""
    good, begun = right(answers), min(answer.asked for answer in answers)
    last: dict[int, float] = {}
    for answer in answers:
        last[answer.client] = max(last.get(answer.client, 0.0), answer.ended)
    end = min(until, *last.values())
    words = sum(since <= at < end for answer in good for at in answer.arrived)
    rate = words / (end - since)
    cores = _cores(spent, until - since)
    return Point(
        replicas=replicas,
        clients=len(last),
        requests=requests,
        tokens_per_s=rate,
        whole_tokens_per_s=sum(len(a.arrived) for a in good) / (max(a.ended for a in good) - begun),
        prompt_tokens=max(a.prompt_tokens for a in good),
        ttft_p50_s=quantile([a.arrived[0] - a.asked for a in good], 0.5),
        delay_p50_s=quantile(delays(good), 0.5),
        delay_p99_s=quantile(delays(good), 0.99),
        cores=cores,
        idle=idle,
        cpu_ms_a_token={who: 1000 * (taken - idle[who]) / rate for who, taken in cores.items()},
        wrong=len(answers) - len(good),
        why=next((answer.wrong for answer in answers if answer.wrong), ""),
    )


def right(answers: Sequence[Answer]) -> list[Answer]:
    """Raises `SystemExit` where there is none."""
    good = [answer for answer in answers if not answer.wrong]
    if not good:
        raise SystemExit(f"Nothing was answered: {answers[0].wrong if answers else 'nothing was asked'}")
    return good


def delays(answers: Sequence[Answer]) -> list[float]:
    return [arrived - made for answer in answers for made, arrived in zip(answer.made, answer.arrived, strict=True)]


def quantile(values: Sequence[float], share: float) -> float:
    return float(np.quantile(values, share))


@dataclass(frozen=True)
class Way:
    """What lies between a client and the engine's slots, and how long a step is here: seconds, in the median.

    From these the simulation says what `point` should find: so they are measured apart from it, while nobody else asks.
    """

    step_s: float
    """From a word of an answer to the next, as the engine made them: `STEP_S` by this machine's clock."""
    before_s: float
    """From a client until its request waits for a slot: sent, read, its picture looked at and its tokens counted."""
    out_s: float
    """From there to the engine, when a slot is free."""
    back_s: float
    """Of a word, from the engine to the client."""


def way(cluster: Cluster) -> Way:
    def ask(model: str, clients: int, requests: int, words: int) -> Sequence[Answer]:
        load = Load(
            ports=(cluster.port,), clients=clients, words=words, text_words=TEXT_WORDS, requests=requests, model=model
        )
        return right(Clients(load).finish())[1:]  # the first one finds the way

    return to_way(ask(MODEL, 1, 4, WORDS), ask(QUICK, 1, 50, 1), ask(ONE_SLOT, 3, 50, 1))


def to_way(paced: Sequence[Answer], quick: Sequence[Answer], handed: Sequence[Answer]) -> Way:
    """`paced`, `quick`: of a lone client, of the engine that is measured and of one that takes no time. `handed`: of
    clients of whom one at a time has the only slot of such an engine: from one word to the next is the way back of one
    answer and the way out of the next."""
    step = quantile([(a.made[-1] - a.made[0]) / (len(a.made) - 1) for a in paced], 0.5)
    back = quantile(delays(paced), 0.5)
    there = quantile([a.made[0] - a.asked for a in quick], 0.5)
    words = sorted(a.made[0] for a in handed)
    out = max(0.0, quantile([later - sooner for sooner, later in pairwise(words)], 0.5) - back)
    return Way(step_s=step, before_s=max(0.0, there - out), out_s=out, back_s=back)


@dataclass(frozen=True)
class Latency:
    """Of the same requests, sent in turn to a server of its own and to the cluster."""

    requests: int
    """Of each."""
    single_p50_s: float
    single_p99_s: float
    cluster_p50_s: float
    cluster_p99_s: float
    wrong: int

    @property
    def added_p50_s(self) -> float:
        return self.cluster_p50_s - self.single_p50_s

    @property
    def added_p99_s(self) -> float:
        return self.cluster_p99_s - self.single_p99_s


def latency(cluster: Cluster, single: Single, requests: int, clients: int = 2) -> Latency:
    """With pictures of 200 KB that nobody has seen, of a model that takes no time itself."""
    load = Load(
        ports=(single.port, cluster.port), clients=clients, words=8, requests=2 * requests // clients, pause_s=0.05,
        picture_bytes=PICTURE_BYTES, model=QUICK, stream=False,
    )  # fmt: skip
    answers = Clients(load).finish()
    good = right(answers)[2 * clients :]  # the first ones find the way
    took = {port: [a.ended - a.asked for a in good if a.port == port] for port in load.ports}
    ours, theirs = took[single.port], took[cluster.port]
    return Latency(
        requests=min(len(ours), len(theirs)),
        single_p50_s=quantile(ours, 0.5),
        single_p99_s=quantile(ours, 0.99),
        cluster_p50_s=quantile(theirs, 0.5),
        cluster_p99_s=quantile(theirs, 0.99),
        wrong=sum(bool(a.wrong) for a in answers),
    )


@dataclass(frozen=True)
class Delay:
    """Of words, from when the engine made them until they arrived; one replica under full load, and the same load on a
    server of its own."""

    single_p50_s: float
    single_p99_s: float
    single_cpu_ms_a_token: float
    """Of the server's process, without engine and decoders."""


def delay(single: Single, requests: int) -> Delay:
    clients = Clients(
        Load(ports=(single.port,), clients=CLIENTS, words=WORDS, text_words=TEXT_WORDS, requests=requests)
    )
    time.sleep(_WARM_S)
    before, since = processes.spent(clients=clients.pid, single=single.pid), time.monotonic()
    time.sleep(requests * _ROUND_S - _WARM_S)
    spent, until = processes.spent(clients=clients.pid, single=single.pid), time.monotonic()
    good = right(clients.finish())
    words = sum(since <= at < until for answer in good for at in answer.arrived)
    cpu_s = spent[processes.SINGLE] - before[processes.SINGLE]
    return Delay(quantile(delays(good), 0.5), quantile(delays(good), 0.99), 1000 * cpu_s / words)


@dataclass(frozen=True)
class Scaling:
    """Since the load began."""

    decided_s: float
    """Ray says that another replica is to run."""
    runs_s: float
    """Ray says that it runs."""
    serves_s: float
    """The first word that it made has arrived."""
    from_zero_s: float
    """Of a model without a replica: the first word of the request that woke it."""


def scaling(cluster: Cluster, sleeping: str) -> Scaling:
    load = Load(ports=(cluster.port,), clients=3 * SLOTS, words=WORDS, model=GROWING)
    clients = Clients(load)
    decided = _when(lambda: cluster.wanted(GROWING) > 1)
    runs = _when(lambda: cluster.running(GROWING) > 1)
    time.sleep(_SETTLE_S)
    good = right(clients.stop())
    begun = min(answer.asked for answer in good)
    first = min(good, key=lambda answer: answer.ended).engine
    serves = min((a.arrived[0] for a in good if a.engine != first), default=float("nan"))
    (woken,) = right(Clients(Load(ports=(cluster.port,), clients=1, words=4, requests=1, model=sleeping)).finish())
    return Scaling(decided - begun, runs - begun, serves - begun, woken.arrived[0] - woken.asked)


def _when(holds: Callable[[], bool], *, most_s: float = 120.0) -> float:
    """The time at which it first does; not a number where it never does."""
    deadline = time.monotonic() + most_s
    while time.monotonic() < deadline:
        if holds():
            return time.monotonic()
        time.sleep(0.05)
    return float("nan")


@dataclass(frozen=True)
class Failover:
    """A replica of two is ended by SIGKILL under load."""

    next_good_s: float
    """Until every client has had another good answer, less what an answer usually takes."""
    whole_s: float
    """Until both replicas answer again."""
    under_way: int
    """Requests at the replica that was killed, as far as they had begun to be answered: they end with an error."""
    outcomes: Mapping[str, int]


def failover(cluster: Cluster) -> Failover:
    """Clients whose requests are short, so that most of them are under way."""
    clients = Clients(Load(ports=(cluster.port,), clients=SLOTS, words=4))
    time.sleep(_SETTLE_S + 1)
    before = set(replicas(MODEL))
    killed = kill_replica(MODEL)
    _when(lambda: bool(set(replicas(MODEL)) - before))
    _when(lambda: cluster.running(MODEL) == 2)  # Ray has seen by now that it was one
    time.sleep(_SETTLE_S)
    answers = clients.stop()
    return to_failover(answers, killed)


def to_failover(answers: Sequence[Answer], killed: float) -> Failover:
    good = right(answers)
    usual = quantile([a.ended - a.asked for a in good if a.ended < killed], 0.5)
    following: dict[int, float] = {}
    for answer in good:
        if answer.ended > killed:
            following[answer.client] = min(following.get(answer.client, float("inf")), answer.ended)
    engines = {a.engine for a in good if a.ended < killed}
    new = [a.arrived[0] for a in good if a.engine not in engines]
    outcomes = Counter("ok" if not a.wrong else "error event" if a.arrived else "failed" for a in answers)
    return Failover(
        next_good_s=max(0.0, max(following.values()) - killed - usual),
        whole_s=min(new, default=float("nan")) - killed,
        under_way=outcomes["error event"],
        outcomes=dict(outcomes),
    )


@dataclass
class Measured:
    """Everything of one run."""

    cores: int
    load_before: float
    """Of the machine, in the minute before it began."""
    load_after: float = 0.0
    way: Way | None = None
    points: list[Point] = field(default_factory=list)
    latency: Latency | None = None
    delay: Delay | None = None
    scaling: Scaling | None = None
    failovers: list[Failover] = field(default_factory=list)
