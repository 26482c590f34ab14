"""The child: runs an engine for the parent that started it, and lives no longer than that.

    python -m sightline.engines.worker REQUESTS_FD EVENTS_FD NAME

Started by `child.py` only. NAME is for people who read process lists; all else comes in the first frame, because
process lists are public and configurations are not.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, NoReturn

from sightline.config import ModelConfig
from sightline.engines import Embeds, Engine, Measures, ShowsProgress, Transcribes, load_engine
from sightline.engines.worker import frames
from sightline.engines.worker.pictures import receive, receive_samples, size_only
from sightline.errors import EngineFailed, EngineUnavailable, SightlineError, UnsupportedFeature
from sightline.interprocess import LENGTH_BYTES, body_length, encode, to_wire_error
from sightline.types import Event, TranscriptionEvent

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
"""From <sys/prctl.h>."""
_PROGRESS_EVERY_S = 0.1


class Worker:
    """Does what the frames say. Everything here runs on the event loop but `read_requests`."""

    def __init__(self, requests: socket.socket, events: socket.socket) -> None:
        self._requests = requests
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._engine: Engine | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._credits: dict[int, asyncio.Semaphore] = {}
        self._outgoing: list[bytes] = []
        self._closing = asyncio.Event()
        self._broken = False
        self._transport: asyncio.Transport | None = None

    async def run(self) -> int:
        """Until it is told to close, or the engine could not start or broke. Returns the exit status."""
        self._transport, _ = await self._loop.create_unix_connection(asyncio.Protocol, sock=self._events)
        threading.Thread(target=self.read_requests, name="requests", daemon=True).start()
        await self._closing.wait()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        if self._engine is None:
            return 1
        await self._engine.close()
        return int(self._broken)

    # --- requests ------------------------------------------------------------------------------------------------

    def read_requests(self) -> None:
        """A thread, so that the parent's death is noticed whatever the event loop is doing."""
        try:
            while True:
                length, fd = self._read_length()
                frame = frames.decode_to_child(self._read(body_length(length)))
                self._loop.call_soon_threadsafe(self._handle, frame, fd)
        except BaseException:  # deaf, we would only be in the way
            log.exception("requests cannot be read")
            os._exit(1)

    def _read_length(self) -> tuple[bytes, int | None]:
        """Descriptors come with the first byte of the length they belong to."""
        cloexec = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # what the engine starts must not hold our pictures
        data, fds, _, _ = socket.recv_fds(self._requests, LENGTH_BYTES, 1, cloexec)
        if not data:
            _parent_is_gone()
        return data + self._read(LENGTH_BYTES - len(data)), fds[0] if fds else None

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            count = self._requests.recv_into(rest)
            if count == 0:
                _parent_is_gone()
            rest = rest[count:]
        return bytes(data)

    def _handle(self, frame: frames.ToChild, fd: int | None) -> None:
        match frame:
            case frames.Credit(stream, events):
                if (credit := self._credits.get(stream)) is not None:
                    for _ in range(events):
                        credit.release()
            case frames.Generate(stream):
                self._begin(stream, self._generate(frame, fd))
            case frames.Count(stream):
                self._begin(stream, self._count(frame))
            case frames.Embed(stream):
                self._begin(stream, self._embed(frame))
            case frames.Transcribe(stream):
                self._begin(stream, self._transcribe(frame, fd))
            case frames.Cancel(stream):
                if (task := self._tasks.get(stream)) is not None:
                    task.cancel()
            case frames.Ping(number):
                engine = self._engine
                measures: dict[str, float] = dict(engine.measures) if isinstance(engine, Measures) else {}
                self._send(frames.Pong(number, measures))
            case frames.Start(config, target):
                self._begin(0, self._start(config, target))
            case frames.Close():
                self._closing.set()

    def _begin(self, stream: int, work: Coroutine[object, object, None]) -> None:
        task = self._tasks[stream] = self._loop.create_task(work)
        task.add_done_callback(lambda _: self._tasks.pop(stream))

    # --- what they ask for ---------------------------------------------------------------------------------------

    async def _start(self, config: ModelConfig, target: str) -> None:
        try:
            engine = load_engine(config, target)
            telling = asyncio.create_task(self._tell_progress(engine))
            try:
                await engine.start()
            finally:
                telling.cancel()
        except SightlineError as error:
            self._send(frames.NotReady(to_wire_error(error)))
            self._closing.set()
        except Exception:
            log.exception("the engine could not start")
            unknown = EngineUnavailable("The engine could not start. The server's log says why.")
            self._send(frames.NotReady(to_wire_error(unknown)))
            self._closing.set()
        else:
            self._engine = engine
            self._send(frames.Ready(engine.info))

    async def _tell_progress(self, engine: Engine) -> None:
        """Whatever of loading is new, until it is cancelled."""
        if not isinstance(engine, ShowsProgress):
            return
        told = None
        while True:
            if (progress := engine.progress) is not None and progress != told:
                told = progress
                self._send(frames.Loading(progress))
            await asyncio.sleep(_PROGRESS_EVERY_S)

    async def _generate(self, frame: frames.Generate, fd: int | None) -> None:
        def begin() -> AsyncGenerator[Event, None]:
            pixels = receive(fd, frame.shared_bytes) if fd is not None else size_only
            return self._ready_engine().generate(frames.from_wire(frame.request, pixels))

        await self._stream(frame.stream, begin)

    async def _transcribe(self, frame: frames.Transcribe, fd: int | None) -> None:
        def begin() -> AsyncGenerator[TranscriptionEvent, None]:
            assert fd is not None, "samples come with every transcription"
            samples = receive_samples(fd, frame.request.samples)
            engine = self._ready_engine()
            if not isinstance(engine, Transcribes):
                raise UnsupportedFeature("The engine does not transcribe.", param="model")
            return engine.transcribe(frames.from_wire_transcription(frame.request, samples))

        await self._stream(frame.stream, begin)

    async def _stream(self, stream: int, begin: Callable[[], AsyncGenerator[Any, None]]) -> None:
        """Sends the events of what `begin` begins, as fast as they are taken."""
        credit = self._credits[stream] = asyncio.Semaphore(frames.WINDOW)
        try:
            async with aclosing(begin()) as events:
                async for event in events:
                    await credit.acquire()
                    self._send(frames.said(stream, event))
        except Exception as error:
            self._fail(stream, error)
        finally:
            del self._credits[stream]

    async def _count(self, frame: frames.Count) -> None:
        try:
            count = await self._ready_engine().count_tokens(frames.from_wire(frame.request, size_only))
            self._send(frames.Counted(frame.stream, count))
        except Exception as error:
            self._fail(frame.stream, error)

    async def _embed(self, frame: frames.Embed) -> None:
        try:
            engine = self._ready_engine()
            if not isinstance(engine, Embeds):
                raise UnsupportedFeature("The engine gives no embeddings.", param="model")
            self._send(frames.embedded(frame.stream, await engine.embed(frame.request)))
        except Exception as error:
            self._fail(frame.stream, error)

    def _ready_engine(self) -> Engine:
        if self._engine is None:
            raise EngineUnavailable("The engine is still being started.")
        return self._engine

    def _fail(self, stream: int, error: Exception) -> None:
        if not isinstance(error, SightlineError):
            log.error("a bug in the engine", exc_info=error)
            error = EngineFailed("The engine failed. The server's log says why.")
        self._send(frames.Failed(stream, to_wire_error(error)))
        if isinstance(error, EngineUnavailable) and self._engine is not None and not self._closing.is_set():
            # It was up, nobody closed it, and it cannot serve: only a new process can, which our parent starts.
            log.error("the engine stopped by itself: %s", error.message)
            self._broken = True
            self._closing.set()

    # --- events --------------------------------------------------------------------------------------------------

    def _send(self, frame: frames.ToParent) -> None:
        """All frames of one turn of the event loop go in one write: a step of 16 sequences costs one, not 16."""
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(encode(frame))

    def _flush(self) -> None:
        assert self._transport is not None
        self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()


def _parent_is_gone() -> NoReturn:
    os._exit(0)  # at once, from whatever thread: there is nobody to tell, and the kernel frees what we hold


def _die_with_parent() -> None:
    """End-of-file tells us of the parent's death, but only when Python runs; the kernel's signal needs no Python."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _run(requests: socket.socket, events: socket.socket) -> int:
    return await Worker(requests, events).run()


def main(requests_fd: str, events_fd: str, _name: str) -> NoReturn:
    # Ctrl-C, and the SIGTERM that service managers send to all, are for the parent: it lets streams end, then closes
    # us. Handled, not ignored: what is ignored stays so in the processes that an engine starts.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    _die_with_parent()
    # The parent reads the level off each line.
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    requests, events = (socket.socket(fileno=int(fd)) for fd in (requests_fd, events_fd))
    for end in (requests, events):
        end.set_inheritable(False)  # what the engine starts must not keep them open
    status = asyncio.run(_run(requests, events))
    logging.shutdown()
    os._exit(status)  # threads of an engine must not keep a closed child alive


if __name__ == "__main__":
    main(*sys.argv[1:])
