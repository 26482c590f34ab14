"""A server program that we start: it comes up, is watched, comes back, and never outlives us."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from sightline.engines import Supervised
from sightline.engines.remote.upstream import Address
from sightline.engines.server_process import Launch, ServerProcess
from sightline.errors import EngineUnavailable
from sightline.testing import lives, patience

pytestmark = pytest.mark.anyio

SERVER = """
import os, signal, socket, subprocess, sys, time
where, flags = sys.argv[1], sys.argv[2:]
if "stubborn" in flags:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "child" in flags:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("INFO loading \\x1b[31m" + "x" * 5000, flush=True)
print("ERROR: not so bad", flush=True)
if where.isdecimal():
    server = socket.create_server(("127.0.0.1", int(where)))
else:
    server = socket.socket(socket.AF_UNIX)
    server.bind(where)
    server.listen()
while True:
    connection, _ = server.accept()
    if "hangs" not in flags or os.path.exists(flags[-1]):
        connection.sendall(b"well")
        connection.close()
"""


def launch(*flags: str, unix_socket: bool = True) -> Launch:
    def command(address: Address) -> Sequence[str]:
        where = address.socket or address.base_url.rpartition(":")[2].partition("/")[0]
        return [sys.executable, "-c", SERVER, where, *flags]

    return Launch(command, unix_socket=unix_socket)


async def is_well(server: ServerProcess) -> bool:
    try:
        async with asyncio.timeout(0.5):
            if server.address.socket is not None:
                reader, writer = await asyncio.open_unix_connection(server.address.socket)
            else:
                port = int(server.address.base_url.rpartition(":")[2].partition("/")[0])
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                return await reader.read() == b"well"
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


@asynccontextmanager
async def running(*flags: str, unix_socket: bool = True, **options: Any) -> AsyncIterator[ServerProcess]:
    server = ServerProcess("m", launch(*flags, unix_socket=unix_socket), start_timeout_s=20.0, **options)
    await server.start(lambda: is_well(server), lambda: None)
    try:
        yield server
    finally:
        await server.close()


def processes(server: ServerProcess) -> list[psutil.Process]:
    """The guard, the server, and what that has started."""
    guard = psutil.Process(server.pid)
    return [guard, *guard.children(recursive=True)]


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s * patience()):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("unix_socket", [True, False])
async def test_from_start_to_close(unix_socket: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    server = ServerProcess("m", launch("child", unix_socket=unix_socket), start_timeout_s=20.0)
    assert isinstance(server, Supervised)
    assert server.state == "unloaded"
    with pytest.raises(EngineUnavailable):
        await server.ready()
    starts: list[int] = []
    await server.start(lambda: is_well(server), lambda: starts.append(1))
    await server.ready()
    assert (server.state, server.restarts, starts) == ("ready", 0, [1])
    all_of_it = processes(server)
    assert len(all_of_it) == 3
    assert all(os.getsid(process.pid) == server.pid for process in all_of_it), "Ctrl-C is for us"
    await server.close()
    await server.close()
    await until(
        lambda: not any(lives(process) for process in all_of_it), 2.0
    )  # killed by now; gone when the kernel is done
    assert server.state == "failed"
    with pytest.raises(EngineUnavailable):
        await server.ready()
    said = {record.message: record.levelname for record in caplog.records}
    assert said["model m: ERROR: not so bad"] == "ERROR"
    (loading,) = (message for message in said if "loading" in message and "has ended" not in message)
    assert said[loading] == "INFO"
    assert len(loading) < 2_100
    assert "\x1b" not in loading


async def test_it_comes_back_and_who_asks_meanwhile_waits() -> None:
    async with running() as server:
        for deaths in (1, 2):
            server.served()
            victim = processes(server)[1]
            victim.kill()
            await until(lambda: server.state == "loading")
            await server.ready()
            assert server.restarts == deaths
            assert await is_well(server)
            assert processes(server)[1] != victim


async def test_who_asks_is_told_which_process_died_under_it() -> None:
    async with running() as server:
        with pytest.raises(EngineUnavailable) as alive:
            async with server.asked():
                raise EngineUnavailable("broken, but it lives")
        assert alive.value.died is None
        died = []
        for _ in range(2):
            with pytest.raises(EngineUnavailable) as dead:
                async with server.asked():
                    os.kill(processes(server)[1].pid, signal.SIGKILL)
                    raise EngineUnavailable("broken off")
            died.append(dead.value.died)
            await server.ready()
        assert None not in died
        assert len(set(died)) == 2


async def test_a_killed_guard_takes_its_server_along() -> None:
    async with running() as server:
        server.served()
        guard, program = processes(server)
        guard.kill()
        await until(lambda: server.restarts == 1)
        await server.ready()
        await until(lambda: not lives(program), 1.0)


async def test_a_server_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    marker = tmp_path / "well"
    marker.touch()
    async with running("hangs", str(marker), hang_timeout_s=0.3) as server:
        server.served()
        marker.unlink()
        await until(lambda: server.state == "loading")
        marker.touch()
        await until(lambda: server.state == "ready")
        assert server.restarts == 1


async def test_one_that_does_not_end_by_itself_is_killed() -> None:
    server = ServerProcess("m", launch("stubborn", "child"), start_timeout_s=20.0, stop_grace_s=0.2)
    await server.start(lambda: is_well(server), lambda: None)
    all_of_it = processes(server)
    began = time.perf_counter()
    await server.close()
    assert 0.2 < time.perf_counter() - began < 5.0
    await until(
        lambda: not any(lives(process) for process in all_of_it), 2.0
    )  # killed by now; gone when the kernel is done


async def test_one_that_is_not_ready_in_time(tmp_path: Path) -> None:
    server = ServerProcess("m", launch("hangs", str(tmp_path / "never")), start_timeout_s=0.8)
    began = time.perf_counter()
    with pytest.raises(EngineUnavailable, match=r"within 0\.8 s"):
        await server.start(lambda: is_well(server), lambda: None)
    assert time.perf_counter() - began < 8.0
    assert server.state == "failed"
    await server.close()


_PARENT = """
import asyncio, sys
from tests.engines.test_server_process import is_well, processes, running

async def main():
    async with running("stubborn", "child") as server:
        print(*(process.pid for process in processes(server)), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_it_dies_with_its_parent(how: signal.Signals) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _PARENT, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parent.parent.parent
    )
    assert parent.stdout is not None
    try:
        line = await asyncio.wait_for(parent.stdout.readline(), 60.0)
        orphans = [psutil.Process(int(pid)) for pid in line.split()]
        assert len(orphans) == 3
    finally:
        with contextlib.suppress(ProcessLookupError):
            parent.send_signal(how)
        await parent.wait()
    await until(lambda: not any(lives(orphan) for orphan in orphans), 1.0)
