"""The HTTP server around the applications: sockets, and what happens on them before there is a request.

    serve([Endpoint(app, [socket], certificate), Endpoint(admin, [loopback])], limits=settings.http, drain=drain)

One uvicorn server for each endpoint, all in one event loop (uvloop's where it is installed). Signals are taken in one
place: the first SIGTERM or SIGINT starts `drain` with every socket still open, so that probes and new requests are
answered while it runs; then the sockets are closed and what is under way may end. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from sightline.config import HttpLimits
from sightline.logs import to_trace
from sightline.server.accepting import Accepting
from sightline.server.connections import Connections
from sightline.server.landing import Buffered
from sightline.server.memory import give_back_large_blocks
from sightline.server.protocol import Guarded
from sightline.server.proxies import BehindProxies
from sightline.server.tls import Certificate, Handshakes

log = logging.getLogger(__name__)

Drain = Callable[[], Awaitable[None]]

_NOT_STARTED = 3
"""The exit status, as of uvicorn's own command."""
_HURRIED_END_S = 5.0
"""For how long at most an application ends itself after the second signal."""
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""Seconds, seconds and probes, until the kernel ends the connection of a client that has gone without a word."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An application, and the sockets on which it is reached. They are bound; the server closes them."""

    app: ASGIApp
    sockets: Sequence[socket.socket]
    certificate: Certificate | None = None
    """For HTTPS; endpoints may share one."""
    shared: bool = False
    """Other processes take connections from the same sockets."""


@dataclass(slots=True)
class Server:
    """Runs endpoints until `stop`. Applications start in order, each behind the one before (their lifespans), and end
    the other way round. Connections are counted for all of them together."""

    endpoints: Sequence[Endpoint]
    drain: Drain | None = None
    """Awaited once after `stop`, for at most `drain_s`."""
    drain_s: float = 30.0
    """From `stop` on, until what is still under way is cut off."""
    limits: HttpLimits = field(default_factory=HttpLimits)
    started: threading.Event = field(default_factory=threading.Event)
    """Set when every endpoint answers: for whoever runs a server in a thread."""
    _loop: asyncio.AbstractEventLoop | None = None
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _hurrying: asyncio.Event = field(default_factory=asyncio.Event)
    """It was told to stop twice."""
    _servers: list[_Uvicorn] = field(default_factory=list)

    def run(self) -> None:
        """In an event loop of its own. Returns after `stop` or a signal. Raises `SystemExit` where an application could
        not start; the log has said why."""
        give_back_large_blocks()
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            is_started = runner.run(self.serve())
        if not is_started:
            sys.exit(_NOT_STARTED)

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
        elif self._servers:
            log.info("told to stop: what is under way has %g s to end; a second signal ends all at once", self.drain_s)
        self._stopping.set()

    def stop_listening(self) -> None:
        """Takes no more connections; those that there are go on. Of the server's event loop."""
        for server in self._servers:
            for listening in server.servers:
                listening.close()

    @property
    def connections(self) -> int:
        return sum(len(server.server_state.connections) for server in self._servers)

    async def serve(self) -> bool:
        """`run`, in the running event loop. False: an application could not start."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_exception_handler(_log_loss)
        connections = Connections(self.limits)
        self._servers = [_Uvicorn(endpoint, connections) for endpoint in self.endpoints]
        certificates = {endpoint.certificate for endpoint in self.endpoints if endpoint.certificate is not None}
        beside = [asyncio.create_task(work) for work in (connections.sweep(), *(each.watch() for each in certificates))]
        tasks: list[asyncio.Task[None]] = []
        with self._signals(self._loop):
            try:
                for server in self._servers:
                    tasks.append(asyncio.create_task(server.serve(list(server.endpoint.sockets))))
                    await _first(tasks[-1], server.answers.wait())
                self.started.set()
                gc.collect()
                gc.freeze()  # what has been loaded stays: going through it takes 30 ms, in which nobody is answered
                await _first(*tasks, self._stopping.wait())
                await self._drain()
            except _NotStarted:
                return False
            finally:
                for server, task in reversed(list(zip(self._servers, tasks, strict=False))):
                    server.should_exit = True
                    await asyncio.wait([task])
                for work in beside:
                    work.cancel()
        return True

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


def serve(
    endpoints: Sequence[Endpoint],
    *,
    limits: HttpLimits | None = None,
    drain: Drain | None = None,
    drain_s: float = 30.0,
) -> None:
    """Answers until a signal has ended it."""
    Server(endpoints, drain, drain_s, limits or HttpLimits()).run()


class _NotStarted(Exception):
    """An application's lifespan failed. In place of uvicorn's SystemExit, which would tear down the event loop before
    the other applications had ended."""


class _Uvicorn(uvicorn.Server):
    """One endpoint's."""

    def __init__(self, endpoint: Endpoint, connections: Connections) -> None:
        config = uvicorn.Config(
            BehindProxies(endpoint.app, connections) if connections.limits.trusted_proxies else endpoint.app,
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,  # uvicorn's own would believe whoever comes from 127.0.0.1
            timeout_keep_alive=connections.limits.idle_s,  # type: ignore[arg-type]  # asyncio takes fractions
        )
        super().__init__(config)
        self.endpoint = endpoint
        self.answers = asyncio.Event()
        self._connections = connections

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Not each server for itself: `Server` takes them for all."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, with a protocol of ours, under TLS of ours."""
        await self.lifespan.startup()
        if self.lifespan.should_exit:
            raise _NotStarted
        self.servers = []
        for listener in sockets or []:
            _tell_gone_clients(listener)
            self.servers.append(await self._to_server(listener))  # type: ignore[arg-type]  # as much of one as is used
        self.started = True
        self.answers.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, which in a hurry leaves the application as it is, with its engines and its temporary files."""
        await super().shutdown(sockets)
        if self.force_exit:
            await asyncio.wait([asyncio.ensure_future(self.lifespan.shutdown())], timeout=_HURRIED_END_S)

    async def _to_server(self, listener: socket.socket) -> asyncio.Server | Accepting:
        loop, certificate, backlog = asyncio.get_running_loop(), self.endpoint.certificate, self.config.backlog
        if certificate is not None:
            handshakes = Handshakes(certificate, self._connections, partial(self._to_protocol, is_counted=True))
            return Accepting(listener, handshakes.shake, backlog=backlog)
        if self.endpoint.shared:
            return Accepting(listener, partial(loop.connect_accepted_socket, self._to_buffered), backlog=backlog)
        return await loop.create_server(self._to_buffered, sock=listener, backlog=backlog)

    def _to_buffered(self) -> Buffered:
        return self._to_protocol().buffered

    def _to_protocol(self, *, is_counted: bool = False) -> Guarded:
        return Guarded(self.config, self.server_state, self.lifespan.state, self._connections, is_counted=is_counted)


async def _first(*works: Awaitable[Any]) -> None:
    """Until one of them is done, which raises what it failed with; coroutines among the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for work, task in zip(works, tasks, strict=True):
        if task is not work:
            task.cancel()
    for task in done:
        task.result()


def _tell_gone_clients(listener: socket.socket) -> None:
    """Connections of a listener take over its options (Linux)."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if listener.family != socket.AF_UNIX and hasattr(socket, name):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _log_loss(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody awaited. asyncio's own words would show the error's message, which may quote what a client sent."""
    error = context.get("exception")
    where = f": {to_trace(error)}" if isinstance(error, BaseException) else ""
    log.error("something failed that nobody waited for%s", where)


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Of uvloop's event loops where it is installed, else of asyncio's."""
    if find_spec("uvloop") is None:
        return asyncio.new_event_loop
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
