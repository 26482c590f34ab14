"""What more front ends bring, and who notices when they are replaced: `python -m sightline.bench.frontends`.

Starts `sightline serve` with the engine `fake` and one front end, then with two, and prints for each

    requests a second, and CPU of all server processes for each: questions of 2 KB, with a picture of 200 KB or
    2 MB that is known, streams of 64 chunks
    1,000 streams at once of 64 chunks, a chunk every half second: how many were whole, the 99th percentile of the time
    between two chunks (beside the half second), and of `/health` meanwhile

and for two: how connections that come at once are divided, and figure 20 of the safety page: 1,000 requests, half of
them on connections that are kept, while every front end is replaced three times.

Clients and server share the machine's cores: quote ratios of one run. With `--streams 0` the streams are left out.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil  # type: ignore[import-untyped, unused-ignore]
from PIL import Image

_CONFIG = """
workers: {workers}
port: 0
log_level: warning
data_dir: {directory}
models:
  - name: fake
    engine: fake
    max_concurrent: 1200
    max_queue: 4000
  - name: paced
    engine: fake
    max_concurrent: 1200
    max_queue: 4000
    options: {{step_s: {step_s}, prefill_chunk: 100000}}
"""
_READY_S = 60.0
_LOOK_S = 0.1
_LENGTH = re.compile(rb"\r\ncontent-length:\s*(\d+)", re.IGNORECASE)
_END = b"0\r\n\r\n"
_HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


# --- the server ------------------------------------------------------------------------------------------------------


_ROLES = {
    "front ends": " front ",
    "core": " core ",
    "engine": "sightline.engines.worker",
    "decoders": "decoder_process",
}
"""By a part of the command line; `server` is the process that was started."""


@dataclass
class Server:
    process: psutil.Process
    port: int
    log: Path

    def family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def fronts(self) -> list[psutil.Process]:
        """The processes that answer HTTP."""
        found = [child for child in self.process.children() if " front " in _command(child)]
        return found or [self.process]

    def cpu_s(self) -> Counter[str]:
        """Used so far by its processes that live, by what they are."""
        used: Counter[str] = Counter()
        for process in self.family():
            try:
                times, command = process.cpu_times(), _command(process)
            except psutil.Error:
                continue
            role = next((role for role, mark in _ROLES.items() if mark in command), "server")
            used[role] += times.user + times.system
        return used


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


@contextmanager
def serving(workers: int, step_s: float) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="sightline-bench-") as directory:
        file, log = Path(directory) / "sightline.yaml", Path(directory) / "log"
        file.write_text(_CONFIG.format(workers=workers, directory=directory, step_s=step_s))
        command = [sys.executable, "-m", "sightline.cli", "serve", str(file)]
        with log.open("w") as err:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True)
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2].removesuffix("/v1\n"))
            asyncio.run(_until_ready(port))
            yield Server(psutil.Process(process.pid), port, log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
        if errors := log.read_text():
            print("the server's log:", errors[:2000], file=sys.stderr)


async def _until_ready(port: int) -> None:
    until = time.monotonic() + _READY_S
    while time.monotonic() < until:
        try:
            if (await get(port, "/ready"))[0] == 200:
                return
        except OSError:
            pass
        await asyncio.sleep(0.05)
    raise TimeoutError("the server is not ready")


# --- clients ---------------------------------------------------------------------------------------------------------


class Connection(asyncio.Protocol):
    """A connection that is kept, and the answer that comes on it."""

    def __init__(self) -> None:
        self.closes = False
        """The server has said that it closes it."""
        self._answer: asyncio.Future[bytes] | None = None
        self._data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    async def ask(self, request: bytes) -> bytes:
        """The whole answer. Raises `OSError` where the connection ends before it."""
        if self._transport.is_closing():
            raise ConnectionResetError("closed while idle")
        self.pieces: list[float] = []
        self._data.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        self.pieces.append(time.perf_counter())
        self._data += data
        if self._answer is None or self._answer.done() or not self._is_whole():
            return
        self.closes = b"connection: close" in bytes(self._data[:2048]).lower()
        self._answer.set_result(bytes(self._data))

    def _is_whole(self) -> bool:
        head = self._data.find(b"\r\n\r\n", 0, 4096)
        if head < 0:
            return False
        length = _LENGTH.search(self._data, 0, head)
        if length is None:
            return self._data.endswith(_END)
        return len(self._data) >= head + 4 + int(length[1])

    def connection_lost(self, error: Exception | None) -> None:
        self.closes = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("closed before the answer was whole"))


async def connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, "127.0.0.1", port)
    return connection


def post(body: bytes, *, close: bool = False) -> bytes:
    last = "Connection: close\r\n" if close else ""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n{last}Content-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def get(port: int, path: str) -> tuple[int, bytes]:
    connection = await connect(port)
    try:
        answer = await connection.ask(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    finally:
        connection.close()
    return int(answer[9:12]), answer.partition(b"\r\n\r\n")[2]


def question(text: str, *, model: str = "fake", picture: str | None = None, stream: bool = False) -> bytes:
    content: list[dict[str, object]] = [{"type": "text", "text": text}]
    if picture is not None:
        content.append({"type": "image_url", "image_url": {"url": picture}})
    body = {"model": model, "stream": stream, "messages": [{"role": "user", "content": content}]}
    return json.dumps(body).encode()


def noise(num_bytes: int) -> str:
    """A PNG of about this size, as a data: URL."""
    side = int((num_bytes / 3) ** 0.5)
    pixels = np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# --- throughput ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    name: str
    request: bytes
    clients: int
    part: bytes
    """Of every answer."""


def cases() -> list[Case]:
    words = "[[fake: say " + "word " * 16 + "]]"
    chunks = "[[fake: length 64]]"
    known, large = noise(200_000), noise(2_000_000)
    return [
        Case("2 KB", post(question("x" * 1800 + words)), 16, b"word word"),
        Case("200 KB, a known picture", post(question(words, picture=known)), 8, b"word word"),
        Case("2 MB, a known picture", post(question(words, picture=large)), 8, b"word word"),
        Case("stream of 64 chunks", post(question(chunks, stream=True)), 16, b"[DONE]"),
    ]


@dataclass
class Rate:
    requests_per_s: float
    cpu_ms: dict[str, float]
    """For each, by what the process is."""
    p99_ms: float


async def measure(server: Server, case: Case, seconds: float) -> Rate:
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def client() -> None:
        connection = await connect(server.port)
        while (began := time.perf_counter()) < until:
            answer = await connection.ask(case.request)
            assert answer[9:12] == b"200", answer[:500]
            assert case.part in answer, answer[:500]
            took.append(time.perf_counter() - began)
        connection.close()

    cpu, began = server.cpu_s(), time.perf_counter()
    await asyncio.gather(*(client() for _ in range(case.clients)))
    wall = time.perf_counter() - began
    used = {role: seconds / len(took) * 1e3 for role, seconds in (server.cpu_s() - cpu).items()}
    return Rate(len(took) / wall, used, quantile(took, 0.99) * 1e3)


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


# --- many streams ----------------------------------------------------------------------------------------------------


@dataclass
class Streams:
    whole: int = 0
    broken: int = 0
    at_once: int = 0
    gaps_s: list[float] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0


async def stream_many(server: Server, count: int, chunks: int, step_s: float) -> Streams:
    """They begin one after the other in a third of the time that each takes, and are all under way in the next."""
    told = Streams()
    request = post(question(f"[[fake: length {chunks}]]", model="paced", stream=True), close=True)
    between_s = chunks * step_s / 3 / count
    under_way = 0

    async def one(number: int) -> None:
        nonlocal under_way
        await asyncio.sleep(number * between_s)
        under_way += 1
        told.at_once = max(told.at_once, under_way)
        try:
            connection = await connect(server.port)
            answer = await connection.ask(request)
        except OSError:
            told.broken += 1
            return
        finally:
            under_way -= 1
        is_whole = b"[DONE]" in answer[-64:] and answer.count(b'"content":') >= chunks
        told.whole += is_whole
        told.broken += not is_whole
        told.gaps_s += [b - a for a, b in zip(connection.pieces[1:-1], connection.pieces[2:], strict=False)]

    async def watch() -> None:
        while True:
            began = time.perf_counter()
            status, _ = await get(server.port, "/health")
            assert status == 200
            told.health_s.append(time.perf_counter() - began)
            await asyncio.sleep(0.05)

    cpu, began = server.cpu_s(), time.perf_counter()
    watching = asyncio.create_task(watch())
    await asyncio.gather(*(one(number) for number in range(count)))
    watching.cancel()
    told.wall_s, told.cpu_s = time.perf_counter() - began, (server.cpu_s() - cpu).total()
    return told


# --- front ends ------------------------------------------------------------------------------------------------------


async def divide(server: Server, count: int) -> list[int]:
    """How many of so many connections, opened at once, each front end has."""
    connections = await asyncio.gather(*(connect(server.port) for _ in range(count)))
    await asyncio.gather(*(connection.ask(_HEALTH) for connection in connections))
    shares = []
    for front in server.fronts():
        ours = [c for c in front.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]
        shares.append(sum(c.laddr.port == server.port for c in ours))
    for connection in connections:
        connection.close()
    return sorted(shares)


async def replace(server: Server, rounds: int, requests: int) -> tuple[Counter[str], float]:
    """Figure 20: what became of so many requests, while front ends are replaced one after the other, so many times."""
    outcomes: Counter[str] = Counter()
    request = post(question("[[fake: say hello there]]"))
    began = time.perf_counter()
    ended = asyncio.Event()

    def goes_on() -> bool:
        return not ended.is_set() or sum(outcomes.values()) < requests

    async def client(*, keeps: bool) -> None:
        """Asks now and then, as people's programs do: a kept connection is idle for a moment between two requests."""
        connection: Connection | None = None
        number = 0
        while goes_on():
            number += 1
            try:
                if connection is None or connection.closes or not keeps:
                    connection = await connect(server.port)
                answer = await connection.ask(request)
                outcomes["ok" if answer[9:12] == b"200" and b"hello there" in answer else str(answer[9:12])] += 1
                if not keeps:
                    connection.close()
            except OSError as error:
                outcomes[str(error) or type(error).__name__] += 1
                connection = None
            await asyncio.sleep(0.01 * (number % 5))

    async def replaces() -> None:
        for _ in range(rounds):
            await _replaced(server)
        ended.set()

    await asyncio.gather(replaces(), *(client(keeps=number % 2 == 0) for number in range(8)))
    return outcomes, time.perf_counter() - began


async def _replaced(server: Server) -> None:
    """Returns when none of its front ends is left of those that there are now."""
    left = set(server.fronts())
    server.process.send_signal(signal.SIGHUP)
    while left:
        left &= set(await asyncio.to_thread(server.fronts))
        await asyncio.sleep(_LOOK_S)


# --- report ----------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each rate")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--chunks", type=int, default=64)
    parser.add_argument("--step-s", type=float, default=0.5, help="between two chunks of a stream")
    parser.add_argument("--rounds", type=int, default=3, help="of replacing all front ends")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before\n")
    for workers in args.workers:
        with serving(workers, args.step_s) as server:
            print(f"## --workers {workers}\n")
            asyncio.run(_report(server, args, workers))


async def _report(server: Server, args: argparse.Namespace, workers: int) -> None:
    print("| | requests/s | CPU ms each | p99 ms |\n|---|---|---|---|")
    for case in cases():
        await measure(server, case, 1.0)  # warm
        rate = await measure(server, case, args.seconds)
        parts = ", ".join(f"{role} {ms:.2f}" for role, ms in sorted(rate.cpu_ms.items()) if ms >= 0.005)
        total = sum(rate.cpu_ms.values())
        print(f"| {case.name} | {rate.requests_per_s:.0f} | {total:.2f} ({parts}) | {rate.p99_ms:.1f} |", flush=True)
    print()
    if args.streams:
        told = await stream_many(server, args.streams, args.chunks, args.step_s)
        print(
            f"{args.streams} streams of {args.chunks} chunks, one every {args.step_s} s, {told.at_once} of them at "
            f"once: {told.whole} whole, "
            f"{told.broken} broken, in {told.wall_s:.1f} s, {told.cpu_s:.1f} s of CPU; between chunks median "
            f"{statistics.median(told.gaps_s):.3f} s, p99 {quantile(told.gaps_s, 0.99):.3f} s, longest "
            f"{max(told.gaps_s):.3f} s; /health p50 {quantile(told.health_s, 0.5) * 1e3:.1f} ms, "
            f"p99 {quantile(told.health_s, 0.99) * 1e3:.1f} ms",
            flush=True,
        )
    if workers > 1:
        print(f"200 connections at once: {await divide(server, 200)}", flush=True)
        outcomes, took = await replace(server, args.rounds, 1000)
        print(f"{args.rounds} times all front ends replaced in {took:.1f} s: {dict(outcomes)}")
    print(flush=True)


if __name__ == "__main__":
    main()
