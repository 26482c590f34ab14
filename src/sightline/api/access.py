"""What a request leaves in the log: one line of JSON, and never its content.

The line is pure ASCII with control characters escaped, so that nothing a client sends can forge a second one or speak
to a terminal.
"""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from sightline.service import ChoiceEvent, Item, Prepared
from sightline.types import Finish

_KEY = "sightline.access"
MAX_FIELD = 256
"""Characters of any text that a client chose."""


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

    def elapsed_s(self) -> float:
        return round(time.perf_counter() - self.started, 6)


def open_record(scope: Scope, request_id: str) -> Record:
    record = scope[_KEY] = Record(request_id)
    return record


def of(scope: Scope) -> Record:
    """The record of the request that `scope` belongs to."""
    record: Record = scope[_KEY]
    return record


def to_line(record: Record, *, method: str, route: str) -> str:
    """`route` is a route's template (`/v1/models/{id:path}`), never the path that was asked for."""
    line = {
        "id": record.request_id,
        "method": method,
        "route": route,
        "status": record.status,
        "duration_s": record.elapsed_s(),
        **record.facts,
        **(record.at_end() if record.at_end is not None else {}),
    }
    if record.error is not None:
        line["error"] = type(record.error).__name__
    cut = {key: value[:MAX_FIELD] if isinstance(value, str) else value for key, value in line.items()}
    return json.dumps(cut, separators=(",", ":")).replace("\x7f", "\\u007f")


def to_trace(error: BaseException) -> str:
    """Where an unexpected error came from: classes and places. Not its message, which may quote what a client sent."""
    lines = []
    cause: BaseException | None = error
    while cause is not None:
        lines += [type(cause).__qualname__, *traceback.format_tb(cause.__traceback__)]
        cause = cause.__cause__ or cause.__context__
    return "\n".join(line.rstrip() for line in lines)


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
