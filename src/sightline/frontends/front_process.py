"""A front end: the same application as in a server of one process, whose service is the core's."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from typing import Final, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sightline import metrics
from sightline.access.gate import Gate, keys_path
from sightline.api.app import create_admin_app, create_app
from sightline.api.responses.store import ResponseStore
from sightline.api.shared import Shared
from sightline.config import is_loopback
from sightline.frontends import frames, orders
from sightline.frontends.calls import Far
from sightline.frontends.core import Counts
from sightline.frontends.forward import Forwarded
from sightline.frontends.lent import FarMeter
from sightline.frontends.link import Link
from sightline.frontends.page import FarPage
from sightline.frontends.service import FrontService
from sightline.frontends.shares import front_end_share
from sightline.frontends.totals import Told
from sightline.server import Endpoint, Server
from sightline.server.tls import Certificate
from sightline.service import Service
from sightline.ui.mount import to_server_page

log = logging.getLogger(__name__)

_LINGER_S: Final = 6.0
"""How long a front end whose place another has taken waits for clients that are about to use a connection again. HTTP
clients forget an idle one after 5 s (httpx, aiohttp's is 15, urllib3's never): closed under a request, it fails."""


_LOOK_S: Final = 0.05


class FrontEnd:
    """Life: made -> `run`, which returns when it has retired, drained, or lost its core. The first listener is for all,
    the second, where the settings have `admin`, for admins."""

    def __init__(
        self, start: orders.Start, control: socket.socket, link: socket.socket, listeners: Sequence[socket.socket]
    ) -> None:
        settings = front_end_share(start.settings, start.processes)
        self._parent: Link[orders.FromParent] = Link(control, orders.decode_from_parent)
        self.service = FrontService(settings, Link(link, frames.decode_to_front_end), lost=self._lose)
        self._settings = settings
        self._retiring = False
        self._is_lost = False
        self._is_up = False
        # It has the same methods, which a test sees to.
        service = cast(Service, self.service)
        meter = FarMeter(self.service.call, self.service.settle)
        gate = Gate(settings.access, keys_path(settings), meter, guarded=start.guarded)
        shared = self._to_shared()
        self._page = FarPage(self.service, settings.http)
        app = (
            to_server_page(service, settings, gate, shared, self._page).app
            if settings.ui
            else create_app(service, settings, gate=gate, shared=shared)
        )
        certificate = None if settings.tls is None else Certificate(settings.tls)
        endpoints = [Endpoint(self._around(app), listeners[:1], certificate, shared=True)]
        if settings.admin is not None:
            certificate = None if is_loopback(settings.admin.host) else certificate
            app = create_admin_app(service, settings, gate, shared)
            endpoints.append(Endpoint(self._around(app), listeners[1:], certificate, shared=True))
        self._server = Server(
            endpoints,
            self._drain,
            settings.drain_s,
            settings.http,
        )

    def run(self) -> None:
        self._server.run()

    def _to_shared(self) -> Shared:
        service = self.service
        stored = cast(ResponseStore, Far(ResponseStore, "responses", service.call))
        counts = cast(Counts, Far(Counts, "counts", service.call))

        def forward(request: Request, body: bytes) -> Response:
            return Forwarded(service.forward, request, body)

        async def render_metrics() -> tuple[bytes, str]:
            return metrics.render(Told(await counts.all()))

        return Shared(stored, forward, render_metrics)

    # --- its end -------------------------------------------------------------------------------------------------

    def _receive(self, frame: orders.FromParent, fd: int | None) -> None:
        if isinstance(frame, orders.Retire):
            self._retiring = True
            self._server.drain_s = self._settings.request_timeout_s  # nobody waits for it to end
            self._server.stop()
        elif isinstance(frame, orders.Drain):
            self._server.stop()

    def _lose(self) -> None:
        """The core has gone, and what was under way has been told so."""
        self._is_lost = True
        self._server.stop()

    async def _drain(self) -> None:
        try:
            if self._retiring:
                await self._retire()
                return
            self._page.end()
            if not self._is_lost:
                await self.service.drain()
        finally:
            # Here and not by closing the sockets later: others have them open, so that the event loop would go on
            # hearing of connections.
            self._server.stop_listening()

    async def _retire(self) -> None:
        """No new connection is taken, which others do who listen to the same sockets; each that there is may be used
        once more. Returns when none is left, or those that are have been idle for long."""
        self._server.stop_listening()
        for _ in range(int(_LINGER_S / _LOOK_S)):
            if not self._server.connections:
                return
            await asyncio.sleep(_LOOK_S)

    # --- around the application ----------------------------------------------------------------------------------

    def _around(self, app: ASGIApp) -> ASGIApp:
        async def around(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and not self._retiring:
                await app(scope, receive, send)
                return

            async def sent(message: Message) -> None:
                if message["type"] == "lifespan.startup.complete" and not self._is_up:
                    self._is_up = True
                    self._parent.open(self._receive, lambda: os._exit(1))
                    self._parent.send(orders.Up())
                elif message["type"] == "http.response.start" and self._retiring:
                    message["headers"] = [*message["headers"], (b"connection", b"close")]
                await send(message)

            await app(scope, receive, sent)

        return around


def run(start: orders.Start, control: socket.socket, link: socket.socket, listeners: Sequence[socket.socket]) -> None:
    FrontEnd(start, control, link, listeners).run()
