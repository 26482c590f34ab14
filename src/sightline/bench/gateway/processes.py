"""Cores, and the CPU time of a process and of all that it has started. Linux: it reads /proc."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cores:
    """Which cores a run may use, and for what."""

    gateway: set[int]
    others: set[int]

    @classmethod
    def found(cls) -> Cores:
        usable = sorted(os.sched_getaffinity(0))
        return cls({usable[0]}, set(usable[1:3]) or {usable[0]})

    @property
    def all(self) -> set[int]:
        """Two of them."""
        return self.gateway | set(sorted(self.others)[:1])


def pin(cores: set[int]) -> None:
    """This process, and what it starts from now on."""
    os.sched_setaffinity(0, cores)


@dataclass(frozen=True)
class Spent:
    """CPU seconds."""

    own: float
    decoders: float
    """Of picture decoders, which are processes of their own."""

    def since(self, before: Spent) -> Spent:
        return Spent(self.own - before.own, self.decoders - before.decoders)


def spent(pid: int) -> Spent:
    """By a process and all below it so far."""
    own = decoders = 0.0
    for process in _tree(pid):
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            command = Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:
            continue
        seconds = (int(fields[11]) + int(fields[12])) / _TICKS
        if b"decoder_process" in command:
            decoders += seconds
        else:
            own += seconds
    return Spent(own, decoders)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = thread.read_text().split()
        except OSError:
            continue
        for child in children:
            yield from _tree(int(child))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
