"""Inside a decoder process: one hostile file at a time, under limits that the kernel enforces.

    python -m sightline.images.decoder_process SOCKET_FD DESK_FD LIMITS_JSON

Started by the pool in `decoder.py`; what both sides must agree on is defined here. Control goes over a private socket
as frames of msgpack behind four bytes of length. File bytes and pixels lie on the *desk*, a file in memory that both
sides hold: the parent lays the picture file there and sends a `VisionBudget`; the answer is a `Picture`, with its
pixels now on the desk, or `Refused`. Sent `Inspect` instead, the answer is what the header says, `Inspected`, or
`Refused`. Sent `Recompress`, the answer is `Recompressed`, with a JPEG on the desk. A first frame, `Ready`, comes
before any picture.

Imports little (no numpy, no asyncio), so that a new one is there in a tenth of a second.
"""

from __future__ import annotations

import logging
import math
import os
import resource
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BufferedRWPair
from typing import TypeVar

import msgspec

from sightline.config import ImageLimits
from sightline.errors import ImageError
from sightline.images.budget import VisionBudget
from sightline.images.codec import Inspected, Picture, Recompressed, decode, inspect, recompress


class Ready(msgspec.Struct, frozen=True, tag=True):
    pass


class Inspect(msgspec.Struct, frozen=True, tag=True):
    """Asks what the picture is, not for its pixels."""


class Recompress(msgspec.Struct, frozen=True, tag=True):
    """Asks for a JPEG of at most this size."""

    max_side: int
    quality: int


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The picture is at fault."""

    error: str
    """Name of a class of ImageError."""
    message: str


Request = VisionBudget | Inspect | Recompress
Reply = Ready | Picture | Inspected | Recompressed | Refused

REQUESTS: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
REPLIES: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)

_MAX_FRAME = 64 * 1024
NICENESS = 10
"""Of a decoder process, on top of the server's."""

T = TypeVar("T")


def send(stream: BufferedRWPair, message: Request | Reply) -> None:
    frame = msgspec.msgpack.encode(message)
    stream.write(len(frame).to_bytes(4, "little") + frame)
    stream.flush()


def receive(stream: BufferedRWPair, decoder: msgspec.msgpack.Decoder[T]) -> T | None:
    """The next message; None when the other side is gone, even in the middle of one, or talks nonsense."""
    head = stream.read(4)
    length = int.from_bytes(head, "little")
    frame = stream.read(min(length, _MAX_FRAME))
    return decoder.decode(frame) if len(head) == 4 and len(frame) == length else None


def lay(desk: int, content: bytes) -> None:
    """Puts this and nothing else on the desk; `b""` clears it, which gives the memory back."""
    with open(desk, "wb", closefd=False) as file:
        file.truncate(0)
        file.seek(0)
        file.write(content)


@contextmanager
def opened(desk: int) -> Iterator[BufferedReader]:
    """What lies on the desk. A new file object each time: the buffer of an old one may hold the picture before."""
    with open(desk, "rb", closefd=False) as file:
        file.seek(0)
        yield file


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[1]))
    limits = msgspec.json.decode(sys.argv[3], type=ImageLimits)
    if sys.platform == "linux":  # elsewhere the kernel does not keep to it, or refuses it
        resource.setrlimit(resource.RLIMIT_AS, (limits.decoder_memory_bytes,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold somebody's picture
    _yield_to_the_server()
    warnings.simplefilter("ignore")  # Pillow's are about the file; nobody here can act on them
    desk = int(sys.argv[2])
    _silence_parsers()
    with suppress(ConnectionError), connection.makefile("rwb") as stream:  # the parent gone, so is the work
        send(stream, Ready())
        while (request := receive(stream, REQUESTS)) is not None:
            _allow_cpu(limits.decoder_cpu_s)
            send(stream, _answer(request, desk, limits))


def _answer(request: Request, desk: int, limits: ImageLimits) -> Reply:
    """Does as asked with what lies on the desk; on return, what it made of that does, if it made anything."""
    made: tuple[Picture | Recompressed, bytes]
    try:
        with opened(desk) as file:
            match request:
                case Inspect():
                    return inspect(file, limits)
                case Recompress(max_side=max_side, quality=quality):
                    made = recompress(file, max_side, quality, limits)
                case _:
                    made = decode(file, request, limits)
    except ImageError as error:
        return Refused(type(error).__name__, error.message)
    reply, content = made
    lay(desk, content)
    return reply


def _silence_parsers() -> None:
    """Leaves the descriptor of stderr, where libtiff writes about each damaged file, nowhere to lead; Python keeps it,
    for what it says itself when this process fails, but not for what Pillow logs.

    A file must not choose what stands in the server's log, nor how much.
    """
    logging.disable()
    sys.stderr = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)


def _yield_to_the_server() -> None:
    """Lowers this process's priority, so that who asks the server something else is not kept waiting by pictures.

    Where Linux shares CPU time out by session first (autogroup, see sched(7)), a process is only nice within its own:
    then the session's priority, which is this process's alone, is what counts.
    """
    os.nice(NICENESS)
    with suppress(OSError), open("/proc/self/autogroup", "w") as group:
        group.write(str(NICENESS))


def _allow_cpu(seconds: int) -> None:
    """Lets the kernel end this process (SIGXCPU) after so many more seconds of CPU time, to the second above."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + seconds, hard))


if __name__ == "__main__":
    main()
