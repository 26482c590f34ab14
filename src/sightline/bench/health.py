"""How long `/health` takes while clients send photographs: `python -m sightline.bench.health`, or `make bench-health`.

Starts a server of its own on the fake engine. Sixteen clients, in a process of their own, each send one 5 MB JPEG after
another as base64 in JSON, no two files alike, so that none is answered from a cache. This process meanwhile asks for
`/health` on new connections and on one that is kept, and prints for each phase: quantiles of the answer's time, how
late the server's event loop woke (from its own histogram), and the CPU time of the server and what it has started.

All processes share this machine's cores, with whatever else runs there. So the same is asked in turn of a bare server,
which has nothing else to do: what it takes is the machine's doing, and only what exceeds it is the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import http.client
import io
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import numpy as np
from PIL import Image

from sightline.bench.serve import exchange, lag_buckets, quantile_bound

_TICKS = os.sysconf("SC_CLK_TCK")
_PAUSE_S = 0.01
HOST = "127.0.0.1"


def photograph(num_bytes: int) -> bytes:
    """A JPEG of at least that size, 4:3, of waves and noise; what follows its end does not matter to decoders."""
    side = np.arange(3200)
    waves = 127 + 90 * np.sin(side[:, None] / 90) * np.cos(side[None, :] / 70)
    noise = np.random.default_rng(0).normal(0, 18, (2400, 3200, 3))
    pixels = np.clip(waves[:2400, :, None] + noise, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    quality = 80
    while file.tell() < num_bytes and quality <= 95:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality)
        quality += 3
    return file.getvalue().ljust(num_bytes, b"\0")


def body_of(file: bytes) -> tuple[bytes, bytes]:
    """A request about the picture, in two parts, between which 16 characters of base64 make the file a new one."""
    content = [
        {"type": "image_url", "image_url": {"url": "data:image/jpeg;base64,HERE"}},
        {"type": "text", "text": "What is this?"},
    ]
    request = {"model": "fake", "max_tokens": 4, "messages": [{"role": "user", "content": content}]}
    before, _, after = json.dumps(request).partition("HERE")
    whole = file[: len(file) // 3 * 3]
    return before.encode() + base64.b64encode(whole), after.encode()


def serve_bare(ports: Connection) -> None:
    """Runs in a process of its own until it is ended: the least that an answer on this machine can take."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(answer, HOST, 0)
        ports.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


def send_photographs(port: int, clients: int, num_bytes: int, answered: Synchronized[int]) -> None:
    """Runs in a process of its own until it is ended."""
    head, tail = body_of(photograph(num_bytes))
    numbers = itertools.count()

    async def client() -> None:
        while True:
            body = b"".join((head, f"{next(numbers):016d}".encode(), tail))
            async for _ in exchange(HOST, port, "POST", "/v1/chat/completions", body):
                pass
            answered.value += 1

    async def all_clients() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    asyncio.run(all_clients())


@dataclass
class Phase:
    name: str
    new_s: list[float]
    """Seconds of an answer on a new connection."""
    kept_s: list[float]
    bare_s: list[float]
    """Of the bare server, on a new connection."""
    lag_p99_s: float
    wall_s: float
    cpu_s: dict[str, float]
    """By whose processes."""
    answered: int = 0

    def row(self) -> str:
        def ms(values: list[float], share: float) -> str:
            return f"{np.quantile(values, share) * 1000:8.2f}"

        cells = [ms(values, share) for values in (self.new_s, self.kept_s, self.bare_s) for share in (0.5, 0.99, 1.0)]
        cpu = "  ".join(f"{whose} {seconds / self.wall_s:.2f}" for whose, seconds in self.cpu_s.items())
        rate = self.answered / self.wall_s
        return f"{self.name:>9} {' '.join(cells)} {self.lag_p99_s * 1000:9.1f} {rate:10.1f}   {cpu}"


HEADER = (
    "               new connection (ms)         kept connection (ms)     bare server, new conn. (ms)"
    "  loop lag  pictures/s   CPU (cores)\n"
    "               p50      p99      max      p50      p99      max      p50      p99      max   p99 (ms)"
)


@dataclass(frozen=True)
class Target:
    port: int
    pid: int
    bare_port: int


def measure(name: str, target: Target, seconds: float, load: _Load | None = None) -> Phase:
    port, server = target.port, target.pid
    lag = asyncio.run(lag_buckets(HOST, port))
    cpu, answered = _cpu_s(server), load.answered.value if load else 0
    kept = http.client.HTTPConnection(HOST, port)
    new_s: list[float] = []
    kept_s: list[float] = []
    bare_s: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        new_s.append(_health(http.client.HTTPConnection(HOST, port), close=True))
        bare_s.append(_health(http.client.HTTPConnection(HOST, target.bare_port), close=True))
        kept_s.append(_health(kept))
        time.sleep(_PAUSE_S)
    wall_s = time.perf_counter() - began
    kept.close()
    spent = {whose: after - cpu.get(whose, 0.0) for whose, after in _cpu_s(server).items()}
    lag_p99_s = quantile_bound(lag, asyncio.run(lag_buckets(HOST, port)), 0.99)
    done = load.answered.value - answered if load else 0
    return Phase(name, new_s, kept_s, bare_s, lag_p99_s, wall_s, spent, done)


def _health(connection: http.client.HTTPConnection, *, close: bool = False) -> float:
    began = time.perf_counter()
    connection.request("GET", "/health")
    reply = connection.getresponse()
    reply.read()
    taken = time.perf_counter() - began
    if close:
        connection.close()
    assert reply.status == 200
    return taken


def start_bare() -> int:
    """Gives the port."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    spawn.Process(target=serve_bare, args=(theirs,), daemon=True).start()
    port: int = ours.recv()
    return port


@dataclass
class _Load:
    process: multiprocessing.context.SpawnProcess
    answered: Synchronized[int]


def start_load(port: int, clients: int, num_bytes: int) -> _Load:
    """Returns once the first pictures have been answered."""
    spawn = multiprocessing.get_context("spawn")
    answered: Synchronized[int] = spawn.Value("i", 0)
    process = spawn.Process(target=send_photographs, args=(port, clients, num_bytes, answered), daemon=True)
    process.start()
    while answered.value < clients:
        if not process.is_alive():
            raise SystemExit("The clients ended: the server refused a picture, or is gone.")
        time.sleep(0.05)
    return _Load(process, answered)


def _cpu_s(server: int) -> dict[str, float]:
    """CPU seconds so far of the server, and of the processes that it has started. Linux only; elsewhere empty."""
    seconds: dict[str, float] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            pid, fields = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
        except (OSError, ValueError):
            continue
        if pid == server:
            whose = "server"
        elif int(fields[1]) == server:
            whose = "decoders" if b"decoder" in command else "engine"
        else:
            continue
        seconds[whose] = seconds.get(whose, 0.0) + (int(fields[11]) + int(fields[12])) / _TICKS
    return seconds


def main(args: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "sightline.cli", "serve", "--engine", "fake", "--port", "0"]
    command += ["--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline().rpartition(":")[2].partition("/")[0])
            while not _is_ready(port):
                time.sleep(0.05)
            target = Target(port, server.pid, start_bare())
            print(f"{args.clients} clients, {args.megabytes:g} MB a picture; {os.cpu_count()} cores\n{HEADER}")
            print(measure("idle", target, args.seconds).row(), flush=True)
            load = start_load(port, args.clients, int(args.megabytes * 1e6))
            print(measure("loaded", target, args.seconds, load).row(), flush=True)
            load.process.kill()
        finally:
            server.terminate()


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--megabytes", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase")
    main(parser.parse_args())
