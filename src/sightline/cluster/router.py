"""`affinity.py`, as Ray asks for it: chooses a replica for each call of a handle. Runs in the ingress."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import RequestRouter  # type: ignore[import-not-found, unused-ignore]

from sightline.cluster.affinity import Affinity


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
        loads = {name: known.get(replica.replica_id) or 0 for name, replica in replicas.items()}
        return [[replicas[name]] for name in self._affinity.order(key, loads)]
