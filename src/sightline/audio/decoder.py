"""Recordings to samples, in processes of their own: hostile files are only ever opened there.

A process decodes one file and ends, under limits on memory and CPU time that the kernel enforces, and on wall time,
which is enforced here. The next one is started ahead, so that nobody waits for an interpreter to start. Nothing here
blocks the event loop.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import signal
import sys
import tempfile
from contextlib import suppress
from io import FileIO
from typing import Final

import msgspec
import numpy as np

from sightline.audio import decoder_process
from sightline.audio.decoder_process import READY, Decoded, Refused, Reply
from sightline.config import AudioLimits
from sightline.errors import AudioEmpty, AudioError, AudioFileTooLarge, AudioTooLong, AudioUnreadable, EngineUnavailable
from sightline.types import AudioRef, Samples

log = logging.getLogger(__name__)

_WALL_PER_CPU: Final = 4
"""Wall seconds a decoder may take for each CPU second it may use: machines are shared."""
_START_S: Final = 30.0
_KEPT_VARIABLES: Final = ("PATH", "PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")
"""What a decoder needs of our environment. The rest (keys among it) is none of its business."""
_INSTALL: Final = "pip install 'sightline[audio]'"

_replies: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)
_ERRORS: dict[str, type[AudioError]] = {error.__name__: error for error in AudioError.__subclasses__()}


class AudioDecoder:
    """`limits.decoders` files at once, first come, first served. Used from one event loop: decode..., close."""

    def __init__(self, limits: AudioLimits) -> None:
        self._limits = limits
        self._turn = asyncio.Semaphore(limits.decoders)
        self._spare: asyncio.Task[_Process] | None = None
        """The process that will take the next file. None until the first is asked for: most servers hear nothing."""
        self._running: set[_Process] = set()
        self._ending: set[asyncio.Task[int]] = set()
        """Processes that were killed, until the kernel has ended them."""
        self._closed = False

    async def decode(self, ref: AudioRef) -> Samples:
        """The recording, mono at 16 kHz. Cancelled, it ends the process at once.

        Raises an `AudioError`, which names the place of the recording in the request; `EngineUnavailable` where this
        server cannot decode recordings or is being stopped.
        """
        if not ref.file:
            raise AudioEmpty("The file has no content.", param=ref.param)
        if len(ref.file) > self._limits.max_bytes:
            raise AudioFileTooLarge(
                f"The file has {len(ref.file)} bytes; {self._limits.max_bytes} are taken. Compress it, or send parts.",
                param=ref.param,
            )
        async with self._turn:
            process = await self._take()
            try:
                return await process.decode(ref.file)
            except AudioError as error:
                error.param = ref.param
                raise
            finally:
                self._running.discard(process)
                self._end(process)

    async def close(self) -> None:
        """Ends every process and waits until it has; what is being decoded fails. Idempotent."""
        self._closed = True
        spare, self._spare = self._spare, None
        if spare is not None:
            with suppress(EngineUnavailable, OSError):
                self._end(await spare)
        for process in list(self._running):
            self._end(process)
        if self._ending:
            await asyncio.wait(self._ending)

    def _end(self, process: _Process) -> None:
        ending = asyncio.create_task(process.end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _take(self) -> _Process:
        if self._closed:
            raise EngineUnavailable("The server is being stopped.")
        if importlib.util.find_spec("av") is None:
            log.error("recordings cannot be decoded: PyAV is missing (%s)", _INSTALL)
            raise EngineUnavailable("This server is not set up for recordings. Its log says what is missing.")
        coming = self._spare or self._start()
        self._spare = self._start()
        process = await coming
        self._running.add(process)
        return process

    def _start(self) -> asyncio.Task[_Process]:
        task = asyncio.create_task(_Process.start(self._limits))
        task.add_done_callback(lambda done: None if done.cancelled() else done.exception())
        return task


class _Process:
    """One decoder process and the two files in memory that it shares with us."""

    def __init__(self, process: asyncio.subprocess.Process, file: FileIO, samples: FileIO, wall_s: float) -> None:
        self._process = process
        self._file = file
        self._samples = samples
        self._wall_s = wall_s

    @classmethod
    async def start(cls, limits: AudioLimits) -> _Process:
        """Returns when it can take a file. Raises `EngineUnavailable`."""
        file, samples = _file_in_memory(), _file_in_memory()
        fds = (file.fileno(), samples.fileno())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", decoder_process.__name__, *map(str, fds), msgspec.json.encode(limits),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, pass_fds=fds,
            env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
            start_new_session=True,  # Ctrl-C is for the server, which may have requests to finish
        )  # fmt: skip
        started = cls(process, file, samples, float(limits.decoder_cpu_s * _WALL_PER_CPU))
        try:
            async with asyncio.timeout(_START_S):
                if await started._line() == READY:
                    return started
        except BaseException:
            await asyncio.shield(started.end())
            raise
        await started.end()
        raise EngineUnavailable("A decoder process did not start. The server's log says why.")

    async def decode(self, content: bytes) -> Samples:
        """Raises an `AudioError`."""
        await asyncio.to_thread(self._file.write, content)
        assert self._process.stdin is not None
        try:
            async with asyncio.timeout(self._wall_s):
                with suppress(ConnectionError):
                    self._process.stdin.write(b"go\n")
                    await self._process.stdin.drain()
                reply = self._read(await self._line())
        except TimeoutError:
            raise _too_slow() from None
        if reply is None:
            status = await self._process.wait()
            log.warning("a decoder process ended (%d) under a recording of %d bytes", status, len(content))
            if status in (-signal.SIGXCPU, -signal.SIGKILL):
                raise _too_slow()
            raise AudioUnreadable("The file ended the process that decoded it. Save it in another format.")
        if isinstance(reply, Refused):
            raise _ERRORS[reply.error](reply.message)
        return await asyncio.to_thread(self._taken, reply.samples)

    async def end(self) -> int:
        """Kills it if it lives, and frees what it held; returns how it ended. Idempotent."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()
        self._file.close()
        self._samples.close()
        return await self._process.wait()

    async def _line(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.readline()

    def _read(self, line: bytes) -> Reply | None:
        """A file that took the process over may answer anything: what makes no sense is as good as its death."""
        try:
            reply = _replies.decode(line)
        except msgspec.DecodeError:
            return None
        match reply:
            case Refused(error=name) if name not in _ERRORS:
                return None
            case Decoded(samples=count) if count < 1 or os.fstat(self._samples.fileno()).st_size != 4 * count:
                return None
        return reply

    def _taken(self, count: int) -> Samples:
        samples = np.empty(count, np.float32)
        self._samples.seek(0)
        if self._samples.readinto(samples.data.cast("B")) != samples.nbytes:
            raise AudioUnreadable("The file ended the process that decoded it. Save it in another format.")
        np.nan_to_num(samples, copy=False)
        return np.clip(samples, -1.0, 1.0, out=samples)


def _too_slow() -> AudioTooLong:
    return AudioTooLong("The recording takes more time to decode than this server allows. Send it in parts.")


def _file_in_memory() -> FileIO:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("sightline-recording"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)
