"""Who is let in over HTTP, and what every answer tells of a key's rates.

    Authorization: Bearer KEY, or x-api-key: KEY     -> the caller, and a permit
    x-ratelimit-* (on Anthropic's paths anthropic-ratelimit-*)  <- how the key stands

It decides on the ASGI scope's path, the one that routes are chosen by, and knows no route: what is not named here is
for those with a key, also where there is nothing.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime
from typing import Final

from starlette.types import Scope

from sightline.access.gate import Gate
from sightline.access.keys import Key
from sightline.access.limits import Level, Standing
from sightline.access.permit import Permit
from sightline.api import caller
from sightline.api.caller import Caller
from sightline.errors import Forbidden, StorageUnavailable, Unauthenticated
from sightline.routing import BACKGROUND

Header = tuple[bytes, bytes]

KEYLESS: Final = frozenset({"/", "/api/version", "/health", "/ready", "/v2/health/live", "/v2/health/ready"})
"""Paths that need no key: whether the server is there, and ready. Clients of Ollama ask for the first two before they
know of keys."""
ON_BEHALF: Final = b"x-sightline-key-id"
"""The header by which a worker, whose own key is an admin's, asks for a line of a batch: by the rights and limits of
the key of this id, and as its tenant."""
METRICS: Final = "/metrics"
_ADMIN: Final = ("/admin", "/admin/", METRICS)
_PAGE: Final = "/ui/"
"""What the page asks for its reader it asks at `/v1`, as any client: that counts, and once."""
_READING: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})
"""Methods that ask for no work."""


class Entrance:
    """Of one listener."""

    def __init__(self, gate: Gate, *, keyless: frozenset[str] = KEYLESS) -> None:
        self._gate = gate
        self._keyless = keyless

    async def admit(self, scope: Scope) -> Permit | None:
        """Notes on whose behalf the request is answered, and returns by which permit, which must be left; None: it
        needs none.

        Raises `Unauthenticated`; `Forbidden` where only admin keys may go. A permit that is `refused` is returned, so
        that the answer can say how the key stands.
        """
        path = scope["path"]
        if path in self._keyless or (key := self._key(scope)) is None:
            return None
        if not key.admin and (path in _ADMIN or path.startswith("/admin/")):
            raise Forbidden("This API key may not control the server. An admin key may: sightline keys create --admin.")
        asks = scope["method"] not in _READING and not path.startswith(_PAGE)
        permit = await self._gate.admit(key, asks=asks, patient=caller.of(scope).priority == BACKGROUND)
        scope[_PERMIT] = permit
        return permit

    def _key(self, scope: Scope) -> Key | None:
        """By which a request is asked, which is noted; None: it needs none. Raises as `admit`."""
        own = caller.of(scope)
        if own.is_inside:
            return self._key_of_batch(own.key_id)
        if self._gate.is_open:
            return None
        key = self._gate.identify(_sent(scope))
        other = _header(scope, ON_BEHALF)
        if other is None:
            caller.put(scope, Caller(key.tenant, key_id=key.id))
            return key
        if not key.admin:
            raise Forbidden(f"Only admin keys may ask by the rights of others, as {ON_BEHALF.decode()} says.")
        try:
            key = self._gate.get(other.decode("latin-1"))
        except Unauthenticated as error:  # not of who asks
            raise Forbidden(error.message) from None
        caller.put(scope, Caller(key.tenant, BACKGROUND, key_id=key.id))
        return key

    def _key_of_batch(self, key_id: str) -> Key | None:
        """Raises `StorageUnavailable` where this process knows no keys, so that the batch waits for one that does."""
        if not key_id:
            return None  # it is from before there were keys
        if self._gate.is_open:
            raise StorageUnavailable(
                "This batch came with an API key, and this process knows none. Give it the server's: `access` in its "
                "configuration, or --keys FILE."
            )
        return self._gate.get(key_id)


_PERMIT: Final = "sightline.permit"


def to_rate_headers(scope: Scope) -> list[Header]:
    """How the request's key stands, as it is when the answer begins."""
    permit: Permit | None = scope.get(_PERMIT)
    if permit is None or permit.standing == _UNLIMITED:
        return []
    path = scope["path"]
    if path == "/v1/messages" or path.startswith("/v1/messages/") or _speaks_anthropic(scope):
        return _to_anthropic(permit.standing, time.time())
    return _to_openai(permit.standing)


_UNLIMITED: Final = Standing()


def _to_openai(standing: Standing) -> list[Header]:
    return [
        (f"x-ratelimit-{what}-{kind}".encode(), value.encode())
        for kind, level in _levels(standing)
        for what, value in (
            ("limit", str(level.limit)),
            ("remaining", str(level.remaining)),
            ("reset", to_duration(level.reset_s)),
        )
    ]


def _to_anthropic(standing: Standing, now: float) -> list[Header]:
    return [
        (f"anthropic-ratelimit-{kind}-{what}".encode(), value.encode())
        for kind, level in _levels(standing)
        for what, value in (
            ("limit", str(level.limit)),
            ("remaining", str(level.remaining)),
            ("reset", f"{datetime.fromtimestamp(now + math.ceil(level.reset_s), UTC):%Y-%m-%dT%H:%M:%SZ}"),
        )
    ]


def _levels(standing: Standing) -> list[tuple[str, Level]]:
    both = (("requests", standing.requests), ("tokens", standing.tokens))
    return [(kind, level) for kind, level in both if level is not None]


def to_duration(seconds: float) -> str:
    """As OpenAI writes it: `6m0s`, `1s`, `120ms`; never less than it is."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms" if seconds > 0 else "0s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def _sent(scope: Scope) -> bytes | None:
    """The key that a client sends; b"" where it sends several, which is none."""
    bearers, others = [], []
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                bearers.append(token.strip())
        elif name == b"x-api-key":
            others.append(value.strip())
    found = bearers or others
    if not found:
        return None
    return found[0] if len(found) == 1 else b""


def _header(scope: Scope, wanted: bytes) -> bytes | None:
    return next((value for name, value in scope["headers"] if name == wanted), None)


def _speaks_anthropic(scope: Scope) -> bool:
    """Its clients ask for the list of models on a path that is OpenAI's too."""
    return scope["path"].startswith("/v1/models") and _header(scope, b"anthropic-version") is not None
