"""The decisions of `limits.py` as a server asks for them: one `Meter` for every request, and its budgets kept.

What was used is written once a second, by a thread, and never by a request. A server that is killed forgets what was
used since the last time: about a second's worth, and what was under way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Protocol

from sightline.access.keyfile import KeyFile, today
from sightline.access.limits import Cost, Meter, Standing, Used, Verdict
from sightline.config import KeyLimits
from sightline.errors import StorageUnavailable

log = logging.getLogger(__name__)

_SAVE_S: Final = 1.0


class Metering(Protocol):
    """A meter that may be in another process. Nothing here raises for a limit: a `Verdict` says what came of it."""

    async def admit(self, key_id: str, limits: KeyLimits, cost: Cost, *, patient: bool = False) -> Verdict:
        """As `Meter.admit`."""
        ...

    def settle(self, key_id: str, day: int, reserved: Cost, used: Cost) -> Standing | None:
        """As `Meter.settle`; None where that is not known at once. To be called exactly once for what was reserved."""
        ...

    async def used(self) -> Mapping[str, Used]:
        """Today, by the keys' ids."""
        ...


class KeptMeter:
    """The one of this process. Life: made -> `start` -> `close`."""

    def __init__(self, file: KeyFile | None, meter: Meter | None = None) -> None:
        """`file`: None: budgets start anew with the server."""
        self._file = file
        self._meter = meter or Meter()
        self._saving: asyncio.Task[None] | None = None
        self._known: set[str] = set()

    async def start(self) -> None:
        if self._file is not None:
            with suppress(StorageUnavailable):  # it is told of when it is to be written
                day = today()
                for key_id, used in (await asyncio.to_thread(self._file.used, day)).items():
                    self._known.add(key_id)
                    self._meter.learn(key_id, day, used)
            self._saving = asyncio.create_task(self._save_again_and_again())

    async def close(self) -> None:
        """All that was used is kept when it returns. Idempotent."""
        if self._saving is not None:
            self._saving.cancel()
            await asyncio.wait([self._saving])
            self._saving = None
            await self.save()

    async def admit(self, key_id: str, limits: KeyLimits, cost: Cost, *, patient: bool = False) -> Verdict:
        return self._meter.admit(key_id, limits, cost, patient=patient)

    def settle(self, key_id: str, day: int, reserved: Cost, used: Cost) -> Standing:
        self._known.add(key_id)
        return self._meter.settle(key_id, day, reserved, used)

    async def used(self) -> Mapping[str, Used]:
        return {key_id: self._meter.used(key_id) for key_id in self._known}

    async def save(self) -> None:
        """Writes what was used, and learns what other servers have written of the same keys."""
        unsaved = self._meter.take_unsaved()
        if not unsaved or self._file is None:
            return
        try:
            kept = await asyncio.to_thread(self._file.add, unsaved)
        except StorageUnavailable as error:
            log.error("what keys have used cannot be kept now, and is only remembered: %s", error.message)
            self._meter.put_back(unsaved)
            return
        for (key_id, day), used in kept.items():
            self._meter.learn(key_id, day, used)

    async def _save_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_S)
            await self.save()
