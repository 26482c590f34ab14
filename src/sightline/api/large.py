"""Memory for what is large, so that others need not wait for it: a body, and a string of tens of megabytes."""

from __future__ import annotations

import ctypes
import mmap
import sys
from contextlib import suppress
from typing import Final, TypeAlias

import numpy as np

Memory: TypeAlias = bytearray | mmap.mmap

_HUGE_PAGE: Final = 2 * 1024 * 1024
_MAPPED_BYTES: Final = _HUGE_PAGE // 2
_UNLOCKED_BYTES: Final = 1024 * 1024
"""Characters from which on a string is filled while other threads run; fewer take 0.5 ms."""

_new_text = ctypes.pythonapi.PyUnicode_New
_new_text.restype, _new_text.argtypes = ctypes.py_object, (ctypes.c_ssize_t, ctypes.c_uint32)
_characters_of = ctypes.pythonapi.PyUnicode_AsUTF8AndSize
_characters_of.restype, _characters_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_void_p)


def room_for(num_bytes: int) -> Memory:
    """Memory for a body, of its size or a little more.

    A large one lies in huge pages, where the system has them: what it takes to be given a megabyte page by page is
    several times what it takes to copy it. And such memory is taken as it is written to, so that nobody has it by
    telling a length alone.
    """
    if num_bytes < _MAPPED_BYTES:
        return bytearray(num_bytes)
    memory = mmap.mmap(-1, -(-num_bytes // _HUGE_PAGE) * _HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def to_text(characters: memoryview) -> str:
    """What `str(characters, "ascii")` is, of what is known to be ASCII.

    That would hold the interpreter lock until the last page of the string has been taken from the system and filled,
    which is a millisecond a megabyte. CPython lets a string be filled that nobody has seen yet (`PyUnicode_New`), and
    `memmove` needs no lock.
    """
    size = len(characters)
    if size < _UNLOCKED_BYTES:
        return str(characters, "ascii")
    text: str = _new_text(size, 0x7F)
    ctypes.memmove(_characters_of(text, None), np.frombuffer(characters, np.uint8).ctypes.data, size)
    return text
