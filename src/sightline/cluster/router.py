"""`affinity.py`, as Ray asks for it: chooses a replica for each call of a handle. Runs in the ingress.

It is also where it is known which replica makes an answer, and so the way to tell it how far that has been read: around
Ray's queues, because a replica that ends after its last answer is in none of them any more.
"""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

from ray.serve.request_router import (  # type: ignore[import-not-found, unused-ignore]
    PendingRequest,
    RequestRouter,
)

from sightline.cluster import answering
from sightline.cluster.affinity import Affinity


def tell_read(answer: str, count: int) -> None:
    """To the replica that makes the answer: so many of its parcels have been read. It is not waited for."""
    if (found := answering.find(answer)) is not None:
        replica, metadata = found
        told = replace(metadata, call_method="read", is_streaming=False, internal_request_id=uuid.uuid4().hex)
        replica.try_send_request(PendingRequest([count], {"of": answer}, told), with_rejection=False)


class PictureRouter(RequestRouter):  # type: ignore[misc, unused-ignore]
    """Of `request_router_config.request_router_class`."""

    _affinity: Affinity | None = None
    _slots = 1

    def initialize_state(self, slots: int) -> None:
        """Called by Ray once, with `request_router_kwargs`. `slots`: requests that a replica runs at once."""
        self._slots = slots

    async def choose_replicas(self, candidate_replicas: list[Any], pending_request: Any = None) -> list[list[Any]]:
        """Every replica, the one to ask first; the next is asked where that is full or gone."""
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        if self._affinity is None or self._affinity.replicas != sorted(replicas):
            self._affinity = Affinity(replicas, slots=self._slots)
        key = None
        if pending_request is not None:
            key = pending_request.kwargs.get("affinity")
            pending_request.routing_context.should_backoff = True
        known = self.replica_queue_len_cache
        loads = {
            name: max(0, (known.get(replica.replica_id) or 0) - answering.lingering(replica.replica_id))
            for name, replica in replicas.items()
        }
        return [[replicas[name]] for name in self._affinity.order(key, loads)]

    def on_request_routed(self, pending_request: Any, replica_id: Any, result: Any) -> None:
        """Called by Ray when a replica has taken a request."""
        answer, replica = pending_request.kwargs.get("answer"), self.curr_replicas.get(replica_id)
        if answer is not None and replica is not None:
            answering.remember(answer, replica, pending_request.metadata)

    def on_request_completed(self, replica_id: Any, internal_request_id: str) -> None:
        """Called by Ray when a call has ended."""
        answering.completed(internal_request_id)
