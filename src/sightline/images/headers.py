"""What must be known of a file before its parser opens it, or that the parser does not tell. Reads, decodes nothing.

Each function takes a file at any position and leaves it where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import SEEK_CUR
from typing import IO

from sightline.errors import ImageFormatUnsupported, ImageUnreadable

_MAX_PARTS = 65_536
"""Segments of a JPEG or chunks of a PNG. Programs write some tens, and one of pixels for each 8 KB or more of a PNG;
parsers keep hundreds of bytes for each, and a file may hold millions."""


@contextmanager
def _from(file: IO[bytes], start: int) -> Iterator[None]:
    position = file.tell()
    file.seek(start)
    try:
        yield
    finally:
        file.seek(position)


def _too_many() -> ImageUnreadable:
    return ImageUnreadable(f"this picture file is in more than {_MAX_PARTS:,} parts. Save it anew.")


# --- JPEG ------------------------------------------------------------------------------------------------------------

_BASELINE, _EXTENDED, _PROGRESSIVE = 0xC0, 0xC1, 0xC2
_NOT_A_FRAME = {0xC4, 0xC8, 0xCC}
"""Of 0xC0 to 0xCF, those that start no frame: Huffman tables, reserved, arithmetic conditioning."""
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}
_START_OF_SCAN, _END = 0xDA, 0xD9


def verify_jpeg_kind(file: IO[bytes]) -> None:
    """Raises `ImageFormatUnsupported`, by name, for the kinds of JPEG that next to no program writes or shows.

    Kinds and markers: ITU-T T.81, tables B.1 and B.2.
    """
    marker, frame = _jpeg_frame(file)
    if marker is None or len(frame) < 6:
        return  # damaged: the parser will say so
    precision, channels = frame[0], frame[5]
    if marker not in (_BASELINE, _EXTENDED, _PROGRESSIVE):
        raise _unusual_jpeg(_kind(marker))
    if precision != 8:
        raise _unusual_jpeg(f"{precision}-bit")
    if channels not in (1, 3, 4):
        raise _unusual_jpeg(f"{channels}-channel")


def _kind(marker: int) -> str:
    if marker & 3 == 3:
        return "lossless"
    return "arithmetic-coded" if marker > 0xC8 else "hierarchical"


def _unusual_jpeg(kind: str) -> ImageFormatUnsupported:
    return ImageFormatUnsupported(
        f"this is a {kind} JPEG, which is not taken here. Save it as a baseline or progressive JPEG with 8 bits a "
        "channel. Send that."
    )


def _jpeg_frame(file: IO[bytes]) -> tuple[int | None, bytes]:
    """Marker and content of the segment that starts the frame; (None, b"") where there is none before the pixels."""
    with _from(file, 2):
        for _ in range(_MAX_PARTS):
            marker = _next_marker(file)
            if marker in (None, _START_OF_SCAN, _END):
                return None, b""
            if marker in _WITHOUT_LENGTH:
                continue
            length = int.from_bytes(file.read(2), "big") - 2
            if marker & 0xF0 == 0xC0 and marker not in _NOT_A_FRAME:
                return marker, file.read(max(length, 0))
            file.seek(max(length, 0), SEEK_CUR)
    raise _too_many()


def _next_marker(file: IO[bytes]) -> int | None:
    """The byte after the next 0xFF that is not filling; junk between segments is passed over as the parser does."""
    for _ in range(_MAX_PARTS):
        byte = file.read(1)
        if not byte:
            return None
        if byte != b"\xff":
            continue
        while byte == b"\xff":
            byte = file.read(1)
        if byte and byte != b"\0":
            return byte[0]
    raise _too_many()


# --- PNG -------------------------------------------------------------------------------------------------------------

_PNG_SIGNATURE_BYTES = 8


def png_bit_depth(file: IO[bytes]) -> int:
    """Bits a channel, from IHDR, the first chunk."""
    with _from(file, _PNG_SIGNATURE_BYTES + 16):
        return int.from_bytes(file.read(1), "big")


def png_exif(file: IO[bytes]) -> bytes:
    """The eXIf chunk, which may stand behind the pixels (PNG third edition, 5.6); `b""` where there is none.

    The parser would come upon it there only after the pixels, whose size depends on it. Raises `ImageUnreadable` for
    more chunks than a picture has.
    """
    with _from(file, _PNG_SIGNATURE_BYTES):
        found = b""
        for _ in range(_MAX_PARTS):
            head = file.read(8)
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind in (b"IEND", b""):
                return found
            if kind == b"eXIf" and not found:
                found = file.read(length)
                length = 0
            file.seek(length + 4, SEEK_CUR)  # and its checksum
    raise _too_many()


# --- WebP ------------------------------------------------------------------------------------------------------------


def webp_canvas(file: IO[bytes]) -> tuple[int, int] | None:
    """(width, height) in pixels that the first chunk claims; None where it is malformed.

    Layouts: RFC 9649, 2.5 (VP8), 2.6 (VP8L) and 2.7 (VP8X).
    """
    with _from(file, 0):
        head = file.read(30)

    def field(offset: int, length: int) -> int:
        return int.from_bytes(head[offset : offset + length], "little")

    if len(head) == 30:
        match head[12:16]:
            case b"VP8 ":
                return field(26, 2) & 0x3FFF, field(28, 2) & 0x3FFF
            case b"VP8L":
                bits = field(21, 4)
                return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
            case b"VP8X":
                return field(24, 3) + 1, field(27, 3) + 1
    return None
