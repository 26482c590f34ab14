"""A server program that runs a model for us: started, watched, started again, ended.

    ServerProcess         keeps one running; waits for it; what engines hold
        RestartPolicy     (worker/restarts.py) when to start it again
        _Run              one process of it
        server_guard.py   what stands between, so that nothing outlives us

The program runs in a session of its own, with an environment cut to what it needs, and listens where nobody else does:
on a Unix socket in a directory that is ours alone, or on a free port of the loopback interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sightline.engines import EngineState, server_guard
from sightline.engines.remote.upstream import Address, stopped
from sightline.engines.worker.output import printable_lines
from sightline.engines.worker.restarts import RestartPolicy
from sightline.errors import EngineError, EngineUnavailable

log = logging.getLogger(__name__)

_POLL_S = 0.1
_WATCH_S = 5.0
"""Between looks at a server that is up."""
_EXIT_TO_EOF_S = 0.5
_DOUBT_S = 0.5
"""Between a server's broken connection and the word that it has ended."""
_LAST_LINES = 40
_LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL)\b")
_LEVEL_WITHIN = 60
"""Characters of a line in which its level stands, if it has one."""

KEPT_VARIABLES = (
    "PATH", "HOME", "USER", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_HOME",
    "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_CACHE",
    "XDG_CACHE_HOME", "OMP_NUM_THREADS",
)  # fmt: skip
"""What a server needs of our environment. The rest, keys among it, is passed on only where the operator says so."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started."""

    command: Callable[[Address], Sequence[str]]
    """The program and its arguments, for where it is to listen."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables it gets."""
    pass_on: Sequence[str] = ()
    """Names of variables of ours that it gets, beside `KEPT_VARIABLES`."""
    unix_socket: bool = True
    """Whether it can listen on one."""


class ServerProcess:
    """Life: made -> `start` -> any number of `ready` -> `close`. `Supervised`. Used from one event loop.

    Its address stays the same however often it is started.
    """

    def __init__(
        self,
        name: str,
        launch: Launch,
        *,
        start_timeout_s: float,
        restarts: RestartPolicy | None = None,
        stop_grace_s: float = 10.0,
        hang_timeout_s: float = 60.0,
    ) -> None:
        """`name` is the model's, for the log. `stop_grace_s`: between the gentle end and the other.
        `hang_timeout_s`: a server that has not been well for so long is killed."""
        self._name = name
        self._launch = launch
        self._start_timeout_s = start_timeout_s
        self._policy = restarts or RestartPolicy()
        self._stop_grace_s = stop_grace_s
        self._hang_timeout_s = hang_timeout_s
        self._directory = Path(tempfile.mkdtemp(prefix="sightline-")) if launch.unix_socket else None
        self.address = _address(self._directory)
        self._is_well: Callable[[], Awaitable[bool]] | None = None
        self._on_start: Callable[[], None] = lambda: None
        self._run: _Run | None = None
        self._up: asyncio.Future[bool] | None = None
        """Pending while it is being started; True when it is ready; False when there is none to wait for."""
        self._supervisor: asyncio.Task[EngineUnavailable] | None = None
        self._restarts = 0
        self._was_ready = False
        self._served = False

    @property
    def state(self) -> EngineState:
        """`failed`: given up for now, or closed."""
        if self._up is None:
            return "unloaded"
        if not self._up.done():
            return "loading"
        return "ready" if self._up.result() else "failed"

    @property
    def restarts(self) -> int:
        return self._restarts

    @property
    def pid(self) -> int | None:
        """Of the guard that leads its process group."""
        return self._run.pid if self._run is not None and not self._run.ended.done() else None

    def served(self) -> None:
        """It has answered a request: should it die, it is worth having back at once."""
        self._served = True

    async def start(self, is_well: Callable[[], Awaitable[bool]], on_start: Callable[[], None]) -> None:
        """Returns when it is ready. `is_well` asks it; `EngineError` is a no. `on_start`: a new one is being started.

        Raises `EngineUnavailable` when it ends, twice, or is not ready in time; the log has its last words.
        """
        self._is_well, self._on_start = is_well, on_start
        up = self._up = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(), name=f"supervisor of {self._name}")
        await asyncio.wait({up, self._supervisor}, return_when=asyncio.FIRST_COMPLETED)
        if not up.done() or not up.result():
            await asyncio.wait({self._supervisor})
            raise stopped() if self._supervisor.cancelled() else self._supervisor.result()

    async def ready(self) -> None:
        """Waits for one that is being started. Raises `EngineUnavailable` when there is none to wait for."""
        if self._up is None:
            raise EngineUnavailable("The engine has not been started.")
        if not self._up.done():
            await asyncio.wait({self._up}, timeout=self._start_timeout_s)
        if not self._up.done():
            raise EngineUnavailable("The engine is still being started.")
        if not self._up.result():
            running = self._supervisor is not None and not self._supervisor.done()
            raise EngineUnavailable("The engine is not running.") if running else stopped()

    @asynccontextmanager
    async def asked(self) -> AsyncIterator[None]:
        """Around whatever asks it. Waits for one that is being started, like `ready`.

        When it ends under what is asked, `EngineError.died` says which one it was; the error comes when that is known,
        so that who tries again finds the next one.
        """
        await self.ready()
        run = self._run
        try:
            yield
        except EngineError as error:
            if run is not None:
                await asyncio.wait({run.ended}, timeout=_DOUBT_S)
                error.died = run.pid if run.ended.done() else None
            raise

    async def close(self) -> None:
        """The server has `stop_grace_s` to end by itself. Idempotent."""
        if self._supervisor is not None:
            self._set_up(False)
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
        if self._directory is not None:
            await asyncio.to_thread(shutil.rmtree, self._directory, ignore_errors=True)

    # --- supervision ---------------------------------------------------------------------------------------------

    async def _supervise(self) -> EngineUnavailable:
        try:
            return await self._run_servers()
        except Exception:
            log.exception("a bug in the supervision of model %s", self._name)
            self._set_up(False)
            return EngineUnavailable("The engine is not running.")

    async def _run_servers(self) -> EngineUnavailable:
        """One after the other; returns only if the first one cannot load."""
        while True:
            run = self._run = _Run(self._name)
            self._served = False
            self._on_start()
            problem, ready_at = None, None
            try:
                await run.start(self._launch, self.address)
                await self._until_ready(run)
                ready_at = time.monotonic()
                self._was_ready = True
                self._set_up(True)
                await self._watch(run)
            except EngineUnavailable as error:
                problem = error
            finally:
                self._lost()
                ended = await run.stop(self._stop_grace_s)
            self._report(run, ended, problem)
            if not self._was_ready and problem is not None and (run.overdue or self._restarts):
                self._set_up(False)
                return problem
            now = time.monotonic()
            restart = self._policy.died(now, served=self._served, up_s=now - ready_at if ready_at else 0.0)
            if restart.gives_up:
                log.error("model %s: its server only dies; the next try is in %g s", self._name, restart.delay_s)
                self._set_up(False)
            await asyncio.sleep(restart.delay_s)
            self._restarts += 1
            if restart.gives_up:
                self._lost()

    async def _until_ready(self, run: _Run) -> None:
        """Raises `EngineUnavailable` when it ends or takes too long."""
        deadline = time.monotonic() + self._start_timeout_s
        while not await self._well():
            if run.ended.done():
                raise EngineUnavailable("The model's server ended while it was loading. The server's log says why.")
            if time.monotonic() > deadline:
                run.overdue = True
                raise EngineUnavailable(f"The model's server was not ready within {self._start_timeout_s:g} s.")
            await asyncio.wait({run.ended}, timeout=_POLL_S)

    async def _watch(self, run: _Run) -> None:
        """Returns when it has ended, or has not been well for too long and must be."""
        well_at = time.monotonic()
        while not run.ended.done():
            await asyncio.wait({run.ended}, timeout=min(_WATCH_S, self._hang_timeout_s))
            if run.ended.done() or await self._well():
                well_at = time.monotonic()
            elif time.monotonic() - well_at > self._hang_timeout_s:
                log.error("model %s: its server has not answered for %g s", self._name, self._hang_timeout_s)
                return

    async def _well(self) -> bool:
        assert self._is_well is not None
        try:
            return await self._is_well()
        except EngineError:
            return False

    def _report(self, run: _Run, ended: str, problem: EngineUnavailable | None) -> None:
        last = "; its last lines:\n  " + "\n  ".join(run.last_lines) if run.last_lines else ""
        because = f" ({problem})" if problem is not None else ""
        log.error("model %s: its server's process has ended: %s%s%s", self._name, ended, because, last)

    def _lost(self) -> None:
        """From now on requests wait for the next one."""
        if self._up is not None and self._up.done() and not self._closing:
            self._up = asyncio.get_running_loop().create_future()

    @property
    def _closing(self) -> bool:
        return self._supervisor is not None and self._supervisor.cancelling() > 0

    def _set_up(self, is_up: bool) -> None:
        assert self._up is not None
        if self._up.done():
            self._up = asyncio.get_running_loop().create_future()
        self._up.set_result(is_up)


class _Run:
    """One process of the server, and its guard."""

    def __init__(self, name: str) -> None:
        self.pid: int | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.overdue = False
        self.last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._name = name
        self._ours: socket.socket | None = None
        self._exit: asyncio.Task[int] | None = None
        self._output: asyncio.Task[None] | None = None

    async def start(self, launch: Launch, address: Address) -> None:
        if address.socket is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(address.socket)  # of one that was killed
        self._ours, theirs = socket.socketpair()
        self._ours.setblocking(False)
        kept = {*KEPT_VARIABLES, *launch.pass_on}
        environment = {name: value for name, value in os.environ.items() if name in kept}
        with theirs:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", server_guard.__file__, str(theirs.fileno()), *launch.command(address),
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
                pass_fds=(theirs.fileno(),), start_new_session=True, env={**environment, **launch.environment},
            )  # fmt: skip
        self.pid = process.pid
        self._exit = asyncio.create_task(process.wait())
        self._exit.add_done_callback(self._on_exit)
        assert process.stdout is not None
        self._output = asyncio.create_task(self._log_output(process.stdout))

    def _on_exit(self, _: asyncio.Task[int]) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    async def stop(self, grace_s: float) -> str:
        """Ends the server, and whatever it started; says how it ended."""
        if self._ours is None or self._exit is None:
            return "it never ran"
        try:
            if not self._exit.done():
                with contextlib.suppress(OSError):
                    self._ours.send(b"T")
                await asyncio.wait({self._exit}, timeout=0.0 if self.overdue else grace_s)
        finally:
            self._kill()
            status = await self._exit
            if self._output is not None:
                await asyncio.wait({self._output}, timeout=_EXIT_TO_EOF_S)
                self._output.cancel()
            told = self._told()
            self._ours.close()
        return f"exit status {told}" if told is not None else f"killed ({status})"

    def _kill(self) -> None:
        """The whole group, which has its number for as long as the guard that leads it has not been waited for."""
        if self.pid is not None and self._exit is not None and not self._exit.done():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def _told(self) -> int | None:
        """The server's own exit status, from the guard."""
        assert self._ours is not None
        try:
            return int(self._ours.recv(16))
        except (OSError, ValueError):
            return None

    async def _log_output(self, output: asyncio.StreamReader) -> None:
        async for line in printable_lines(output):
            self.last_lines.append(line)
            found = _LEVEL.search(line[:_LEVEL_WITHIN])
            level = logging.getLevelNamesMapping().get(found[1], logging.INFO) if found else logging.INFO
            log.log(level, "model %s: %s", self._name, line)


def _address(directory: Path | None) -> Address:
    if directory is not None:
        return Address("http://localhost/v1", str(directory / "server.sock"))  # llama.cpp goes by the suffix
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return Address(f"http://127.0.0.1:{probe.getsockname()[1]}/v1")
