"""Rates and budgets of keys for all replicas of the ingress together: one meter, in a deployment of its own.

An ingress asks it before a request begins, and tells it at the end; one that dies tells nothing more, and what it had
reserved is given back when it has not been heard of for `_SILENT_S`. An ingress to which the meter does not answer in
time counts for itself for a moment, by the same limits: nobody is turned away because Ray has to start the meter again,
and for as long as that takes a key has its limits at each ingress. Knows no Ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar
from uuid import uuid4

import msgspec

from sightline.access.gate import keys_path
from sightline.access.keyfile import KeyFile
from sightline.access.limits import Cost, Standing, Used, Verdict
from sightline.access.metering import KeptMeter
from sightline.cluster.handle_engine import ReplicaLost, Replicas
from sightline.config import KeyLimits
from sightline.configfile import to_settings
from sightline.errors import SightlineError
from sightline.frontends.lent import LentMeter

log = logging.getLogger(__name__)

T = TypeVar("T")

_ANSWER_S = 1.0
"""For the meter to answer before an ingress counts for itself, which it then does for this long."""
_BEAT_S = 3.0
_SILENT_S = 15.0
"""Of an ingress that has reserved something: then it is dead."""
_TELLS = 5
"""Times that the end of a request is told to a meter that does not answer."""


class _Asked(msgspec.Struct, frozen=True, array_like=True):
    ingress: str
    key_id: str
    limits: KeyLimits
    cost: Cost
    patient: bool


class _Told(msgspec.Struct, frozen=True, array_like=True):
    ingress: str
    key_id: str
    day: int
    reserved: Cost
    used: Cost


_encode = msgspec.msgpack.Encoder().encode
_to_asked = msgspec.msgpack.Decoder(_Asked).decode
_to_told = msgspec.msgpack.Decoder(_Told).decode
_to_verdict = msgspec.msgpack.Decoder(Verdict).decode
_to_used = msgspec.msgpack.Decoder(dict[str, Used]).decode


class MeterReplica:
    """The one meter, as Ray runs it. What it is called with and gives back are bytes."""

    async def __init__(self, values: Mapping[str, Any], clock: Callable[[], float] | None = None) -> None:  # type: ignore[misc]  # Ray awaits it
        """`values`: settings of the places where keys are kept; budgets outlive it where it finds their file."""
        path = keys_path(to_settings(values))
        self._meter = KeptMeter(None if path is None else KeyFile(path))
        self._clock = clock or asyncio.get_running_loop().time
        self._lent: dict[str, tuple[LentMeter, float]] = {}
        """To each ingress, and when that was last heard of."""
        await self._meter.start()

    async def admit(self, parcel: bytes) -> bytes:
        asked = _to_asked(parcel)
        self._bury()
        lent = self._hear(asked.ingress)
        return _encode(await lent.admit(asked.key_id, asked.limits, asked.cost, patient=asked.patient))

    async def settle(self, parcel: bytes) -> bytes:
        told = _to_told(parcel)
        self._hear(told.ingress).settle(told.key_id, told.day, told.reserved, told.used)
        return b""

    async def beat(self, ingress: str) -> bytes:
        """It lives, and what it has reserved is still in use."""
        self._hear(ingress)
        return b""

    async def used(self) -> bytes:
        return _encode(await self._meter.used())

    async def __del__(self) -> None:
        """Ray awaits it when the replica is to end."""
        await self._meter.close()

    def _hear(self, ingress: str) -> LentMeter:
        lent = self._lent[ingress][0] if ingress in self._lent else LentMeter(self._meter)
        self._lent[ingress] = lent, self._clock()
        return lent

    def _bury(self) -> None:
        """Gives back what those have reserved who are not heard of any more."""
        now = self._clock()
        for ingress, (lent, heard) in list(self._lent.items()):
            if now - heard > _SILENT_S:
                lent.close()
                del self._lent[ingress]


class SharedMeter:
    """A `Metering` in an ingress: the meter's, or for a moment its own."""

    def __init__(self, replicas: Replicas) -> None:
        """`replicas`: of `MeterReplica`."""
        self._replicas = replicas
        self._ingress = uuid4().hex
        self._own = KeptMeter(None)
        self._alone_until = 0.0
        """By the event loop's clock."""
        self._reserved_here: Counter[tuple[str, int, Cost]] = Counter()
        """By its own meter, and not settled."""
        self._reserved = 0
        """By the other."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._beating: asyncio.Task[None] | None = None

    async def admit(self, key_id: str, limits: KeyLimits, cost: Cost, *, patient: bool = False) -> Verdict:
        """A caller that is cancelled meanwhile has reserved nothing."""
        if asyncio.get_running_loop().time() < self._alone_until:
            return await self._admit_here(key_id, limits, cost, patient=patient)
        asking = self._begin(self._ask(_Asked(self._ingress, key_id, limits, cost, patient)))
        try:
            async with asyncio.timeout(_ANSWER_S):
                verdict = await asyncio.shield(asking)
        except (TimeoutError, ReplicaLost, SightlineError) as error:
            asking.add_done_callback(lambda asked: self._give_back(key_id, cost, asked))
            self._count_alone(error)
            return await self._admit_here(key_id, limits, cost, patient=patient)
        except asyncio.CancelledError:
            asking.add_done_callback(lambda asked: self._give_back(key_id, cost, asked))
            raise
        if verdict.refusal is None and cost != Cost():
            self._reserved += 1
            if self._beating is None or self._beating.done():
                self._beating = self._begin(self._beat())
        return verdict

    def settle(self, key_id: str, day: int, reserved: Cost, used: Cost) -> Standing | None:
        held = key_id, day, reserved
        if self._reserved_here[held] > 0:
            self._reserved_here[held] -= 1
            return self._own.settle(key_id, day, reserved, used)
        if reserved != Cost():
            self._reserved = max(0, self._reserved - 1)
        self._begin(self._tell(_encode(_Told(self._ingress, key_id, day, reserved, used))))
        return None

    async def used(self) -> Mapping[str, Used]:
        return _to_used(await self._replicas.call("used"))

    async def _ask(self, asked: _Asked) -> Verdict:
        verdict: Verdict = _to_verdict(await self._replicas.call("admit", _encode(asked)))
        return verdict

    async def _admit_here(self, key_id: str, limits: KeyLimits, cost: Cost, *, patient: bool) -> Verdict:
        verdict = await self._own.admit(key_id, limits, cost, patient=patient)
        if verdict.refusal is None:
            self._reserved_here[key_id, verdict.day, cost] += 1
        return verdict

    def _count_alone(self, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._alone_until:
            log.warning("the meter of keys does not answer (%s): this ingress counts for itself", type(error).__name__)
            self._alone_until = now + _ANSWER_S

    def _give_back(self, key_id: str, cost: Cost, asked: asyncio.Future[Verdict]) -> None:
        """What was reserved for nobody."""
        if not asked.cancelled() and asked.exception() is None and asked.result().refusal is None and cost != Cost():
            told = _Told(self._ingress, key_id, asked.result().day, cost, Cost())
            self._begin(self._tell(_encode(told)))

    async def _tell(self, parcel: bytes) -> None:
        for _ in range(_TELLS):
            try:
                await self._replicas.call("settle", parcel)
            except (ReplicaLost, SightlineError):
                await asyncio.sleep(_ANSWER_S)
            else:
                return

    async def _beat(self) -> None:
        """As long as something is reserved."""
        while self._reserved:
            await asyncio.sleep(_BEAT_S)
            try:
                await self._replicas.call("beat", self._ingress)
            except (ReplicaLost, SightlineError):
                continue

    def _begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
