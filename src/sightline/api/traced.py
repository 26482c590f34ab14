"""The span around every request, whatever its route: HTTP's, by OpenTelemetry's conventions for servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from starlette.types import Scope

from sightline import tracing
from sightline.api import access, caller


def traced(scope: Scope) -> AbstractContextManager[None]:
    """Around all that becomes of an HTTP request, while traces are made at all. Inside, it has its `access.Record`."""
    return _traced(scope) if tracing.active() else _UNTRACED


_UNTRACED = nullcontext()


@contextmanager
def _traced(scope: Scope) -> Iterator[None]:
    with tracing.serving(scope["method"][:16], scope["scheme"], scope["headers"]) as span:
        try:
            yield
        finally:
            _describe(span, scope)


def _describe(span: tracing.Span, scope: Scope) -> None:
    """What is known when it is over. The path is its route's template: what clients write into one may be anything."""
    record = access.of(scope)
    route = access.route_of(scope)
    method, known = scope["method"][:16], route != "none"
    span.rename(f"{method} {route}" if known else method)
    span.set(
        {
            "http.route": route if known else None,
            "url.path": route if known else None,
            "http.response.status_code": record.status,
            "http.request.body.size": record.bytes_in,
            "http.response.body.size": record.bytes_out,
            "network.protocol.version": scope.get("http_version"),
            "sightline.request_id": record.request_id,
            "sightline.key": caller.of(scope).key_id or None,
            "sightline.inside": caller.of(scope).is_inside or None,
        }
    )
    if (error_type := _failure(record)) is not None:
        span.fail(error_type)


def _failure(record: access.Record) -> str | None:
    """A 4xx is the client's mistake and no failure; an error behind a 200 ended a stream."""
    if record.status is not None and 400 <= record.status < 500:
        return None
    if record.error is not None:
        return type(record.error).__name__
    return str(record.status) if record.status is not None and record.status >= 500 else None
