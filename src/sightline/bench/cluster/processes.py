"""CPU time by who spent it. Linux: it reads /proc."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
CLIENTS, PROXY, INGRESS, DECODERS = "clients", "HAProxy", "ingress", "decoders"
REPLICAS, ENGINES, RAY, SINGLE = "replicas", "engines", "Ray's own", "single server"
WHO = (CLIENTS, PROXY, INGRESS, DECODERS, REPLICAS, ENGINES, RAY, SINGLE)


def since(before: Mapping[str, float], now: Mapping[str, float]) -> dict[str, float]:
    """What was spent in between."""
    return {who: now[who] - before[who] for who in WHO}


def spent(clients: int | None = None, single: int | None = None) -> dict[str, float]:
    """CPU seconds of all that this process has started, by who it is. `clients`, `single`: processes that are not
    told by their command."""
    told: dict[str, float] = dict.fromkeys(WHO, 0.0)
    for process, command in _tree(os.getpid()):
        if process == os.getpid():
            continue
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        own = {clients: CLIENTS, single: SINGLE}
        told[own.get(process) or _who(command)] += (int(fields[11]) + int(fields[12])) / _TICKS
    return told


def children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, thread.read_text().split())
        except OSError:
            continue
    return found


def replicas(deployment: str) -> list[int]:
    """Processes of a deployment's replicas."""
    title = f"ray::ServeReplica:sightline:{deployment}"
    return [process for process, command in _tree(os.getpid()) if command.startswith(title)]


def _who(command: str) -> str:
    if "decoder_process" in command:
        return DECODERS
    if "engines.worker" in command:
        return ENGINES
    if command.startswith("ray::ServeReplica:sightline:ingress"):
        return INGRESS
    if command.startswith("ray::ServeReplica:sightline:model"):
        return REPLICAS
    return PROXY if "haproxy -" in command or command.startswith("haproxy") or "/haproxy" in command[:200] else RAY


def _tree(pid: int) -> Iterator[tuple[int, str]]:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return
    yield pid, command
    for child in children(pid):
        yield from _tree(child)
