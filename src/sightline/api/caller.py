"""On whose behalf a request is answered: it lives in the request's ASGI scope, where whoever lets it in puts it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Scope

_KEY = "sightline.caller"


@dataclass(frozen=True, slots=True)
class Caller:
    tenant: str = ""
    """Everybody is one as long as there are no keys."""
    priority: int | None = None
    """At which all of it runs; None: as the request asks."""
    key_id: str = ""
    """Of the key that the request came with, which no log or error tells more of; empty: it needed none."""
    is_inside: bool = False
    """The server itself asks, for what was let in before."""


def of(scope: Scope) -> Caller:
    caller: Caller = scope.get(_KEY, _ANYBODY)
    return caller


def put(scope: Scope, caller: Caller) -> None:
    scope[_KEY] = caller


_ANYBODY = Caller()
