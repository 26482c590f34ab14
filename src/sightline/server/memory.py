"""What a server's process gives back of its memory."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD = -3
"""From <malloc.h>."""
_LARGE_BYTES = 512 * 1024


def give_back_large_blocks() -> bool:
    """From now on, blocks the size of a picture go back to the system when they are freed; whether that could be had.

    By itself glibc maps only the first of them on its own. When that is freed it takes such sizes for usual and keeps
    them in its heap (`mallopt(3)`, "dynamic mmap threshold"), where one small block behind them keeps all of it: after
    an hour of photographs a process would hold several times what it uses. A block then costs as many page faults as
    it has pages, a fraction of a millisecond of a megabyte.
    """
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES))
    except AttributeError:  # another C library
        return False
