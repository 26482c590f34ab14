"""From what a client wrote to the bytes of a picture file. The only way by which anything is downloaded for a client.

Pictures come inside the request, as `data:` URIs or as bytes, or, where the operator's `FetchPolicy` says so, from a
web server (`download.py`, under the rules of `addresses.py`). Every other scheme, and every path, is refused before
anybody looks at it.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

import pybase64

from sightline.config import FetchPolicy, ImageLimits
from sightline.errors import ImageEmpty, ImageEncodingInvalid, ImageForbidden
from sightline.images.download import Downloader, Resolver, too_large

_INLINE_BYTES = 192 * 1024
"""Up to this size, decoding base64 and hashing (0.1 ms) is cheaper than a hop to a thread."""

_PIECE = 4 * 1024 * 1024
"""Characters of base64 that are decoded at once, a multiple of 4: decoding holds the interpreter lock, 1 ms a MiB."""

_KEPT_SHARE: Final = 8
"""Of the memory for decoded pictures, files have this part beside it."""
_COMPARED: Final = _PIECE
"""Characters that are compared without leaving the event loop, at most: 0.1 ms a MiB."""

_MAX_HEADER = 1024
"""Characters before the comma of a `data:` URI: media type and parameters."""


@dataclass(frozen=True, slots=True)
class File:
    """A picture file, whole, not yet looked at."""

    content: bytes
    digest: str
    """`sha256:<hex>` of the content."""


class Texts:
    """The files that were last sent as `data:` URIs, by the very text: what a conversation sends with each of its turns
    is read once. Used from one event loop.

    A text is found by some of its characters and then compared with all of them, so that nothing else is ever taken
    for it; and never across tenants, as with every cache of pictures (`cache.py`).
    """

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: of texts and files together."""
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[tuple[object, ...], tuple[str, File]] = OrderedDict()

    def get(self, text: str, tenant: str) -> File | None:
        key = _some_of(text, tenant)
        entry = self._entries.get(key)
        if entry is None or entry[0] != text:
            return None
        self._entries.move_to_end(key)
        return entry[1]

    def put(self, text: str, tenant: str, file: File) -> None:
        """Keeps it, in place of one that looks like it, and lets go of what was used longest ago."""
        if len(text) > _COMPARED or _size(text, file) > self._max_bytes:
            return
        key = _some_of(text, tenant)
        if (previous := self._entries.pop(key, None)) is not None:
            self._bytes -= _size(*previous)
        self._entries[key] = text, file
        self._bytes += _size(text, file)
        while self._bytes > self._max_bytes:
            self._bytes -= _size(*self._entries.popitem(last=False)[1])


def _some_of(text: str, tenant: str) -> tuple[object, ...]:
    """From its middle, where files of one size and kind differ."""
    size = len(text)
    return tenant, size, text[size // 4 : size // 4 + 16], text[size // 2 : size // 2 + 16]


def _size(text: str, file: File) -> int:
    return len(text) + len(file.content)


class Fetcher:
    """Life: made -> any number of `fetch`, concurrently -> `close`. Used from one event loop."""

    def __init__(
        self,
        limits: ImageLimits,
        policy: FetchPolicy | None = None,
        *,
        resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """Without a policy nothing is downloaded. `resolver` takes the place of the system's, `tls` that of the usual
        certificate authorities."""
        self._limits = limits
        self._texts = Texts(limits.cache_bytes // _KEPT_SHARE)
        self._downloader = Downloader(policy or FetchPolicy(), limits.max_bytes, resolver, tls)

    async def close(self) -> None:
        """Downloads under way go on; what comes after raises `EngineUnavailable`. Idempotent."""
        self._downloader.close()

    async def fetch(self, source: str | bytes, *, tenant: str = "") -> File:
        """The file that `ImageRef.source` holds or names, of 1 to `limits.max_bytes` bytes.

        What is large is decoded and hashed in a thread, in steps between which the event loop goes on. Tenants share
        the few downloads at once fairly. Errors do not say which picture they are about (the caller knows):
        `ImageForbidden` for a source that is not taken here, `ImageFetchFailed` for a download that came to nothing,
        `ImageEncodingInvalid` for a malformed `data:` URI, `ImageFileTooLarge` before it is decoded, `ImageEmpty`.
        """
        if (file := self.known(source, tenant)) is not None:
            return file
        text = source if isinstance(source, str) else None
        if isinstance(source, str) and source[:6].lower().startswith(("http:", "https:")):
            source, text = await self._downloader.download(source, tenant), None
        if len(source) <= _INLINE_BYTES:
            file = _read(source, self._limits)
        else:
            file = await asyncio.to_thread(_read, source, self._limits)
        if text is not None:
            self._texts.put(text, tenant, file)
        return file

    def known(self, source: str | bytes, tenant: str) -> File | None:
        """The file, if it came lately in the same words, in a `data:` URI."""
        return self._texts.get(source, tenant) if type(source) is str else None


def _read(source: str | bytes, limits: ImageLimits) -> File:
    content = source if isinstance(source, bytes) else _from_data_uri(source, limits.max_bytes)
    if not content:
        raise ImageEmpty("this picture file is empty (0 bytes). Send the file's content.")
    if len(content) > limits.max_bytes:
        raise too_large(limits.max_bytes)
    return File(content, f"sha256:{hashlib.sha256(content).hexdigest()}")


def _from_data_uri(uri: str, max_bytes: int) -> bytes:
    """The payload of `data:[<media type>][;<parameter>=<value>]...;base64,<payload>` (RFC 2397).

    The declared media type is ignored: the file's own magic bytes decide.
    """
    if not uri[:5].lower().startswith("data:"):
        raise ImageForbidden(
            "only data: URIs are taken here, and http: and https: URLs where the operator allows them, not other "
            "schemes, paths or bare base64; send the picture as data:image/png;base64,<the file in base64>."
        )
    comma = uri.find(",", 0, _MAX_HEADER)
    if comma < 0 or not uri[:comma].lower().replace(" ", "").endswith(";base64"):
        raise ImageEncodingInvalid(
            "this data: URI is not in base64; send it as data:image/png;base64,<the file in base64>."
        )
    # Before anything of that size is made: a payload of n characters holds at least 3n/4 - 2 bytes.
    if (len(uri) - comma - 1) * 3 // 4 - 2 > max_bytes:
        raise too_large(max_bytes)
    pieces = [_from_base64(uri[at : at + _PIECE]) for at in range(comma + 1, len(uri), _PIECE)]
    if any(len(piece) != _PIECE // 4 * 3 for piece in pieces[:-1]):
        raise _malformed()  # padding, and more behind it
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _from_base64(text: str) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        raise _malformed() from None


def _malformed() -> ImageEncodingInvalid:
    return ImageEncodingInvalid(
        "the base64 of this data: URI is malformed. Use the standard alphabet (A-Z a-z 0-9 + /) with its = padding and "
        "without spaces or line breaks, and send it whole."
    )
