"""A frame on its way to the child, with the shared memory that goes beside it."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy.typing as npt

from sightline.engines.worker.pictures import share
from sightline.interprocess import LENGTH_BYTES

Shared: TypeAlias = tuple[npt.NDArray[Any], int]
"""An array and its offset in the shared memory, in bytes."""


class Parcel:
    """A frame, and what goes beside it in shared memory."""

    def __init__(self, data: bytes, stream: int, shared: Sequence[Shared]) -> None:
        self.stream = stream
        self._data = data
        self._shared = shared

    def send(self, sock: socket.socket) -> None:
        """Raises `NoMemory`, or `OSError` when the child is gone."""
        if not self._shared:
            sock.sendall(self._data)
            return
        try:
            fd = share(*zip(*self._shared, strict=True))
        except (OSError, MemoryError) as error:
            raise NoMemory from error
        # The descriptor rides on the length, which the child reads alone; the body follows.
        try:
            sent = socket.send_fds(sock, [self._data[:LENGTH_BYTES]], [fd])
        finally:
            os.close(fd)
        sock.sendall(memoryview(self._data)[sent:])


class NoMemory(Exception):
    """Neither memory nor a descriptor for what goes beside a frame."""
