"""What a file is, from its first bytes: which one parser it may reach, or why none. Pure."""

from __future__ import annotations

import re
from typing import Literal

from sightline.errors import ImageEmpty, ImageFormatUnsupported

MediaType = Literal[
    "image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff", "image/avif", "image/heic"
]
"""The formats that are taken."""

ACCEPTED = "JPEG, PNG, WebP, GIF (one frame), BMP, TIFF (one page), AVIF or HEIC"

HEAD_BYTES = 64
"""How much of a file `identify` wants to see."""

_MAGIC: tuple[tuple[re.Pattern[bytes], MediaType], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
    (re.compile(rb"GIF8[79]a"), "image/gif"),
    (re.compile(rb"BM"), "image/bmp"),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "image/tiff"),
)
_MAGIC_OF_OTHERS = (
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\0\0\x01\0"), "ICO"),
    (re.compile(rb"8BPS"), "PSD"),
    (re.compile(rb"%PDF-"), "PDF"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?<svg", re.IGNORECASE), "SVG"),
)

_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis"}
_SEQUENCE_BRANDS = {b"hevc", b"hevx", b"hevm", b"hevs", b"msf1"}


def identify(head: bytes) -> MediaType:
    """The media type that a file's first bytes announce. Raises `ImageEmpty` or `ImageFormatUnsupported`."""
    if not head:
        raise ImageEmpty("this picture file is empty (0 bytes). Send the file's content.")
    for magic, media_type in _MAGIC:
        if magic.match(head):
            return media_type
    if head[4:8] == b"ftyp":
        return _by_brand(head)
    for magic, name in _MAGIC_OF_OTHERS:
        if magic.match(head):
            raise ImageFormatUnsupported(f"this file is {name}, which is not taken here. Send {ACCEPTED}.")
    raise ImageFormatUnsupported(f"this is not a picture in a known format. Send {ACCEPTED}.")


def _by_brand(head: bytes) -> MediaType:
    """Of the ISO base media formats, by the brands of the file-type box (ISO/IEC 14496-12, 4.3).

    `mif1`, the first brand of some programs, says only that there is a picture; the brands after it say how it is
    coded.
    """
    size = int.from_bytes(head[:4], "big")
    first, *compatible = (head[at : at + 4] for at in (8, *range(16, min(size, len(head)) - 3, 4)))
    if first in _SEQUENCE_BRANDS:
        raise animated()
    brands = {first, *compatible}
    if brands & _AVIF_BRANDS:
        return "image/avif"
    if brands & _HEIC_BRANDS:
        return "image/heic"
    raise ImageFormatUnsupported(
        f"this is a media file of a kind ({first.decode('ascii', 'replace')!r}) that is not taken here. "
        f"Send {ACCEPTED}."
    )


def animated() -> ImageFormatUnsupported:
    return ImageFormatUnsupported("this picture is animated. Send one frame of it as a single picture.")
