"""The HTTP server around the applications: sockets, and what happens on them before there is a request.

    serve([Endpoint(app, [listener]), Endpoint(admin, [loopback])], drain=service.drain)

One uvicorn server for each endpoint, all in one event loop (uvloop's where it is installed). Signals are taken in one
place: the first SIGTERM or SIGINT starts `drain` with every socket still open, so that probes and new requests are
answered while it runs; then the sockets are closed and what is under way may end. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

import uvicorn
from starlette.types import ASGIApp

Drain = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An application, and the sockets on which it is reached. They are bound; the server closes them."""

    app: ASGIApp
    sockets: Sequence[socket.socket]


@dataclass(slots=True)
class Server:
    """Runs endpoints until `stop`. Applications start in order, each behind the one before (their lifespans), and end
    the other way round."""

    endpoints: Sequence[Endpoint]
    drain: Drain | None = None
    """Awaited once after `stop`, for at most `drain_s`."""
    drain_s: float = 30.0
    """From `stop` on, until what is still under way is cut off."""
    started: threading.Event = field(default_factory=threading.Event)
    """Set when every endpoint answers: for whoever runs a server in a thread."""
    _loop: asyncio.AbstractEventLoop | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _hurrying: asyncio.Event = field(default_factory=asyncio.Event)
    """It was told to stop twice."""
    _servers: list[_Uvicorn] = field(default_factory=list)

    def run(self) -> None:
        """In an event loop of its own. Returns after `stop` or a signal."""
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(self.serve())

    def stop(self) -> None:
        """What a signal does; from any thread. The second time: at once."""
        if self._loop is None:
            self._stopping.set()
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        if self._stopping.is_set():
            self._hurrying.set()
            for server in self._servers:
                server.force_exit = True
        self._stopping.set()

    async def serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._servers = [self._to_server(endpoint) for endpoint in self.endpoints]
        with self._signals(self._loop):
            tasks: list[asyncio.Task[None]] = []
            try:
                for server, endpoint in zip(self._servers, self.endpoints, strict=True):
                    tasks.append(asyncio.create_task(server.serve(list(endpoint.sockets))))
                    await _until_answering(server, tasks[-1])
                self.started.set()
                stopping = asyncio.create_task(self._stopping.wait())
                await asyncio.wait([stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                await self._drain()
            finally:
                for server, task in reversed(list(zip(self._servers, tasks, strict=False))):
                    server.should_exit = True
                    await task

    def _to_server(self, endpoint: Endpoint) -> _Uvicorn:
        config = uvicorn.Config(
            endpoint.app,
            http="httptools",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # uvicorn's own would believe whoever comes from 127.0.0.1
            date_header=True,
            timeout_keep_alive=30,
        )
        return _Uvicorn(config)

    async def _drain(self) -> None:
        deadline = asyncio.get_running_loop().time() + self.drain_s
        if self.drain is not None:
            draining = asyncio.ensure_future(self.drain())
            hurrying = asyncio.create_task(self._hurrying.wait())
            await asyncio.wait([draining, hurrying], timeout=self.drain_s, return_when=asyncio.FIRST_COMPLETED)
            for task in (draining, hurrying):
                task.cancel()
            await asyncio.wait([draining, hurrying])
        left = 0.0 if self._hurrying.is_set() else max(0.0, deadline - asyncio.get_running_loop().time())
        for server in self._servers:
            server.config.timeout_graceful_shutdown = left  # type: ignore[assignment]  # asyncio takes fractions

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        taken = (signal.SIGTERM, signal.SIGINT)
        for number in taken:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in taken:
                loop.remove_signal_handler(number)


def serve(endpoints: Sequence[Endpoint], *, drain: Drain | None = None, drain_s: float = 30.0) -> None:
    """Answers until a signal has ended it."""
    Server(endpoints, drain, drain_s).run()


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not each server for itself: `Server` takes them for all."""
        yield


async def _until_answering(server: _Uvicorn, task: asyncio.Task[None]) -> None:
    """Raises what kept it from starting."""
    while not server.started:
        if task.done():
            task.result()
            raise RuntimeError("A server ended before it had started.")
        await asyncio.sleep(0.005)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    if find_spec("uvloop") is None:
        return asyncio.new_event_loop
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
