"""What `/health` notices of bodies that are very large, deep or many-membered: `python -m tests.server.giants`."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.reliability.serving import fake, serving

MIB = 1024 * 1024
_GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
_START = b'{"model":"m","messages":['
BODIES: dict[str, tuple[int, Callable[[], bytes]]] = {
    "100 MB": (413, lambda: _START + b" " * 100 * MIB),
    "60 MiB of spaces": (400, lambda: _START + b" " * 60 * MIB),
    "60 MiB of one string": (400, lambda: _START + b'"' + b"a" * 60 * MIB + b'"]}'),
    "60 MiB of brackets": (400, lambda: b"[" * 60 * MIB),
    "depth 10^6": (400, lambda: _START + b"[" * 10**6 + b"]" * 10**6 + b"]}"),
    "depth 10^6, objects": (400, lambda: b'{"a":' * 10**6 + b"1" + b"}" * 10**6),
    "10^6 keys": (400, lambda: b"{" + b",".join(b'"k%d":1' % i for i in range(10**6)) + b"}"),
    "40,000 keys": (400, lambda: b"{" + b",".join(b'"k%d":1' % i for i in range(40_000)) + b"}"),
    "10^6 messages": (400, lambda: _START + b",".join([b"{}"] * 10**6) + b"]}"),
    "integer of 5,000 digits": (400, lambda: b'{"model":"m","n":' + b"9" * 5000 + b"}"),
    "integer of 10^6 digits": (400, lambda: b'{"model":"m","n":' + b"9" * 10**6 + b"}"),
    "10^6 escapes": (400, lambda: b'{"model":"' + b"\\u0041" * 10**6 + b'"}'),
}
"""The status that each gets, and what makes it."""


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    status: int
    took_s: float
    health_s: float
    """The longest that `/health` took beside it."""

    def __str__(self) -> str:
        return f"{self.name:24} {self.status}  {self.took_s * 1e3:7.0f} ms  /health {self.health_s * 1e3:5.1f} ms"


def measure(port: int) -> Iterator[Figure]:
    """The first is of nothing but `/health`, for as long as a large body takes."""
    with socket.create_connection(("127.0.0.1", port)) as probe:
        for name, (_, make) in {"nothing": (0, bytes), **BODIES}.items():
            body, statuses = make(), list[int]()
            asking = threading.Thread(target=lambda b=body, s=statuses: s.append(_ask(port, b)))
            began, slowest = time.perf_counter(), 0.0
            asking.start()
            while asking.is_alive():
                slowest = max(slowest, _probe(probe))
                time.sleep(0.002)
            yield Figure(name, statuses[0], time.perf_counter() - began, slowest)


def _probe(connection: socket.socket) -> float:
    began = time.perf_counter()
    connection.sendall(_GET)
    received = b""
    while not received.endswith(b'{"status":"ok"}'):
        received += connection.recv(4096)
    return time.perf_counter() - began


def _ask(port: int, body: bytes) -> int:
    """Like most clients: looks for the answer when everything is sent."""
    if not body:
        time.sleep(0.5)
        return 0
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body))
        connection.sendall(body)
        found = re.match(rb"HTTP/1\.1 (\d{3})", connection.recv(65536))
    return 0 if found is None else int(found[1])


async def main() -> list[Figure]:
    async with serving(fake()) as served:
        return await asyncio.to_thread(lambda: list(measure(served.port)))


if __name__ == "__main__":
    print(*asyncio.run(main()), sep="\n")
