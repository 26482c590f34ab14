"""A request that the server puts to itself: a line of a batch, answered by the very route that would answer a client.

No socket and no HTTP: the ASGI application is called with a scope of our own, so that every check, every error and
every byte of the answer is that of the route.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from starlette.types import ASGIApp, Message

from sightline.api import access, caller
from sightline.api.caller import Caller
from sightline.errors import RateLimited
from sightline.jobs import Lease
from sightline.jobs.runner import Answer
from sightline.routing import BACKGROUND

_RETRYABLE: Final = frozenset({408, 409, 429, 500, 502, 503, 504})
_NOT_BEGUN: Final = frozenset({429, 503})
"""The engine is away, or full, or the tenant has had its share: nothing of the request ran."""
_SECONDS: Final = re.compile(r"[0-9]{1,4}")


async def execute(app: ASGIApp, lease: Lease) -> Answer:
    """What `POST lease.endpoint` answers the tenant, by the rights and limits of the key that the batch came with.
    Cancelling it ends the work, as a client that leaves does."""
    endpoint, body = lease.endpoint, lease.item.body
    exchange = _Exchange(body)
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": endpoint,
        "raw_path": endpoint.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())],
        "client": None,
        "server": None,
    }
    caller.put(scope, Caller(lease.tenant, BACKGROUND, is_inside=True, key_id=lease.key_id))
    await app(scope, exchange.receive, exchange.send)
    answer = to_answer(exchange.status, exchange.headers, bytes(exchange.reply))
    error = access.of(scope).error
    # Exactly, and for longer than clients would wait: so the lines behind a rate come back one after the other.
    return replace(answer, retry_after_s=error.retry_after_s) if isinstance(error, RateLimited) else answer


@dataclass(slots=True)
class _Exchange:
    body: bytes
    sent: bool = False
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    reply: bytearray = field(default_factory=bytearray)

    async def receive(self) -> Message:
        if not self.sent:
            self.sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]  # nobody leaves

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message["headers"]}
        else:
            self.reply += message.get("body", b"")


def to_answer(status: int, headers: Mapping[str, str], body: bytes) -> Answer:
    """What a response of a route means for the item. `headers` by their names in lower case."""
    after = headers.get("retry-after", "")
    return Answer(
        status,
        headers.get("x-request-id", ""),
        body,
        retryable=status in _RETRYABLE and headers.get("x-should-retry") != "false",
        began=status not in _NOT_BEGUN,
        is_limited=status == 429,
        retry_after_s=float(after) if _SECONDS.fullmatch(after) else 0.0,
    )
