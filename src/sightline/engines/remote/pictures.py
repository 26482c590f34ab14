"""Pixels to PNG data URIs: without loss, so that a server sees exactly what we served, and off the event loop.

That costs more than anything else a request does here, so the URIs are kept for the next that shows the same pictures.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import io
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pybase64
from PIL import Image as PILImage

from sightline.types import Image, Pixels

KEPT_BYTES = 64 * 1024 * 1024
_UP = 2
"""PNG's filter type: a row is the difference from the one above."""
_HELD = 1024
"""Pictures that a server is believed to hold."""
_MAX_MISSES = 8

Key = tuple[str, str, int, int]
"""Tenant, digest of the original file, served size: pixels follow from the last three, caches never cross the first."""


def key_of(image: Image, tenant: str) -> Key:
    return tenant, image.digest, image.served_width, image.served_height


def to_png(pixels: Pixels) -> bytes:
    """A PNG file of RGB pixels [height, width, 3], in less than half of Pillow's time and no larger for a photograph.

    What takes the time is to choose a filter for each row, and to look for repetitions that photographs do not have:
    here every row is the difference from the one above, and only runs are looked for. Source: PNG, third edition (W3C
    2025), sections 5, 9.2 and 11.2.
    """
    height, width, _ = pixels.shape
    lines = np.empty((height, 1 + 3 * width), np.uint8)
    lines[:, 0] = _UP
    rows, differences = pixels.reshape(height, 3 * width), lines[:, 1:]
    differences[0] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=differences[1:])
    deflate = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, zlib.Z_RLE)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits of red, green and blue, not interlaced
    data = deflate.compress(lines.data) + deflate.flush()
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))


def to_data_uri(pixels: Pixels) -> bytes:
    """`data:image/png;base64,...` of RGB pixels [height, width, 3]."""
    return b"data:image/png;base64," + pybase64.b64encode(to_png(pixels))


@lru_cache(maxsize=256)
def blank(width: int, height: int) -> str:
    """A data URI of hundreds of bytes that costs as many tokens as any picture of its size: for counting."""
    file = io.BytesIO()
    PILImage.new("1", (width, height)).save(file, "PNG")
    return f"data:image/png;base64,{pybase64.b64encode(file.getvalue()).decode()}"


@dataclass(slots=True)
class _Entry:
    encoding: asyncio.Task[bytes]
    users: int = 0


class Pictures:
    """Data URIs: each picture is encoded once for all requests under way that hold it, and not again as long as it is
    kept. Used from one event loop."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        """`max_bytes`: of those that no request holds; what was used longest ago goes first."""
        self._max_bytes = max_bytes
        self._held: dict[Key, _Entry] = {}
        self._kept: OrderedDict[Key, bytes] = OrderedDict()
        self._kept_bytes = 0

    @asynccontextmanager
    async def encoded(self, images: Sequence[Image], tenant: str) -> AsyncIterator[tuple[bytes, ...]]:
        """In the order of `images`."""
        keys = [key_of(image, tenant) for image in images]
        uris = {key: self._kept[key] for key in keys if key in self._kept}
        for key in uris:
            self._kept.move_to_end(key)
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in uris}
        for key, image in missing.items():
            if key not in self._held:
                self._held[key] = _Entry(asyncio.create_task(asyncio.to_thread(to_data_uri, image.pixels)))
            self._held[key].users += 1
        try:
            for key in missing:  # shielded: one user's leaving must not take a picture from another
                uris[key] = await asyncio.shield(self._held[key].encoding)
            yield tuple([uris[key] for key in keys])
        finally:
            for key in missing:
                entry = self._held[key]
                entry.users -= 1
                if entry.users == 0:
                    del self._held[key]
                    if key in uris:
                        self._keep(key, uris[key])

    def _keep(self, key: Key, uri: bytes) -> None:
        if len(uri) > self._max_bytes:
            return
        self._kept[key] = uri
        self._kept_bytes += len(uri)
        while self._kept_bytes > self._max_bytes:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])


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
