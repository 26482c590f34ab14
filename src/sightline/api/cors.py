"""Which web pages may use this server from a browser: CORS (WHATWG Fetch, "CORS protocol"). Off until the operator
names origins.

A browser asks before it sends JSON or a key (the *preflight*, an OPTIONS request without a key), and shows an answer to
the page only if its headers allow that. Credentials (cookies) are never allowed: there are none here, and keys travel
in headers that the page sets itself.

What a browser sends without asking is a form. So one that comes from a page of an origin that is not allowed is refused
here, or any page could have a server without keys work for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from sightline.config import CorsPolicy

Header = tuple[bytes, bytes]

EXPOSED = (
    "x-request-id",
    "x-sightline-engine",
    "x-sightline-path",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "request-id",
)
"""Headers of answers that a page may read beside those that every page may."""
METHODS = "GET, POST, DELETE"
MAX_AGE_S = 600
"""For which a browser may remember what a preflight allowed."""
_SIMPLE = frozenset({"GET", "HEAD", "OPTIONS"})
_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}(?: *, *[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}){0,63}")
"""A list of header names (RFC 9110, section 5.6)."""


class Cors:
    """The policy, asked about requests by their ASGI scopes."""

    def __init__(self, policy: CorsPolicy) -> None:
        self._any = "*" in policy.origins
        self._origins = frozenset(policy.origins)
        self._exposed = (b"access-control-expose-headers", ", ".join(EXPOSED).encode())

    def to_headers(self, scope: Scope) -> list[Header]:
        """Of every answer, whatever its status. Where the answer is another for each origin, caches are told."""
        if not self._origins:
            return []
        origin = _header(scope, b"origin")
        vary = [] if self._any else [(b"vary", b"Origin")]
        if origin is None or not self._allows(origin):
            return vary
        allowed = b"*" if self._any else origin.encode("latin-1")
        return [(b"access-control-allow-origin", allowed), self._exposed, *vary]

    def preflight(self, scope: Scope) -> Response | None:
        """The answer to a browser that asks whether a page may send a request; None for any other request.

        Any header may be sent: SDKs send many, and a page that may use the server gains nothing by them. Raises
        `HTTPException` 403 for a page that may not.
        """
        if not self._origins or scope["method"] != "OPTIONS":
            return None
        origin, method = _header(scope, b"origin"), _header(scope, b"access-control-request-method")
        if origin is None or method is None:
            return None
        if not self._allows(origin):
            raise HTTPException(
                403, "Pages of this origin may not use this server. The operator names those that may: --cors-origin."
            )
        headers = {"access-control-allow-methods": METHODS, "access-control-max-age": str(MAX_AGE_S)}
        wanted = _header(scope, b"access-control-request-headers") or ""
        if _NAMES.fullmatch(wanted):
            headers["access-control-allow-headers"] = wanted
        if _header(scope, b"access-control-request-private-network") == "true":  # of a public page to a private address
            headers["access-control-allow-private-network"] = "true"
        return Response(status_code=204, headers=headers)

    def refuse_foreign_form(self, scope: Scope) -> None:
        """Raises `HTTPException` 403 for what a browser sends for a page without asking, when that may not use this
        server. Programs send no `Origin`, and pages of this server send its own."""
        origin = _header(scope, b"origin")
        if origin is None or scope["method"] in _SIMPLE or self._allows(origin):
            return
        is_json = (_header(scope, b"content-type") or "").partition(";")[0].strip().lower() == "application/json"
        if not is_json and origin.partition("://")[2] != (_header(scope, b"host") or "").lower():
            raise HTTPException(
                403,
                "Forms of pages of this origin are not taken here. The operator names those that are: --cors-origin.",
            )

    def _allows(self, origin: str) -> bool:
        return self._any or origin in self._origins


def _header(scope: Scope, name: bytes) -> str | None:
    values: Sequence[bytes] = [value for key, value in scope["headers"] if key == name]
    return values[0].decode("latin-1") if len(values) == 1 else None
