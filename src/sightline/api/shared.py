"""What the processes of one server have in common, where it has several (`sightline.frontends`)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from sightline import metrics
from sightline.api.responses.store import ResponseStore


async def _render_own() -> tuple[bytes, str]:
    return metrics.render()


@dataclass(frozen=True, slots=True)
class Shared:
    responses: ResponseStore | None = None
    """None: the process has one of its own."""
    forward: Callable[[Request, bytes], Response] | None = None
    """From a request and its body to the answer of the process that has what goes on without a client; None: this is
    that process."""
    render_metrics: Callable[[], Awaitable[tuple[bytes, str]]] = _render_own
    """As `metrics.render`, of all processes."""


ALONE: Final = Shared()
"""The process is the only one."""
