"""How much of what clients send is held in memory at once, all requests together.

A line of requests is bounded in their number, which says little where one may have a hundred pictures. So their bodies
are counted from when they arrive until the request has ended, and one that there is no room for is refused before it is
read. What goes to disk (uploads) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from starlette.types import Scope

from sightline import metrics
from sightline.errors import Overloaded

_KEY: Final = "sightline.bodies"

LAND: Final = "sightline.land"
"""In the ASGI scope of a request with a large body of a length that was told, where the server can do so: a `Land`."""
Land: TypeAlias = Callable[[memoryview], Callable[[], int]]
"""From a place, as large as the body, to how many bytes of it are there so far: the server writes the body into it, in
place of giving it out. `receive` then tells of it when all of it has come."""


class Bodies:
    """Those of one server."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        metrics.BODIES_BYTES.set_function(lambda: self._bytes)

    def around(self, scope: Scope) -> _Share:
        """To be entered around a request: what `hold` counts for it is let go of at the end."""
        share = scope[_KEY] = _Share(self)
        return share

    def leave(self, num_bytes: int) -> None:
        self._bytes -= num_bytes

    def take(self, num_bytes: int) -> None:
        """Raises `Overloaded`. One that is alone has room whatever its size."""
        if self._bytes and self._bytes + num_bytes > self._max_bytes:
            raise Overloaded(
                "The server holds as many bytes of requests as it has room for. Try again after the time in "
                "Retry-After, or send smaller pictures."
            )
        self._bytes += num_bytes


class _Share:
    """Of one request."""

    def __init__(self, bodies: Bodies) -> None:
        self.bodies = bodies
        self.num_bytes = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.bodies.leave(self.num_bytes)


def hold(scope: Scope, num_bytes: int) -> None:
    """Counts bytes that the request of this scope keeps in memory until it ends. Raises `Overloaded` where there is no
    room for them."""
    share: _Share | None = scope.get(_KEY)
    if share is not None:
        share.bodies.take(num_bytes)
        share.num_bytes += num_bytes
