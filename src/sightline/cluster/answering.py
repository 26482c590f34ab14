"""Which replica makes each answer that an ingress reads, and which have been read to their end. Knows no Ray.

An answer's last word comes sooner than Ray's word that its call has ended. In between its slot is free, and the next
request is sent on at once: to a router that took it for taken, all replicas would look full, and the request would wait
at one of them while another has nothing to do.

A module of its own, because Ray sends the router's class to the ingress by value: what stood beside it there would be a
copy, and this is the same for all.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Any

_MOST = 65_536
"""More than can be under way in one ingress."""
_found: OrderedDict[str, tuple[Any, Any]] = OrderedDict()
"""Written on the thread of Ray's routers, read on that of the ingress."""
_calls: OrderedDict[str, Any] = OrderedDict()
"""Of answers, by Ray's name for the call: its replica's name. Until Ray says that it has ended."""
_ended: dict[str, tuple[Any, float]] = {}
"""Those of them that have been read to their end: the replica, and until when that is believed."""
_LINGERS_S = 1.0
"""At most: Ray takes milliseconds to say so, and what it said before we asked it never says again."""


def remember(answer: str, replica: Any, metadata: Any) -> None:
    """`answer`: its name. `replica`, `metadata`: that make it, and what Ray knows of the request."""
    _found[answer] = replica, metadata
    _calls[metadata.internal_request_id] = replica.replica_id
    for kept in (_found, _calls):
        if len(kept) > _MOST:
            kept.popitem(last=False)


def find(answer: str) -> tuple[Any, Any] | None:
    return _found.get(answer)


def forget(answer: str) -> None:
    """It has ended, or nobody reads it any more."""
    if (found := _found.pop(answer, None)) is not None:
        call = found[1].internal_request_id
        if (replica := _calls.get(call)) is not None:
            _ended[call] = replica, time.monotonic() + _LINGERS_S


def completed(call: str) -> None:
    """Ray knows that it has ended, and counts it no more."""
    _calls.pop(call, None)
    _ended.pop(call, None)


def lingering(replica: Any) -> int:
    """Answers of a replica that have ended, and that Ray still counts."""
    now = time.monotonic()
    for call, (_, until) in list(_ended.items()):
        if until < now:
            completed(call)
    return sum(each == replica for each, _ in list(_ended.values()))
