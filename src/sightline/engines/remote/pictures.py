"""Pixels to PNG data URIs: without loss, so that a server sees exactly what we served, and off the event loop."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pybase64
from PIL import Image as PILImage

from sightline.types import Image, Pixels

_COMPRESSION = 1
"""zlib's level: pictures travel a local network, and level 6 takes five times as long for a tenth less."""
_HELD = 1024
"""Pictures that a server is believed to hold."""
_MAX_MISSES = 8

Key = tuple[str, str, int, int]
"""Tenant, digest of the original file, served size: pixels follow from the last three, caches never cross the first."""


def key_of(image: Image, tenant: str) -> Key:
    return tenant, image.digest, image.served_width, image.served_height


def to_data_uri(pixels: Pixels) -> str:
    """`data:image/png;base64,...` of RGB pixels [height, width, 3]."""
    file = io.BytesIO()
    PILImage.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=_COMPRESSION)
    return f"data:image/png;base64,{pybase64.b64encode(file.getvalue()).decode()}"


@lru_cache(maxsize=256)
def blank(width: int, height: int) -> str:
    """A data URI of hundreds of bytes that costs as many tokens as any picture of its size: for counting."""
    file = io.BytesIO()
    PILImage.new("1", (width, height)).save(file, "PNG")
    return f"data:image/png;base64,{pybase64.b64encode(file.getvalue()).decode()}"


@dataclass(slots=True)
class _Entry:
    encoding: asyncio.Task[str]
    users: int = 0


@dataclass(slots=True)
class Pictures:
    """The data URIs of requests under way: each picture is encoded once, however many of them hold it."""

    _entries: dict[Key, _Entry] = field(default_factory=dict)

    @asynccontextmanager
    async def encoded(self, images: Sequence[Image], tenant: str) -> AsyncIterator[tuple[str, ...]]:
        """In the order of `images`. They are kept until the last user leaves."""
        keys = [key_of(image, tenant) for image in images]
        for key, image in zip(keys, images, strict=True):
            if key not in self._entries:
                work = asyncio.to_thread(to_data_uri, image.pixels)
                self._entries[key] = _Entry(asyncio.create_task(work))
            self._entries[key].users += 1
        try:
            # Shielded: one user's leaving must not take a picture from another.
            yield tuple([await asyncio.shield(self._entries[key].encoding) for key in keys])
        finally:
            for key in keys:
                entry = self._entries[key]
                entry.users -= 1
                if entry.users == 0:
                    del self._entries[key]


class Held:
    """Which pictures a server holds, as far as we know, and under which names.

    A name is a keyed hash of whose picture it is, which, and at which size: no tenant can name another's.
    """

    def __init__(self, salt: bytes | None = None) -> None:
        self._salt = salt or os.urandom(32)
        self._held: OrderedDict[str, None] = OrderedDict()
        self._misses = 0
        """In a row. A server whose cache is off misses always: it is not asked by name any more."""

    def name(self, image: Image, tenant: str) -> str:
        message = "\0".join(map(str, key_of(image, tenant)))
        return hmac.new(self._salt, message.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()

    def __contains__(self, name: str) -> bool:
        return name in self._held and self._misses < _MAX_MISSES

    def add(self, names: Sequence[str]) -> None:
        """They have been answered about."""
        for name in names:
            self._held[name] = None
            self._held.move_to_end(name)
        while len(self._held) > _HELD:
            self._held.popitem(last=False)

    def hit(self) -> None:
        """A request that named some of them was answered."""
        self._misses = 0

    def missed(self, names: Sequence[str]) -> None:
        """A request that named some of them failed."""
        self._misses += 1
        for name in names:
            self._held.pop(name, None)

    def clear(self) -> None:
        """The server is a new one, which holds nothing."""
        self._held.clear()
        self._misses = 0
