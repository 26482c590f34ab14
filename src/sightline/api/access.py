"""What a request leaves behind: one line in the log, its counts, and its span; never its content."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.routing import Route
from starlette.types import Message, Receive, Scope

from sightline import metrics, tracing
from sightline.api import caller, errors
from sightline.items import ChoiceEvent, Item, Prepared
from sightline.logs import Facts, to_trace
from sightline.types import Finish

log = logging.getLogger("sightline.access")

_KEY: Final = "sightline.access"


@dataclass(slots=True)
class Record:
    """What is known so far of one request; lives in its ASGI scope."""

    request_id: str
    facts: dict[str, Any] = field(default_factory=dict)
    """What the endpoint reports: names, counts and seconds."""
    status: int | None = None
    """As sent; 499 when the client left."""
    error: BaseException | None = None
    at_end: Callable[[], Mapping[str, Any]] | None = None
    """Tells the rest when the line is written: what a stream only knows when it is over."""
    started: float = field(default_factory=time.perf_counter)
    bytes_in: int = 0
    """Of the body, as far as it was read."""
    bytes_out: int = 0

    def elapsed_s(self) -> float:
        return round(time.perf_counter() - self.started, 6)


def open_record(scope: Scope, request_id: str) -> Record:
    record = scope[_KEY] = Record(request_id)
    return record


def of(scope: Scope) -> Record:
    """The record of the request that `scope` belongs to."""
    record: Record = scope[_KEY]
    return record


def counted(receive: Receive, record: Record) -> Receive:
    """`receive`, counting the body's bytes."""

    async def receive_and_count() -> Message:
        message = await receive()
        if message["type"] == "http.request":
            record.bytes_in += len(message.get("body", b""))
        return message

    return receive_and_count


def close_record(scope: Scope, record: Record, dialect: str) -> None:
    """The request is over: it is counted and logged. `dialect`: which API it spoke, one of a closed set."""
    if record.error is not None and errors.is_bug(record.error):
        log.error("request %s met a bug: %s", record.request_id, to_trace(record.error))
    route, method = route_of(scope), scope["method"]
    ended = metrics.http_ended(route, method, record.status, dialect)
    ended.observe(record.elapsed_s(), record.bytes_in, record.bytes_out)
    if log.isEnabledFor(logging.INFO):
        log.info(to_line(scope, record, dialect))


def route_of(scope: Scope) -> str:
    """The template of a request's route (`/v1/models/{id:path}`), never the path that was asked for; `none`: it has
    none."""
    route = scope.get("route")
    return route.path if isinstance(route, Route) else "none"


def to_line(scope: Scope, record: Record, dialect: str) -> Facts:
    """What the log says of it."""
    route = route_of(scope)
    fields: dict[str, Any] = {
        "id": record.request_id,
        "key": caller.of(scope).key_id or None,
        "client": (scope.get("client") or (None,))[0],
        "method": scope["method"],
        "route": route,
        "dialect": dialect,
        "status": record.status,
        "duration_s": record.elapsed_s(),
        "bytes_in": record.bytes_in,
        "bytes_out": record.bytes_out,
        "trace": tracing.trace_id(),
        **record.facts,
        **(record.at_end() if record.at_end is not None else {}),
    }
    if record.error is not None:
        fields["error"] = type(record.error).__name__
    return Facts(f"{scope['method']} {route}", fields)


def to_facts(items: Sequence[Item]) -> dict[str, Any]:
    """What the access log says of an answer: names, counts and seconds, no content."""
    facts: dict[str, Any] = {}
    finishes = []
    for item in items:
        match item:
            case Prepared():
                facts |= {
                    "engine": item.engine,
                    "path": item.path,
                    "images": len(item.images),
                    "queue_s": round(item.queue_s, 6),
                    "prompt_tokens": item.token_count.prompt_tokens,
                    "image_tokens": sum(item.token_count.image_tokens),
                }
            case ChoiceEvent(event=Finish() as finish):
                finishes.append(finish)
    if finishes:
        facts |= {
            "cached_tokens": min(f.usage.cached_tokens for f in finishes),
            "completion_tokens": sum(f.usage.completion_tokens for f in finishes),
            "finish": [f.reason for f in finishes],
        }
    return facts
