"""Which replica makes each answer that an ingress reads. Knows no Ray.

A module of its own, because Ray sends the router's class to the ingress by value: what stood beside it there would be a
copy, and this is the same for all.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

_MOST = 65_536
"""More than can be under way in one ingress."""
_found: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
"""Written on the thread of Ray's routers, read on that of the ingress."""


def remember(answer: str, replica: Any, metadata: Any) -> None:
    """`answer`: its name. `replica`, `metadata`: that make it, and what Ray knows of the request."""
    _found[answer] = replica, metadata
    if len(_found) > _MOST:
        _found.popitem(last=False)


def find(answer: str) -> tuple[Any, Any] | None:
    return _found.get(answer)


def forget(answer: str) -> None:
    """It has ended."""
    _found.pop(answer, None)
