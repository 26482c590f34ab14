"""All connections of the process: how many there may be, of whom, and which have been waited for long enough.

One sweep looks at every connection a few times a second, in place of timers that each request would set and clear.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from typing import Protocol

from sightline import metrics
from sightline.config import HttpLimits
from sightline.server.networks import Networks, to_client
from sightline.server.refusal import TOO_MANY, TOO_MANY_OF_ONE, Refusal

log = logging.getLogger(__name__)

SWEEP_S = 0.25
_MAX_ENDED = 8
"""Connections that are ended before anything else has its turn."""
_OWN_FILES = 256
"""Files that the process needs beside connections: models, pictures, pipes, databases."""
_MAX_LEAVING = 128
"""Connections beyond the limit that are answered before they are closed; more are just closed."""


class Connection(Protocol):
    """Hashable by identity."""

    def check(self, now: float) -> bool:
        """Ends what has taken too long, and tells whether it has. `now`: the loop's time."""


class Connections:
    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self.proxies = Networks(limits.trusted_proxies)
        self._uncounted = Networks(limits.uncounted_networks)
        files = _open_files()
        self._max = min(limits.max_connections, max(files - _OWN_FILES, files // 2))
        self._staying: dict[Connection, str | None] = {}
        """With the address that each is counted under."""
        self._leaving: set[Connection] = set()
        self._by_client: Counter[str] = Counter()

    def open(self, connection: Connection, address: str | None) -> Refusal | None:
        """Takes it in, until `close`. A `Refusal`: it may only be told so. `address` is who connects; None: nobody that
        has one."""
        metrics.HTTP_CONNECTIONS.inc()
        if len(self._staying) >= self._max:
            refusal: Refusal | None = TOO_MANY
        elif address is None or address in self.proxies or self.enter(address):
            self._staying[connection] = address
            return None
        else:
            refusal = TOO_MANY_OF_ONE
        self._leaving.add(connection)
        return refusal

    def has_room_to_answer(self) -> bool:
        """Whether a refused connection may stay until it has read why."""
        return len(self._leaving) <= _MAX_LEAVING

    def close(self, connection: Connection) -> None:
        if connection in self._staying:
            address = self._staying.pop(connection)
            if address is not None and address not in self.proxies:
                self.leave(address)
        elif connection in self._leaving:
            self._leaving.discard(connection)
        else:
            return
        metrics.HTTP_CONNECTIONS.dec()

    def enter(self, address: str) -> bool:
        """Counts one more of that client's, until `leave`; False: it has as many as it may have."""
        most = self.limits.max_connections_per_ip
        if not most or address in self._uncounted:
            return True
        client = to_client(address)
        if self._by_client[client] >= most:
            return False
        self._by_client[client] += 1
        return True

    def leave(self, address: str) -> None:
        client = to_client(address)
        if client in self._by_client:
            self._by_client[client] -= 1
            if self._by_client[client] <= 0:
                del self._by_client[client]

    async def sweep(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            now = loop.time()
            ended = 0
            for connection in [*self._staying, *self._leaving]:
                try:
                    if connection in self._staying or connection in self._leaving:
                        ended += connection.check(now)
                except Exception:  # a bug with one connection must not keep all others open for good
                    log.exception("a connection could not be looked after")
                    self.close(connection)
                if ended == _MAX_ENDED:  # many that came together end together
                    ended = 0
                    await asyncio.sleep(0)


def _open_files() -> int:
    """How many files this process may have open; asks for all that it may ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # some systems name a hard limit that they do not give
            return soft
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
