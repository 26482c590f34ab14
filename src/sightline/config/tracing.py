"""Where traces of requests go."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from sightline.config.environment import variable
from sightline.errors import InvalidRequest


class Tracing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces of requests, sent to an OpenTelemetry collector. Never content: names, counts and times."""

    otlp_endpoint: str | None = None
    """Where OTLP over HTTP is taken, such as `http://localhost:4318`; `/v1/traces` is added. None: what
    OTEL_EXPORTER_OTLP_TRACES_ENDPOINT (as it stands) or OTEL_EXPORTER_OTLP_ENDPOINT says; without them no traces are
    made."""
    sample: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """What part of the requests is traced that come without a trace of their own. One that comes with a `traceparent`
    header is traced if its sender says so."""
    service_name: str | None = None
    """None: what OTEL_SERVICE_NAME says, else `sightline`."""
    every_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """How often spans are sent."""
    flush_s: Annotated[float, msgspec.Meta(gt=0)] = 5.0
    """How long one sending may take, and the last one when the server ends."""

    def __post_init__(self) -> None:
        if self.otlp_endpoint is not None and not _HTTP_URL.fullmatch(self.otlp_endpoint):
            raise InvalidRequest(
                f"{self.otlp_endpoint[:128]!r} is no endpoint. Write the address of a collector that takes OTLP over "
                "HTTP, such as http://localhost:4318, without a path, a user or a query.",
                param="tracing.otlp_endpoint",
            )

    @property
    def endpoint(self) -> str | None:
        """The whole URL that spans are sent to; None: none are made. OpenTelemetry's general SDK configuration:
        OTEL_SDK_DISABLED and OTEL_TRACES_EXPORTER=none turn them off, whatever names an endpoint."""
        disabled = (variable("OTEL_SDK_DISABLED") or "").lower() == "true"
        if disabled or variable("OTEL_TRACES_EXPORTER") == "none":
            return None
        if self.otlp_endpoint is None and (exact := variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
            return exact
        base = self.otlp_endpoint or variable("OTEL_EXPORTER_OTLP_ENDPOINT")
        return f"{base.rstrip('/')}/v1/traces" if base else None

    @property
    def name(self) -> str:
        """`service.name` of what is sent."""
        return self.service_name or variable("OTEL_SERVICE_NAME") or "sightline"


_HTTP_URL = re.compile(r"https?://[A-Za-z0-9._\-\[\]:]+/?")
