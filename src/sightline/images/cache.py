"""Decoded pictures that may be asked for again: by content, never by name, and never across tenants."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from sightline import metrics
from sightline.images.budget import VisionBudget
from sightline.images.codec import Picture
from sightline.types import Pixels

PROCESSING = 1
"""Changes with what the codec makes of a file, so that no cache, wherever it is one day kept, mixes two of them."""

Decoded = tuple[Picture, Pixels]


class Key(NamedTuple):
    """All that decides a picture's pixels, and whose it is."""

    digest: str
    """Of the file's own bytes, computed by us and told by no client."""
    tenant: str
    """Another tenant's picture is no hit: neither its content nor the time it takes may tell of it."""
    budget: VisionBudget
    background: tuple[int, int, int]
    processing: int = PROCESSING


class PictureCache:
    """The decoded pictures used last, as many as `max_bytes` of pixels hold. Used from one event loop."""

    def __init__(self, max_bytes: int) -> None:
        """0: nothing is kept."""
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[Key, Decoded] = OrderedDict()

    @property
    def bytes(self) -> int:
        """Of the pixels that are kept."""
        return self._bytes

    def get(self, key: Key) -> Decoded | None:
        if (decoded := self._entries.get(key)) is not None:
            self._entries.move_to_end(key)
        return decoded

    def put(self, key: Key, decoded: Decoded) -> None:
        """Keeps it, and lets go of what was used longest ago. A picture larger than the whole cache is not kept.

        The pixels must be read-only: every request that hits shares them.
        """
        pixels = decoded[1]
        assert not pixels.flags.writeable
        if key in self._entries or pixels.nbytes > self._max_bytes:
            return
        self._entries[key] = decoded
        self._add(pixels.nbytes)
        while self._bytes > self._max_bytes:
            _, (_, oldest) = self._entries.popitem(last=False)
            self._add(-oldest.nbytes)
            metrics.IMAGE_CACHE_EVICTIONS.inc()

    def clear(self) -> None:
        self._entries.clear()
        self._add(-self._bytes)

    def _add(self, num_bytes: int) -> None:
        self._bytes += num_bytes
        metrics.IMAGE_CACHE_BYTES.inc(num_bytes)
