"""What a recording's container is, from its first bytes; never from its name or what a client declared.

FFmpeg is then told which reader to use. Left to guess, it also takes playlists, which name other files to open.
"""

from __future__ import annotations

from typing import Final

FORMATS: Final = "flac, mp3, mp4, mpeg, mpga, m4a, ogg, wav or webm"
"""As clients are told them."""
HEAD_BYTES: Final = 64 * 1024
"""Enough to tell; an ID3 tag with a cover in it may be longer, and names an mp3 by itself."""

_EBML = b"\x1a\x45\xdf\xa3"
_PROGRAM_STREAM = b"\x00\x00\x01\xba"


def demuxer(head: bytes) -> str | None:
    """FFmpeg's name of the reader for a file that begins like this; None for what is not taken."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[4:8] == b"ftyp":
        return "mov"
    for magic, name in ((b"fLaC", "flac"), (b"OggS", "ogg"), (_EBML, "matroska"), (_PROGRAM_STREAM, "mpeg")):
        if head.startswith(magic):
            return name
    if head.startswith(b"ID3") or _is_mpeg_audio(head):
        return "mp3"
    return None


def _is_mpeg_audio(head: bytes) -> bool:
    """A frame header of ISO 11172-3: eleven bits set, then version, layer, bit rate and sample rate that exist."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return False
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    return version != 1 and layer != 0 and head[2] >> 4 not in (0, 15) and head[2] >> 2 & 3 != 3
