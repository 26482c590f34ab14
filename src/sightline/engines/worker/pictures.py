"""Pixels and samples between processes: an anonymous file of what a request holds, whose descriptor is passed along.

It has no name, so nothing is left behind whoever dies: the kernel frees it with the last descriptor and mapping.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sightline.engines.worker.frames import Picture
from sightline.types import Pixels, Samples

_SAMPLE = np.dtype(np.float32)


def share(pixels: Sequence[npt.NDArray[Any]], offsets: Sequence[int]) -> int:
    """Writes pictures, or a recording, to shared memory; returns its descriptor, which the caller closes.

    Raises `OSError` when there is no memory or no descriptor left. That is why it writes and does not map: a mapping
    that finds no memory kills the process.
    """
    fd = _anonymous_file()
    try:
        for array, offset in zip(pixels, offsets, strict=True):
            data = np.ascontiguousarray(array).data.cast("B")
            while data:
                written = os.pwrite(fd, data, offset)
                data, offset = data[written:], offset + written
    except BaseException:
        os.close(fd)
        raise
    return fd


def receive(fd: int, size: int) -> Callable[[Picture], Pixels]:
    """Maps shared memory of `size` bytes and closes the descriptor; gives a picture's pixels, read-only.

    The arrays keep the mapping: it goes with the last of them.
    """
    try:
        mapping = mmap.mmap(fd, size, prot=mmap.PROT_READ)
    finally:
        os.close(fd)

    def pixels(picture: Picture) -> Pixels:
        shape = (picture.served_height, picture.served_width, 3)
        return np.frombuffer(mapping, np.uint8, shape[0] * shape[1] * 3, picture.offset).reshape(shape)

    return pixels


def receive_samples(fd: int, count: int) -> Samples:
    """Maps shared memory that holds so many samples and closes the descriptor; read-only."""
    try:
        mapping = mmap.mmap(fd, max(1, count) * _SAMPLE.itemsize, prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    return np.frombuffer(mapping, _SAMPLE, count)


def size_only(picture: Picture) -> Pixels:
    """Stands in for pixels where only the size matters (counting tokens). Takes no memory: all pixels are one."""
    return np.broadcast_to(np.uint8(0), (picture.served_height, picture.served_width, 3))


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("sightline-pictures")
    with tempfile.TemporaryFile() as file:  # unlinked as it is made
        return os.dup(file.fileno())
