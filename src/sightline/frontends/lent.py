"""The meter of keys' rates and budgets, which is the core's, as front ends use it.

A front end asks before a request begins, and tells at its end. One that dies tells nothing more: what it had reserved
is given back then. (What a request spends on a model is reserved where the model is, in the core, and not here.)
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import cast

from sightline.access.limits import Cost, Standing, Used, Verdict
from sightline.access.metering import Metering
from sightline.config import KeyLimits
from sightline.frontends import frames
from sightline.frontends.calls import CallFar, Far


class LentMeter:
    """In the core: the meter, as one front end uses it."""

    def __init__(self, meter: Metering) -> None:
        self._meter = meter
        self._out: Counter[tuple[str, int, Cost]] = Counter()
        """What it has reserved, and not settled."""

    async def admit(self, key_id: str, limits: KeyLimits, cost: Cost, *, patient: bool = False) -> Verdict:
        verdict = await self._meter.admit(key_id, limits, cost, patient=patient)
        if verdict.refusal is None and cost != Cost():
            self._out[key_id, verdict.day, cost] += 1
        return verdict

    def settle(self, key_id: str, day: int, reserved: Cost, used: Cost) -> Standing | None:
        """Nothing where it has been settled already."""
        held = key_id, day, reserved
        if self._out[held] <= 0:
            return None
        self._out[held] -= 1
        return self._meter.settle(key_id, day, reserved, used)

    async def used(self) -> Mapping[str, Used]:
        return await self._meter.used()

    def close(self) -> None:
        """It settles nothing more: its requests have been made, and are no longer under way."""
        for (key_id, day, reserved), count in self._out.items():
            for _ in range(count):
                self._meter.settle(key_id, day, reserved, Cost(requests=reserved.requests))
        self._out.clear()


class FarMeter:
    """In a front end: the core's `Metering`."""

    def __init__(self, call: CallFar, tell: Callable[[frames.Settle], None]) -> None:
        self._far = cast(Metering, Far(Metering, "metering", call))
        self._tell = tell

    async def admit(self, key_id: str, limits: KeyLimits, cost: Cost, *, patient: bool = False) -> Verdict:
        """A caller that is cancelled meanwhile has reserved nothing."""
        asking = asyncio.ensure_future(self._far.admit(key_id, limits, cost, patient=patient))
        try:
            return await asyncio.shield(asking)
        except asyncio.CancelledError:
            asking.add_done_callback(lambda asked: self._give_back(key_id, cost, asked))
            raise

    def settle(self, key_id: str, day: int, reserved: Cost, used: Cost) -> Standing | None:
        self._tell(frames.Settle(key_id, day, reserved, used))
        return None

    async def used(self) -> Mapping[str, Used]:
        return await self._far.used()

    def _give_back(self, key_id: str, cost: Cost, asked: asyncio.Future[Verdict]) -> None:
        if not asked.cancelled() and asked.exception() is None and asked.result().refusal is None:
            self.settle(key_id, asked.result().day, cost, Cost())
