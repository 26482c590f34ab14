"""From what a client wrote to the bytes of a picture file. The only file that may ever download for a client.

Today it never does: pictures come inside the request, as `data:` URIs or as bytes. Every other scheme, and every path,
is refused before anybody looks at it.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass

import pybase64

from sightline.config import ImageLimits
from sightline.errors import ImageEmpty, ImageEncodingInvalid, ImageFileTooLarge, ImageForbidden

_INLINE_BYTES = 64 * 1024
"""Up to this size, decoding base64 and hashing (about 0.1 ms) is cheaper than a hop to a thread."""

_MAX_HEADER = 1024
"""Characters before the comma of a `data:` URI: media type and parameters."""


@dataclass(frozen=True, slots=True)
class File:
    """A picture file, whole, not yet looked at."""

    content: bytes
    digest: str
    """`sha256:<hex>` of the content."""


async def fetch(source: str | bytes, limits: ImageLimits) -> File:
    """The file that `ImageRef.source` holds or names, of 1 to `limits.max_bytes` bytes.

    What is large is decoded and hashed in a thread: both release the GIL, so the event loop goes on. Errors do not say
    which picture they are about (the caller knows): `ImageForbidden` for any source but a `data:` URI,
    `ImageEncodingInvalid` for one that is malformed, `ImageFileTooLarge` before anything is decoded, `ImageEmpty`.
    """
    if len(source) <= _INLINE_BYTES:
        return _read(source, limits)
    return await asyncio.to_thread(_read, source, limits)


def _read(source: str | bytes, limits: ImageLimits) -> File:
    content = source if isinstance(source, bytes) else _from_data_uri(source, limits.max_bytes)
    if not content:
        raise ImageEmpty("this picture file is empty (0 bytes). Send the file's content.")
    if len(content) > limits.max_bytes:
        raise _too_large(limits.max_bytes)
    return File(content, f"sha256:{hashlib.sha256(content).hexdigest()}")


def _from_data_uri(uri: str, max_bytes: int) -> bytes:
    """The payload of `data:[<media type>][;<parameter>=<value>]...;base64,<payload>` (RFC 2397).

    The declared media type is ignored: the file's own magic bytes decide.
    """
    scheme = uri[:6].lower()
    if not scheme.startswith("data:"):
        if scheme.startswith(("http:", "https:")):
            raise ImageForbidden("remote pictures are off on this server; send the picture as a data: URI.")
        raise ImageForbidden(
            "only data: URIs are taken here, not other schemes, paths or bare base64; "
            "send the picture as data:image/png;base64,<the file in base64>."
        )
    comma = uri.find(",", 0, _MAX_HEADER)
    if comma < 0 or not uri[:comma].lower().replace(" ", "").endswith(";base64"):
        raise ImageEncodingInvalid(
            "this data: URI is not in base64; send it as data:image/png;base64,<the file in base64>."
        )
    # Before anything of that size is made: a payload of n characters holds at least 3n/4 - 2 bytes.
    if (len(uri) - comma - 1) * 3 // 4 - 2 > max_bytes:
        raise _too_large(max_bytes)
    try:
        return pybase64.b64decode(uri[comma + 1 :], validate=True)
    except ValueError:
        raise ImageEncodingInvalid(
            "the base64 of this data: URI is malformed. Use the standard alphabet (A-Z a-z 0-9 + /) with its = padding "
            "and without spaces or line breaks, and send it whole."
        ) from None


def _too_large(max_bytes: int) -> ImageFileTooLarge:
    return ImageFileTooLarge(
        f"this picture file is larger than {max_bytes:,} bytes, the most this server takes. "
        "Compress it further or make it smaller."
    )
