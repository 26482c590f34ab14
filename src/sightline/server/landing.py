"""A body's way in: from the socket to where its reader wants it, in one step.

What is read of a connection lies in one buffer for all of them, until the parser has made heads and pieces of bodies of
it. A large body would be copied five times on that way. So whoever reads one whose length was told names a place for
it (`api/bodies.py`), and what has not come by then is read from the socket into that place, past the parser, which
would only count it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, cast

from starlette.types import Message, Scope
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from sightline.api.bodies import LAND

_READ_BYTES: Final = 64 * 1024
COMMON: Final = memoryview(bytearray(_READ_BYTES))
"""What was read last, of whatever connection: nothing else runs before its protocol has taken it."""


class Buffered(asyncio.BufferedProtocol):
    """The face of a protocol that says where it wants its bytes. Event loops take whatever inherits from
    `asyncio.Protocol`, as uvicorn's does, for one that is handed them."""

    def __init__(self, protocol: Any) -> None:
        for name in (
            "connection_made", "connection_lost", "eof_received", "pause_writing", "resume_writing", "get_buffer",
            "buffer_updated",
        ):  # fmt: skip
            setattr(self, name, getattr(protocol, name))


class Landing:
    """A request's body: the bytes of it that have not come. Its protocol tells it of each that comes, and when the
    request has been answered."""

    def __init__(self, cycle: RequestResponseCycle, num_bytes: int, begin: Callable[[Landing], None]) -> None:
        """`begin` is called when there is a place."""
        self.cycle = cycle
        self._begin = begin
        self._num_bytes = num_bytes
        self._place: memoryview | None = None
        self._come = self._told = 0
        """Bytes that lie in the place; of these, those that `receive` has told of."""
        self._parsed = cycle.receive
        cycle.receive = self._receive  # type: ignore[method-assign, assignment]
        cast(Scope, cycle.scope)[LAND] = self

    def __call__(self, place: memoryview) -> Callable[[], int]:
        """A `bodies.Land`."""
        assert len(place) == self._num_bytes
        begun = self.cycle.body
        place[: len(begun)] = begun
        self._place, self._come = place, len(begun)
        self.cycle.body = bytearray()
        if self._come < self._num_bytes:
            self._begin(self)
        return lambda: self._come

    def forget(self) -> None:
        """Nobody waits for the body any more: the rest of it lands nowhere. The request forgets this too, or each
        would keep the other, with all that is known of it, until the garbage is collected."""
        self._place = None
        cast(Scope, self.cycle.scope).pop(LAND, None)
        vars(self.cycle).pop("receive", None)

    def rest(self) -> memoryview:
        """Where the next bytes of the body belong."""
        if self._place is None:
            return COMMON[: self._num_bytes - self._come]
        return self._place[self._come :]

    def take(self, num_bytes: int) -> bool:
        """So many have come; whether they were the last."""
        self._come += num_bytes
        return self._come == self._num_bytes

    async def _receive(self) -> Message:
        """ASGI's, once there is a place: tells of the body when all of it is there, or when the client has gone."""
        message: Message = await self._parsed()  # type: ignore[assignment]
        if self._place is None or self._told == self._come:
            return message
        landed, self._told = self._place[self._told : self._come], self._come
        if is_whole := self._come == self._num_bytes:
            self._place = None  # the reader's alone from now on
        return {"type": "http.request", "body": landed, "more_body": not is_whole}
