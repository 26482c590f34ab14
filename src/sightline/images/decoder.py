"""The pool of decoder processes: hostile files are only ever opened there.

Each process has a limit on memory and on CPU time per picture, enforced by the kernel, and on wall time, enforced here.
One that dies or is too slow is replaced, and costs at most the picture that it held: a process that was killed is not
the picture's fault, so the picture is tried once more. None survives its parent: its socket closes, and it ends.

A thread a process talks to it (frames and copies release the GIL), so the event loop never waits for one.
What is said between the two sides is defined in `decoder_process.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import FileIO
from typing import TypeVar

import msgspec
import numpy as np

from sightline import metrics
from sightline.config import ImageLimits
from sightline.errors import EngineUnavailable, ImageError, ImageTooLarge, ImageUnreadable
from sightline.images import decoder_process
from sightline.images.budget import VisionBudget
from sightline.images.codec import Inspected, Picture, Recompressed
from sightline.images.decoder_process import (
    REPLIES,
    Inspect,
    Recompress,
    Refused,
    Reply,
    Request,
    lay,
    opened,
    receive,
    send,
)
from sightline.types import Pixels

log = logging.getLogger(__name__)

T = TypeVar("T")

_WALL_PER_CPU = 4
"""Wall seconds a decoder may take for each CPU second it may use: machines are shared."""
_START_S = 30.0
"""Wall seconds a new process may take until it is ready; it takes 0.1 on an idle machine."""
_END_S = 1.0
"""Wall seconds the kernel may take to end a process that has closed its socket."""
_JPEG_OVERHEAD = 4096
"""Bytes of a JPEG beside its pixels, at most: tables and headers."""
_FINISHES_S = 0.05
"""For how long a picture that nobody waits for any more is decoded all the same: most are done by then, and another
process would take longer to start."""
_KEPT_VARIABLES = ("PATH", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
"""What a decoder needs of our environment. The rest (keys among it) is none of its business."""


class DecoderPool:
    """`limits.decoders` processes, first come, first served. Used from one event loop: start, decode..., close."""

    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits
        self._processes: dict[int, _Process] = {}
        """By slot. A slot is held by one picture at a time, and its process is replaced by the thread that holds it."""
        self._idle = list(range(limits.decoders))
        self._turn = asyncio.Semaphore(limits.decoders)  # wakes in the order of asking
        self._threads = ThreadPoolExecutor(limits.decoders, thread_name_prefix="decoder")
        self._lock = threading.Lock()
        """Held while a slot's process changes, so that `close` misses none."""
        self._is_closed = False

    @property
    def pids(self) -> tuple[int, ...]:
        """Of the processes that run now."""
        return tuple(process.pid for process in list(self._processes.values()))

    async def start(self) -> None:
        """Starts the processes; returns before they are ready, which the first picture of each waits for."""
        loop = asyncio.get_running_loop()
        metrics.DECODERS.inc(self._limits.decoders)
        await asyncio.gather(*(loop.run_in_executor(self._threads, self._restart, slot) for slot in self._idle))

    async def decode(self, file: bytes, budget: VisionBudget) -> tuple[Picture, Pixels]:
        """What `codec.decode` finds in the file, and the pixels at the served size, read-only.

        Raises what `codec.decode` raises; `ImageTooLarge` where a limit of the process ended it; `ImageUnreadable`
        where it died twice under this file; `EngineUnavailable` where the pool is closed. Cancelled in line, it leaves
        the line; cancelled while it is decoded, the process is given a moment to finish and then ended, and another
        takes its place.
        """
        return await self._run(file, lambda process: process.decode(file, budget))

    async def inspect(self, file: bytes) -> Inspected:
        """What the file's header says of its picture; no pixel is decoded. Otherwise as `decode`."""
        return await self._run(file, lambda process: process.inspect(file))

    async def recompress(self, file: bytes, max_side: int, quality: int) -> tuple[Recompressed, bytes]:
        """What `codec.recompress` makes of the file. Otherwise as `decode`."""
        return await self._run(file, lambda process: process.recompress(file, max_side, quality))

    async def _run(self, file: bytes, work: Callable[[_Process], T]) -> T:
        """Has a process do its work with a file when it is its turn."""
        with metrics.DECODERS_WAITING.track_inprogress():
            await self._turn.acquire()
        if self._is_closed:
            self._turn.release()
            raise _shutting_down()
        slot = self._idle.pop()
        metrics.DECODERS_BUSY.inc()
        loop, unwanted = asyncio.get_running_loop(), threading.Event()
        working = loop.run_in_executor(self._threads, self._work, slot, work, len(file), unwanted)

        def free(done: asyncio.Future[T]) -> None:
            metrics.DECODERS_BUSY.dec()
            self._idle.append(slot)
            self._turn.release()
            if not done.cancelled():
                done.exception()  # seen, even where nobody waits for it any more

        def give_up() -> None:
            if not working.done():
                unwanted.set()
                with self._lock:
                    if (process := self._processes.get(slot)) is not None:
                        process.kill()

        working.add_done_callback(free)
        try:
            return await asyncio.shield(working)
        except asyncio.CancelledError:
            loop.call_later(_FINISHES_S, give_up)
            raise

    async def close(self) -> None:
        """Ends every process. What is being decoded raises `EngineUnavailable`. Idempotent."""
        with self._lock:
            if self._processes and not self._is_closed:
                metrics.DECODERS.dec(self._limits.decoders)
            self._is_closed = True
            for process in self._processes.values():
                process.kill()
        await asyncio.to_thread(self._threads.shutdown)
        for process in self._processes.values():
            process.end()

    # --- in a slot's thread --------------------------------------------------------------------------------------

    def _work(self, slot: int, work: Callable[[_Process], T], file_bytes: int, unwanted: threading.Event) -> T:
        for is_last in (False, True):
            process = self._processes.get(slot) or self._restart(slot)
            try:
                return work(process)
            except _DiedStarting as error:
                log.error("%s", error)
                self._restart(slot)
                if is_last:
                    raise
            except _Died:
                if self._is_closed:  # it was we who ended it
                    raise _shutting_down() from None
                if unwanted.is_set():
                    self._restart(slot)
                    raise EngineUnavailable("Nobody waits for the picture any more.") from None
                log.warning("decoder process %d died under a picture of %d bytes", process.pid, file_bytes)
                self._restart(slot)
            except _OverLimit:
                log.warning("decoder process %d was too slow for a picture of %d bytes", process.pid, file_bytes)
                self._restart(slot)
                raise ImageTooLarge(
                    "this picture takes more time to decode than this server allows. Make it smaller."
                ) from None
        raise ImageUnreadable("this picture twice ended the process that decoded it. Save it in another format.")

    def _restart(self, slot: int) -> _Process:
        with self._lock:
            previous = self._processes.pop(slot, None)
        if previous is not None:
            previous.end()
        with self._lock:
            if self._is_closed:
                raise _shutting_down()
            self._processes[slot] = process = _Process(self._limits)
            return process


class _Died(Exception):
    """The process ended under a picture, and not by one of its limits."""


class _DiedStarting(RuntimeError):
    """The process ended before it was ready: this installation is broken, or the machine out of memory."""


class _OverLimit(Exception):
    """The picture took more time than is allowed."""


class _Process:
    """One decoder process, its socket and its desk. Everything blocks; one thread at a time, but `kill` from any."""

    def __init__(self, limits: ImageLimits) -> None:
        self._wall_s = float(limits.decoder_cpu_s * _WALL_PER_CPU)
        self._is_ready = False
        self._desk = _file_in_memory()
        self._socket, theirs = socket.socketpair()
        with theirs:
            fds = (theirs.fileno(), self._desk.fileno())
            command: list[str | bytes] = [
                sys.executable,
                "-P",
                "-m",
                decoder_process.__name__,
                *map(str, fds),
                msgspec.json.encode(limits),
            ]
            self._process = subprocess.Popen(
                command,
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                start_new_session=True,  # Ctrl-C is for the server, which may have requests to finish
            )
        self._stream = self._socket.makefile("rwb")

    @property
    def pid(self) -> int:
        return self._process.pid

    def decode(self, file: bytes, budget: VisionBudget) -> tuple[Picture, Pixels]:
        """Raises `ImageError`; or `_Died`, `_DiedStarting` or `_OverLimit`, after which only `end` is left to do."""
        reply = self._ask(budget, file)
        if not isinstance(reply, Picture) or not _is_within(reply, budget):
            raise _Died
        pixels = np.empty((reply.served_height, reply.served_width, 3), np.uint8)
        with opened(self._desk.fileno()) as desk:
            if desk.readinto(pixels.data.cast("B")) != pixels.size:
                raise _Died
        lay(self._desk.fileno(), b"")
        pixels.flags.writeable = False
        return reply, pixels

    def inspect(self, file: bytes) -> Inspected:
        """Raises as `decode`."""
        reply = self._ask(Inspect(), file)
        lay(self._desk.fileno(), b"")
        if not isinstance(reply, Inspected) or min(reply.width, reply.height) < 1:
            raise _Died
        return reply

    def recompress(self, file: bytes, max_side: int, quality: int) -> tuple[Recompressed, bytes]:
        """Raises as `decode`."""
        reply = self._ask(Recompress(max_side, quality), file)
        if not isinstance(reply, Recompressed) or max(reply.served_width, reply.served_height) > max_side:
            raise _Died
        with opened(self._desk.fileno()) as desk:
            jpeg = desk.read(3 * reply.served_width * reply.served_height + _JPEG_OVERHEAD)
        if len(jpeg) != reply.num_bytes:
            raise _Died
        lay(self._desk.fileno(), b"")
        return reply, jpeg

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        """Kills it if it lives, and frees what it held. Idempotent."""
        self._process.kill()
        self._process.wait()
        with suppress(OSError):  # a frame that was never taken
            self._stream.close()
        self._socket.close()
        self._desk.close()

    def _ask(self, request: Request, file: bytes) -> Reply:
        if not self._is_ready:
            try:
                self._receive(_START_S)
            except (_Died, _OverLimit):
                raise _DiedStarting(f"A decoder process did not start; its status is {self._process.poll()}.") from None
            self._is_ready = True
        lay(self._desk.fileno(), file)
        with suppress(BrokenPipeError):  # it died idle: the answer, which will not come, tells that
            send(self._stream, request)
        reply = self._receive(self._wall_s)
        # A file that took the process over may answer anything: what we did not ask for is as good as its death.
        if isinstance(reply, Refused) and reply.error in _IMAGE_ERRORS:
            raise _IMAGE_ERRORS[reply.error](reply.message)
        return reply

    def _receive(self, timeout_s: float) -> Reply:
        self._socket.settimeout(timeout_s)
        try:
            reply = receive(self._stream, REPLIES)
        except TimeoutError:
            raise _OverLimit from None
        except (ConnectionError, msgspec.DecodeError):
            raise _Died from None
        if reply is None:
            with suppress(subprocess.TimeoutExpired):  # it is ending, unless it only closed its socket
                if self._process.wait(_END_S) == -signal.SIGXCPU:
                    raise _OverLimit
            raise _Died
        return reply


_IMAGE_ERRORS: dict[str, type[ImageError]] = {error.__name__: error for error in ImageError.__subclasses__()}


def _is_within(picture: Picture, budget: VisionBudget) -> bool:
    try:
        return budget.serve(picture.width, picture.height)[:2] == (picture.served_width, picture.served_height)
    except (ArithmeticError, ImageError):
        return False


def _shutting_down() -> EngineUnavailable:
    return EngineUnavailable("The server is shutting down.")


def _file_in_memory() -> FileIO:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("sightline-desk"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
