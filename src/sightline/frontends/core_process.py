"""The core: the one process that has the service. It listens to nobody but the front ends that its parent sends it."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from contextlib import nullcontext

from sightline.access.gate import Gate, keys_path
from sightline.api.app import create_app
from sightline.api.lifespan import running
from sightline.api.responses.store import MemoryStore, ResponseStore
from sightline.api.shared import Shared
from sightline.frontends import frames, orders
from sightline.frontends.core import Core
from sightline.frontends.link import Link
from sightline.frontends.shares import core_share
from sightline.server import loop_factory
from sightline.service import Service
from sightline.ui.mount import to_application

log = logging.getLogger(__name__)


def run(start: orders.Start, control: socket.socket) -> None:
    """Until the parent closes `control`."""
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(start, control))


async def _serve(start: orders.Start, control: socket.socket) -> None:
    settings = core_share(start.settings)
    service = Service(settings)
    stored = MemoryStore(settings.responses)
    gate = Gate(settings.access, keys_path(settings), guarded=start.guarded)
    app = create_app(service, settings, gate=gate, shared=Shared(responses=stored))
    page = to_application(app, settings) if settings.ui else None
    core = Core(service, app, gate, {"responses": (ResponseStore, stored)}, page)
    ended = asyncio.Event()

    def receive(frame: orders.FromParent, fd: int | None) -> None:
        if isinstance(frame, orders.Join):
            assert fd is not None, "the link comes with it"
            core.join(Link(socket.socket(fileno=fd), frames.decode_to_core))

    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with running(app), nullcontext() if page is None else page.lifespan():
        core.start()
        parent: Link[orders.FromParent] = Link(control, orders.decode_from_parent)
        parent.open(receive, ended.set)
        parent.send(orders.Up())
        await ended.wait()
        await core.close()
