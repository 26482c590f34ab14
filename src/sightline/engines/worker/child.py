"""The parent's side of one child process: how it is started, spoken to, listened to and ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import queue
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from sightline.config import ModelConfig
from sightline.engines import EngineEntry, EngineInfo, target_of
from sightline.engines.interpreter import verify
from sightline.engines.worker import frames
from sightline.engines.worker.environment import child_environment
from sightline.engines.worker.output import printable_lines
from sightline.engines.worker.parcel import NoMemory, Parcel, Shared
from sightline.errors import EngineError, EngineFailed, EngineUnavailable, InvalidRequest, SightlineError
from sightline.interprocess import Bodies, encode, from_wire_error
from sightline.types import (
    EmbeddingRequest,
    Embeddings,
    EngineRequest,
    Event,
    Finish,
    TokenCount,
    Transcribed,
    TranscriptionEvent,
    TranscriptionRequest,
)

log = logging.getLogger(__name__)

PING_EVERY_S = 5.0
CLOSE_GRACE_S = 5.0
"""How long a child may take to close its engine before it is killed."""
_EXIT_TO_EOF_S = 0.5
"""A dead child's events end with the socket, unless a process of its own holds the socket open."""
_LAST_LINES = 40
_LEVELS = logging.getLevelNamesMapping()
_LAST = (Finish, Transcribed)
"""Events after which nothing comes."""


class Child:
    """One process that runs an engine, and what is under way in it.

    Life: made -> `start` -> `generate`, `count_tokens`, `embed`, `watch` -> `stop`. The next process is another
    `Child`. Used from one event loop.
    """

    def __init__(
        self, config: ModelConfig, entry: EngineEntry, *, ping_timeout_s: float, on_lost: Callable[[Child], None]
    ) -> None:
        """`on_lost` is called as soon as it is known that nothing can be asked of it any more."""
        self.pid: int | None = None
        self.lost = False
        self.served = False
        """It has completed a request."""
        self.hopeless = False
        """It said why it cannot load, or took too long: another one would fare no better."""
        self.progress: float | None = None
        """Of loading, as far as its engine tells."""
        self.measures: Mapping[str, float] = {}
        """As its engine last told them."""
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._config = config
        self._entry = entry
        self._ping_timeout_s = ping_timeout_s
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[EngineInfo | SightlineError] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._pong: asyncio.Future[None] = self._loop.create_future()
        self._numbers = itertools.count(1)
        self._streams: dict[int, _Stream] = {}
        self._asked: dict[int, asyncio.Future[Any]] = {}
        """What is answered in one frame."""
        self._to_send: queue.SimpleQueue[Parcel | None] = queue.SimpleQueue()
        self._process: asyncio.subprocess.Process | None = None
        self._exit: asyncio.Task[int] | None = None
        self._output: asyncio.Task[None] | None = None
        self._events: asyncio.Transport | None = None

    # --- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> EngineInfo:
        """Starts the process and waits until its engine is ready. Raises `EngineUnavailable`; then `stop` it."""
        try:
            await self._verify_python()
            await self._spawn()
        except OSError as error:
            log.error("model %s: no process could be started: %s", self._config.name, error)
            raise EngineUnavailable("The engine's process could not be started.") from None
        self._send(frames.Start(self._config, target_of(self._config, self._entry)))
        timeout_s = self._config.start_timeout_s
        await self._first_of(self._ready, self._ended, timeout_s=timeout_s)
        if self._ready.done():
            outcome = self._ready.result()
            if isinstance(outcome, EngineInfo):
                return outcome
            self.hopeless = True
            raise EngineUnavailable(outcome.message)
        if self.lost:
            raise EngineUnavailable(f"The engine's process ended while it was loading ({await self.stop()}).")
        self.hopeless = True
        raise EngineUnavailable(f"The model did not load within {timeout_s:g} s.")

    async def _verify_python(self) -> None:
        if (python := self._config.python) is not None:
            try:
                await asyncio.to_thread(verify, python, self._config.engine, self._entry.needs)
            except InvalidRequest as error:
                self.hopeless = True
                raise EngineUnavailable(error.message) from None

    async def watch(self) -> None:
        """Returns when the child is lost, or does not answer any more and must be stopped.

        What a pong proves: the child's threads get to run and its event loop turns. It does not prove that the engine
        makes progress, which no one can tell from a long prefill: a request's own deadline sees to that. The timeout
        must be longer than native code may keep Python's lock to itself.
        """
        for number in itertools.count():
            self._pong = self._loop.create_future()
            self._send(frames.Ping(number))
            await self._first_of(self._pong, self._ended, timeout_s=self._ping_timeout_s)
            if not self._pong.done() and not self.lost:
                log.error("model %s: its engine has not answered for %g s", self._config.name, self._ping_timeout_s)
                self.lose()
            if self.lost:
                return
            await asyncio.wait({self._ended}, timeout=min(PING_EVERY_S, self._ping_timeout_s))

    @staticmethod
    async def _first_of(*futures: asyncio.Future[Any], timeout_s: float) -> None:
        await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)

    async def stop(self) -> str:
        """Ends the process, at the latest by SIGKILL; returns how it ended, in words. Idempotent."""
        if self._process is None or self._exit is None:
            return "it never ran"
        try:
            loaded = self._ready.done() and isinstance(self._ready.result(), EngineInfo)
            if loaded and not self.lost:  # nothing is worth waiting for while it loads or hangs
                self._send(frames.Close())
                await asyncio.wait({self._exit}, timeout=CLOSE_GRACE_S)
        finally:
            if not self._exit.done():
                # Not `Process.kill`, which polls first: it would reap a child that has just died before asyncio's
                # watcher does, and how it ended would be lost.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._process.pid, signal.SIGKILL)
            self.lose()
            self._to_send.put(None)
            if self._events is not None:
                self._events.abort()
        status = await self._exit
        if self._output is not None:
            await asyncio.wait({self._output}, timeout=_EXIT_TO_EOF_S)
            self._output.cancel()
        return _in_words(status)

    def abandon(self, reason: str) -> None:
        """Ends everything under way with `EngineUnavailable`."""
        for stream in self._streams.values():
            stream.end(EngineUnavailable(reason))
        self._fail_asked(reason)

    # --- requests ------------------------------------------------------------------------------------------------

    def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        """As `Engine.generate`."""

        def send(number: int) -> None:
            wire, shared_bytes = frames.to_wire(request)
            pictures = [part for m in wire.messages for part in m.content if not isinstance(part, str)]
            shared = [(i.pixels, p.offset) for i, p in zip(request.images, pictures, strict=True)]
            self._send(frames.Generate(number, wire, shared_bytes), shared if shared_bytes else ())

        return self._stream(send)

    def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[TranscriptionEvent, None]:
        """As `Transcribes.transcribe`."""

        def send(number: int) -> None:
            wire = frames.to_wire_transcription(request)
            self._send(frames.Transcribe(number, wire), [(request.samples, 0)])

        return self._stream(send)

    async def _stream(self, send: Callable[[int], None]) -> AsyncGenerator[Any, None]:
        """The events of what `send` asks for under a number."""
        number, stream = self._open(), _Stream()
        self._streams[number] = stream
        try:
            send(number)
            for taken in itertools.count(1):
                event = await stream.take()
                if taken % (frames.WINDOW // 2) == 0:
                    self._send(frames.Credit(number, frames.WINDOW // 2))
                yield event
                if isinstance(event, _LAST):
                    return
        finally:
            del self._streams[number]
            if not stream.ended:
                self._send(frames.Cancel(number))

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        """As `Engine.count_tokens`."""
        counted: TokenCount = await self._ask(lambda number: frames.Count(number, frames.to_wire(request)[0]))
        return counted

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """As `Embeds.embed`."""
        embedded: Embeddings = await self._ask(lambda number: frames.Embed(number, request))
        return embedded

    async def _ask(self, frame: Callable[[int], frames.ToChild]) -> Any:
        """What comes back for a frame of this number, in one."""
        number = self._open()
        answer = self._asked[number] = self._loop.create_future()
        try:
            self._send(frame(number))
            return await answer
        finally:
            del self._asked[number]
            if answer.cancelled():
                self._send(frames.Cancel(number))

    def _open(self) -> int:
        if self.lost:
            raise EngineUnavailable(_DIED)
        return next(self._numbers)

    # --- down ----------------------------------------------------------------------------------------------------

    def _send(self, frame: frames.ToChild, shared: Sequence[Shared] = ()) -> None:
        """`shared`: arrays that go beside it. Raises `InvalidRequest` for what cannot be encoded."""
        try:
            data = encode(frame)
        except (ValueError, TypeError, OverflowError):  # e.g. an integer over 64 bits, somewhere in a tool's schema
            raise InvalidRequest("The request holds a value that cannot be passed to the engine.") from None
        self._to_send.put(Parcel(data, getattr(frame, "stream", 0), shared))

    def _run_sender(self, sock: socket.socket) -> None:
        """A thread of its own: copying pixels takes milliseconds, and a child may be slow to read."""
        with sock:
            while self._deliver(self._to_send.get(), sock):
                pass

    def _deliver(self, parcel: Parcel | None, sock: socket.socket) -> bool:
        """Whether there may be more to deliver."""
        if parcel is None:
            return False
        try:
            parcel.send(sock)
        except NoMemory:
            self._in_loop(self._refuse, parcel.stream)
        except OSError:  # the child is gone, as the event socket will tell, too
            return False
        return True

    def _in_loop(self, callback: Callable[[int], None], argument: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(callback, argument)

    def _refuse(self, number: int) -> None:
        log.error("model %s: no shared memory for a request's pictures or sound", self._config.name)
        if number in self._streams:
            self._streams[number].end(EngineUnavailable("There is no memory for the request right now."))

    # --- up ------------------------------------------------------------------------------------------------------

    def receive(self, frame: frames.ToParent) -> None:
        """What is for a stream that is no more is dropped: it was cancelled, and its last events crossed the word."""
        if isinstance(frame, frames.Said):
            if isinstance(frame, frames.Finished | frames.HeardAll):
                self.served = True
            if (stream := self._streams.get(frame.stream)) is not None:
                stream.put(frame.event)
            return
        match frame:
            case frames.Counted(number, count):
                self._answer(number, count)
            case frames.Embedded(number):
                self._answer(number, frames.to_embeddings(frame))
            case frames.Failed(number, error):
                if number in self._streams:
                    self._streams[number].put(from_wire_error(error))
                elif (asked := self._asked.get(number)) is not None and not asked.done():
                    asked.set_exception(from_wire_error(error))
            case frames.Pong(measures=measures):
                self.measures = measures
                if not self._pong.done():
                    self._pong.set_result(None)
            case frames.Loading(progress):
                self.progress = progress
            case frames.Ready(info):
                self._ready.set_result(info)
            case frames.NotReady(error):
                self._ready.set_result(from_wire_error(error))

    def _answer(self, number: int, value: object) -> None:
        if (asked := self._asked.get(number)) is not None and not asked.done():
            asked.set_result(value)

    def lose(self) -> None:
        """Nothing can be asked of it any more: its socket has ended, or it does not answer."""
        if self.lost:
            return
        self.lost = True
        if not self._ended.done():
            self._ended.set_result(None)
        for stream in self._streams.values():
            stream.break_off(self.pid)
        self._fail_asked(_DIED)
        self._on_lost(self)

    def _fail_asked(self, reason: str) -> None:
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(EngineUnavailable(reason))

    # --- the process ---------------------------------------------------------------------------------------------

    async def _spawn(self) -> None:
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            requests, child_requests = socket.socketpair()
            events, child_events = socket.socketpair()
            for stack, ends in ((ours, (requests, events)), (theirs, (child_requests, child_events))):
                for end in ends:
                    stack.enter_context(end)
            fds = (child_requests.fileno(), child_events.fileno())
            # -P: a file named like a module, in the directory the server was started from, is not imported.
            # A session of its own: Ctrl-C in the terminal is for the parent, which then closes us in order.
            self._process = await asyncio.create_subprocess_exec(
                self._config.python or sys.executable, "-P", "-u", "-X", "faulthandler",
                "-m", "sightline.engines.worker", *map(str, fds), self._config.name,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                pass_fds=fds, start_new_session=True, env=child_environment(self._config, self._entry, os.environ),
            )  # fmt: skip
            theirs.close()  # before we listen: a copy of the child's end here would hide its death
            self.pid = self._process.pid
            self._exit = asyncio.create_task(self._process.wait())
            self._exit.add_done_callback(lambda _: self._loop.call_later(_EXIT_TO_EOF_S, self.lose))
            assert self._process.stdout is not None
            self._output = asyncio.create_task(self._log_output(self._process.stdout))
            self._events, _ = await self._loop.create_unix_connection(lambda: _Listener(self), sock=events)
            threading.Thread(
                target=self._run_sender, args=[requests], name=f"to-engine-{self.pid}", daemon=True
            ).start()  # fmt: skip
            ours.pop_all()

    async def _log_output(self, output: asyncio.StreamReader) -> None:
        async for line in printable_lines(output):
            self.last_lines.append(line)
            log.log(_LEVELS.get(line.partition(" ")[0], logging.INFO), "model %s: %s", self._config.name, line)


def _in_words(status: int) -> str:
    """An exit status as `subprocess` gives it: negative for a signal."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


_DIED = "The engine's process ended before it had answered. It is being started again."


class _Stream:
    """The events of one request on their way to its consumer."""

    def __init__(self) -> None:
        self.ended = False
        """Nothing more will come from the child."""
        self._items: deque[Any | SightlineError] = deque()
        """Bounded by frames.WINDOW. Of one consumer, so that a future is enough to wait with: `asyncio.Queue` takes ten
        more calls for each token."""
        self._waiter: asyncio.Future[None] | None = None
        self._begun = False

    async def take(self) -> Any:
        while not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        item = self._items.popleft()
        if isinstance(item, SightlineError):
            raise item
        self._begun = True
        return item

    def put(self, item: Event | TranscriptionEvent | SightlineError) -> None:
        if not self.ended:
            self.ended = isinstance(item, (*_LAST, SightlineError))
            self._items.append(item)
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def end(self, error: SightlineError) -> None:
        """At once: what waits to be taken is dropped."""
        if not self.ended:
            self._items.clear()
            self.put(error)

    def break_off(self, pid: int | None) -> None:
        """The child is gone. A stream whose end has arrived is whole; one of which nothing has been taken can be run
        again elsewhere, whatever waits here; another one fails after what it has said."""
        error: EngineError
        if self._begun:
            error = EngineFailed("The engine's process ended while it answered.")
            self.put(error)
        else:
            error = EngineUnavailable(_DIED)
            self.end(error)
        error.died = pid


class _Listener(asyncio.Protocol):
    """Reads the event socket: a chunk of bytes may hold the events of many streams."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._bodies = Bodies()
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._bodies.feed(data):
                self._child.receive(frames.decode_to_parent(body))
        except (ValueError, msgspec.MsgspecError) as error:
            log.error("engine process %s sent nonsense: %s", self._child.pid, error)
            assert self._transport is not None
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._child.lose()
