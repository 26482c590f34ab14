"""What a server's process gives back of its memory, and what it keeps at hand."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
"""From <malloc.h>."""
_LARGE_BYTES = 512 * 1024
_SPARE_BYTES = 8 * 1024 * 1024


def give_back_large_blocks() -> bool:
    """From now on, blocks the size of a picture go back to the system when they are freed; whether that could be had.

    By itself glibc maps only the first of them on its own. When that is freed it takes such sizes for usual and keeps
    them in its heap (`mallopt(3)`, "dynamic mmap threshold"), where one small block behind them keeps all of it: after
    an hour of photographs a process would hold several times what it uses. A block then costs as many page faults as
    it has pages, a fraction of a millisecond of a megabyte.

    With a threshold of ours it would also give back all but 128 KiB of what is free at the end of its heap, to ask for
    it again with the next picture, page by page. Some megabytes stay.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # another C library
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _SPARE_BYTES))
