"""An ASGI application started and ended without a server around it (ASGI, lifespan protocol 2.0)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Message


@asynccontextmanager
async def running(app: ASGIApp) -> AsyncIterator[None]:
    """From its startup to its shutdown. Raises what its startup raised."""
    to_app: asyncio.Queue[Message] = asyncio.Queue()
    from_app: asyncio.Queue[Message] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}

    async def live() -> None:
        try:
            await app(scope, to_app.get, from_app.put)
        finally:
            from_app.put_nowait({"type": "ended"})

    task = asyncio.create_task(live())
    for phase in ("startup", "shutdown"):
        to_app.put_nowait({"type": f"lifespan.{phase}"})
        if (await from_app.get())["type"] != f"lifespan.{phase}.complete":
            await task  # raises what it met
            raise RuntimeError(f"the application's {phase} failed")
        if phase == "startup":
            try:
                yield
            except BaseException:
                task.cancel()
                raise
    await task
