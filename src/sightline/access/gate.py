"""Who comes in: keys as they are now, and a permit for each request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from sightline.access.keyfile import KeyFile
from sightline.access.keys import Key, Keyring, to_key
from sightline.access.limits import Cost
from sightline.access.metering import KeptMeter, Metering
from sightline.access.permit import Permit
from sightline.config import AccessPolicy, Settings
from sightline.errors import InvalidRequest, StorageUnavailable, Unauthenticated

log = logging.getLogger(__name__)

_LOOK_S: Final = 1.0
"""How often it is looked for new and revoked keys."""
_ASKING: Final = Cost(requests=1, concurrent=1)
_PATIENT: Final = Cost(requests=1)
_READING: Final = Cost()


def keys_path(settings: Settings) -> Path | None:
    """Where the keys of a server are kept; None: it keeps nothing."""
    if settings.access.file is not None:
        return Path(settings.access.file)
    return None if settings.data_dir is None else Path(settings.data_dir) / "keys.db"


class Gate:
    """Life: made -> `start` -> `close`. Keys are known, and asked for, from the moment it is made."""

    def __init__(
        self,
        policy: AccessPolicy,
        path: Path | None = None,
        metering: Metering | None = None,
        *,
        guarded: bool = False,
    ) -> None:
        """`metering`: another process's; None: one of its own. `guarded`: this server has had keys before, and is open
        to nobody, whatever its file holds by now. Raises `StorageUnavailable` where there is a file of
        keys that cannot be read, and `InvalidRequest` where the one that the policy names holds none, or is not there:
        a server that does not know its keys must not start, or it would be open to all.
        """
        self._file = None if path is None else KeyFile(path)
        self._configured = tuple(map(to_key, policy.keys))
        self._own = KeptMeter(self._file) if metering is None else None
        self.metering: Metering = metering or self._own  # type: ignore[assignment]
        self._stamp = () if self._file is None else self._file.stamp()
        self._keyring = Keyring(self._loaded())
        self._is_open = self._keyring.is_empty and not guarded
        if self._is_open and policy.file is not None:
            raise InvalidRequest(
                f"There is no API key in {policy.file}, so it would protect nothing. Make one first: sightline keys "
                f"create NAME --keys {policy.file}. Or name no file.",
                param="access.file",
            )
        self._looking: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """To anyone: there never was a key. A file of keys that is taken away does not open a running server."""
        return self._is_open

    @property
    def keys(self) -> Iterable[Key]:
        return self._keyring.keys

    async def start(self) -> None:
        if self._own is not None:
            await self._own.start()
        if self._file is not None:
            self._looking = asyncio.create_task(self._look_again_and_again())

    async def close(self) -> None:
        """Idempotent."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.wait([self._looking])
            self._looking = None
        if self._own is not None:
            await self._own.close()

    def identify(self, secret: bytes | None) -> Key:
        """Whose key a client has sent. Raises `Unauthenticated`."""
        if secret is None:
            error = Unauthenticated(
                "This server wants an API key: Authorization: Bearer KEY, or x-api-key: KEY. Who runs the server gives "
                "them out."
            )
            error.code = None  # type: ignore[misc, assignment]  # wire contract, section 0: only a key that is wrong has a code
            raise error
        return self._keyring.identify(secret)

    def get(self, key_id: str) -> Key:
        """By its id, for what it was used for before. Raises `Unauthenticated` where it no longer counts."""
        return self._keyring.get(key_id)

    async def admit(self, key: Key, *, asks: bool, patient: bool = False) -> Permit:
        """A permit, which must be left; `refused` says whether it is good for anything. `asks`: for work, which its
        rates are for. `patient`: nobody waits for it."""
        entered = _READING if not asks else _PATIENT if patient else _ASKING
        verdict = await self.metering.admit(key.id, key.limits, entered, patient=patient)
        return Permit(key, self.metering, entered, verdict, patient=patient)

    async def look(self) -> None:
        """Takes over what has changed in the file of keys."""
        assert self._file is not None
        try:
            stamp = self._file.stamp()
            if stamp != self._stamp:
                self._keyring = Keyring(await asyncio.to_thread(self._loaded))
                self._is_open = self._is_open and self._keyring.is_empty
                self._stamp = stamp
        except (StorageUnavailable, InvalidRequest) as error:
            log.error("keys stay as they were: %s", error.message)

    def _loaded(self) -> list[Key]:
        kept = [] if self._file is None else self._file.load()
        return [*kept, *self._configured]

    async def _look_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            await self.look()
