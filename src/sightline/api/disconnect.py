"""A client that leaves ends its work, at every stage.

The work of a request runs in the request's own task, which is cancelled when the client leaves. Our server says so by a
callback (`Presence`); any other is asked with `receive`, by a task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from starlette.types import Receive, Scope

T = TypeVar("T")

_KEY: Final = "sightline.presence"


class ClientDisconnected(Exception):
    """Nobody waits for the answer any more. Never shown to anyone; the access log has it as status 499."""


class Presence:
    """Whether the client of a request is still there. Lives in the request's ASGI scope, where the server puts it."""

    def __init__(self, look: Callable[[], None]) -> None:
        """`look`: has the server notice it when the client leaves; called when somebody wants to know."""
        self._look = look
        self._gone = False
        self._told: Callable[[], None] | None = None

    def put(self, scope: Scope) -> None:
        scope[_KEY] = self

    @staticmethod
    def end(scope: Scope) -> None:
        """The client has left. For the server to say, from the event loop."""
        presence: Presence | None = scope.get(_KEY)
        if presence is not None and not presence._gone:
            presence._gone = True
            if presence._told is not None:
                presence._told()

    def tell(self, told: Callable[[], None] | None) -> bool:
        """Has `told` called when the client leaves; None: nobody wants to know any more. False: it has left."""
        self._told = told
        if told is not None and not self._gone:
            self._look()
        return not self._gone


class Attended:
    """`async with` it: what is inside goes on while the client is there. When it leaves, what is inside is cancelled,
    and when that has cleaned up, `ClientDisconnected` is raised.

    The body must have been read: from then on all that `receive` can say is that the client has gone.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._presence: Presence | None = scope.get(_KEY)
        self._receive = receive
        self._watching: asyncio.Task[None] | None = None
        self._has_left = False

    def leave(self) -> None:
        """The client is gone, or as good as gone. Not to be called by what is inside."""
        if not self._has_left:
            self._has_left = True
            self._task.cancel()

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None, "requests are answered by tasks"
        self._task = task
        if self._presence is None:
            self._watching = asyncio.create_task(_disconnect(self._receive))
            self._watching.add_done_callback(lambda watching: watching.cancelled() or self.leave())
        elif not self._presence.tell(self.leave):
            raise ClientDisconnected
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        has_left, self._has_left = self._has_left, True  # whoever leaves from now on interrupts nothing
        if self._presence is not None:
            self._presence.tell(None)
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if has_left and self._task.uncancel() == 0 and kind is not None:
            raise ClientDisconnected from None


async def unless_disconnected(scope: Scope, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns; when the client leaves first, it is cancelled, and when it has cleaned up,
    `ClientDisconnected` is raised."""
    try:
        async with Attended(scope, receive):
            return await work
    finally:
        work.close()  # the client had left before it began


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
