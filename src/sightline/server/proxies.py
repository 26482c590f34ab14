"""Around an application: who a client is behind trusted proxies, and how much it may ask at once there."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from sightline.server.connections import Connections
from sightline.server.networks import to_forwarded_client
from sightline.server.refusal import TOO_MANY_OF_ONE


class BehindProxies:
    """Puts the client's own address and scheme into the scope of what trusted proxies pass on. What anybody else says
    in these headers changes nothing."""

    def __init__(self, app: ASGIApp, connections: Connections) -> None:
        self._app = app
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        peer = scope.get("client")
        if scope["type"] != "http" or peer is None or peer[0] not in self._connections.proxies:
            await self._app(scope, receive, send)
            return
        headers = scope["headers"]
        forwarded = [value.decode("latin-1") for name, value in headers if name == b"x-forwarded-for"]
        client = to_forwarded_client(",".join(forwarded), self._connections.proxies)
        scheme = next((value for name, value in reversed(headers) if name == b"x-forwarded-proto"), b"")
        scheme = scheme.rpartition(b",")[2].strip().lower()
        if scheme in (b"http", b"https"):
            scope["scheme"] = scheme.decode()
        if client is None:
            await self._app(scope, receive, send)
            return
        scope["client"] = (client, 0)
        if not self._connections.enter(client):
            await TOO_MANY_OF_ONE.send(send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._connections.leave(client)
