"""What keys may ask for, at several ingresses together: one meter, and what is done while there is none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from sightline.access.limits import Cost
from sightline.cluster import meter, plan
from sightline.cluster.handle_engine import ReplicaLost
from sightline.cluster.meter import MeterReplica, SharedMeter
from sightline.config import KeyLimits

pytestmark = pytest.mark.anyio

ONE = Cost(requests=1, concurrent=1)


class Cluster:
    """Calls of a meter in the same process: that answers, is gone, or never answers."""

    def __init__(self, replica: MeterReplica) -> None:
        self.replica = replica
        self.gone = False
        self.silent = asyncio.Event()
        self.silent.set()

    async def call(self, method: str, *args: Any, **kwargs: Any) -> bytes:
        if self.gone:
            raise ReplicaLost("gone")
        answer: bytes = await getattr(self.replica, method)(*args, **kwargs)
        await self.silent.wait()
        return answer

    def stream(self, method: str, *args: Any, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        raise NotImplementedError

    def end(self) -> None:
        raise NotImplementedError


class Collected(MeterReplica):
    """Ray awaits `__del__`, and Python's collector does not."""

    def __del__(self) -> None:  # type: ignore[override]  # see above
        pass


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


async def a_cluster(clock: Clock | None = None) -> Cluster:
    replica = Collected.__new__(Collected)
    await replica.__init__({}, clock)  # type: ignore[misc]  # as Ray makes it
    return Cluster(replica)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "_BEAT_S", 0.01)
    monkeypatch.setattr(meter, "_ANSWER_S", 60.0)  # no busy machine makes a meter late, but where one is to be


async def settled(shared: SharedMeter) -> None:
    """Returns when all that it tells has been told."""
    async with asyncio.timeout(60):
        while shared._tasks:
            await asyncio.sleep(0)


async def test_a_rate_is_one_for_all_ingresses() -> None:
    cluster = await a_cluster()
    ingresses, limits = [SharedMeter(cluster) for _ in range(3)], KeyLimits(requests_per_minute=4)
    verdicts = [await ingresses[n % 3].admit("key", limits, Cost(requests=1)) for n in range(6)]
    assert [verdict.refusal is None for verdict in verdicts] == [True] * 4 + [False] * 2
    refusal = verdicts[-1].refusal
    assert refusal is not None
    assert refusal.limit == "requests_per_minute"


async def test_a_place_among_those_at_once_is_free_again_for_another_ingress() -> None:
    cluster = await a_cluster()
    one, other, limits = SharedMeter(cluster), SharedMeter(cluster), KeyLimits(concurrent=1)
    verdict = await one.admit("key", limits, ONE)
    assert (await other.admit("key", limits, ONE)).refusal is not None
    one.settle("key", verdict.day, ONE, Cost(requests=1))
    await settled(one)
    assert (await other.admit("key", limits, ONE)).refusal is None
    assert (await one.used())["key"].requests == 1


async def test_what_an_ingress_that_died_had_reserved_comes_back() -> None:
    clock = Clock()
    cluster = await a_cluster(clock)
    dead, living, limits = SharedMeter(cluster), SharedMeter(cluster), KeyLimits(concurrent=2)
    for shared in (dead, living):
        assert (await shared.admit("key", limits, ONE)).refusal is None
    assert dead._beating is not None
    dead._beating.cancel()
    clock.now += 2 * meter._SILENT_S
    await living._replicas.call("beat", living._ingress)
    assert (await living.admit("key", limits, ONE)).refusal is None
    assert (await living.admit("key", limits, ONE)).refusal is not None, "what lives keeps its place"


async def test_an_ingress_that_lives_says_so_for_as_long_as_it_has_reserved_something() -> None:
    clock = Clock()
    cluster = await a_cluster(clock)
    shared = SharedMeter(cluster)
    verdict = await shared.admit("key", KeyLimits(concurrent=1), ONE)
    clock.now = 100.0
    async with asyncio.timeout(60):
        while cluster.replica._lent[shared._ingress][1] < 100.0:
            await asyncio.sleep(0.01)
    shared.settle("key", verdict.day, ONE, ONE)
    await settled(shared)
    assert shared._beating is not None
    assert shared._beating.done()


async def test_without_the_meter_an_ingress_counts_for_itself_and_asks_again_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = await a_cluster()
    shared, limits = SharedMeter(cluster), KeyLimits(requests_per_minute=2)
    cluster.gone = True
    verdicts = [await shared.admit("key", limits, Cost(requests=1)) for _ in range(3)]
    assert [verdict.refusal is None for verdict in verdicts] == [True, True, False]
    shared.settle("key", verdicts[0].day, Cost(requests=1), Cost(requests=1))
    assert not shared._tasks, "what it counted itself is nobody else's business"
    cluster.gone, shared._alone_until = False, 0.0
    assert (await shared.admit("key", limits, Cost(requests=1))).refusal is None
    assert (await cluster.replica._meter.admit("key", limits, Cost())).standing.requests.remaining == 1  # type: ignore[union-attr]


async def test_what_a_slow_meter_reserved_for_nobody_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "_ANSWER_S", 0.05)
    cluster = await a_cluster()
    shared, limits = SharedMeter(cluster), KeyLimits(concurrent=1)
    cluster.silent.clear()
    assert (await shared.admit("key", limits, ONE)).refusal is None, "by its own meter"
    assert cluster.replica._meter._meter.running("key") == 1
    cluster.silent.set()
    await settled(shared)
    assert cluster.replica._meter._meter.running("key") == 0


async def test_a_caller_that_leaves_while_it_asks_has_reserved_nothing() -> None:
    cluster = await a_cluster()
    shared = SharedMeter(cluster)
    cluster.silent.clear()
    asking = asyncio.create_task(shared.admit("key", KeyLimits(concurrent=1), ONE))
    async with asyncio.timeout(60):
        while cluster.replica._meter._meter.running("key") == 0:
            await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    cluster.silent.set()
    await settled(shared)
    assert cluster.replica._meter._meter.running("key") == 0


@pytest.mark.parametrize(
    ("ingress", "access", "shares"),
    [
        ({"num_replicas": 2}, {"keys": [{"name": "a", "sha256": "0" * 64}]}, True),
        ({"autoscaling_config": {"max_replicas": 3}}, {"file": "keys.db"}, True),
        ({}, {"keys": [{"name": "a", "sha256": "0" * 64}]}, False),
        ({"num_replicas": 2}, {}, False),
    ],
)
def test_there_is_a_meter_where_there_are_keys_and_several_ingresses(
    ingress: dict[str, Any], access: dict[str, Any], shares: bool
) -> None:
    found = plan.of_app({"settings": {"access": access}, "ingress": ingress})
    assert plan.shares_limits(found, plan.to_settings(found.settings)) is shares
