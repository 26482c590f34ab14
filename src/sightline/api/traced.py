"""The span around every request, whatever its route: HTTP's, by OpenTelemetry's conventions for servers."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from sightline import tracing
from sightline.api import access, caller


class Traced:
    """Passes a request on, inside its span while traces are made at all."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not tracing.active() or scope["type"] != "http":
            return await self._app(scope, receive, send)
        with tracing.serving(scope["method"][:16], scope["scheme"], scope["headers"]) as span:
            try:
                await self._app(scope, receive, send)
            finally:
                _describe(span, scope)


def _describe(span: tracing.Span, scope: Scope) -> None:
    """What is known when it is over. The path is its route's template: what clients write into one may be anything."""
    record = access.of(scope)
    route = access.route_of(scope)
    span.rename(f"{scope['method'][:16]} {route}" if route != "none" else scope["method"][:16])
    span.set(
        {
            "http.route": route if route != "none" else None,
            "url.path": route if route != "none" else None,
            "http.response.status_code": record.status,
            "http.request.body.size": record.bytes_in,
            "http.response.body.size": record.bytes_out,
            "network.protocol.version": scope.get("http_version"),
            "sightline.request_id": record.request_id,
            "sightline.key": getattr(caller.of(scope), "key_id", None),
            "sightline.inside": caller.of(scope).is_inside or None,
        }
    )
    if record.error is not None and (record.status is None or record.status >= 500 or record.status < 400):
        span.fail(type(record.error).__name__)
    elif record.status is not None and record.status >= 500:
        span.fail(str(record.status))
