"""Whether what was accepted is on the disk before its client is told: `python -m tests.jobs.syncs` (it needs strace).

Every accepted batch and file must have brought a system call that waits for the disk, of the server or of Redis.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

from tests.jobs.figures import Figure, command
from tests.jobs.kill import Server, StoreName, to_lines
from tests.jobs.redis_server import RedisServer

PROMISE = "what is accepted has been synced before its client is told (fsync, fdatasync; counted by strace)"
_STRACE = ("strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o")


def measure(folder: Path, store: StoreName, *, accepts: int = 100) -> Figure:
    if shutil.which("strace") is None:
        return Figure(3, store, PROMISE, "not measured: strace is not installed", met=False)
    traces = [folder / "server.trace"]
    with ExitStack() as stack:
        jobs = None
        if store == "redis":
            traces.append(folder / "redis.trace")
            redis = RedisServer(folder / "redis").start(*_STRACE, str(traces[1]))
            stack.callback(redis.stop)
            jobs = redis.url
        server = Server(folder / "data", jobs=jobs)
        server.start(*_STRACE, str(traces[0]))
        stack.callback(server.kill)
        counts, early = _accept(server, traces[-1:], accepts)
    told = ", ".join(f"{accepts} {what}: {count} calls" for what, count in counts.items())
    return Figure(3, store, PROMISE, f"{told}; {early} told before", early == 0)


def _accept(server: Server, traces: list[Path], accepts: int) -> tuple[dict[str, int], int]:
    """System calls during each kind of request, and requests that brought none."""

    def calls() -> int:
        return sum(trace.read_text().count("sync(") for trace in traces)

    file = server.client.files.create(file=("in.jsonl", to_lines(1)), purpose="batch")
    counts, early = {"files": 0, "batches": 0}, 0
    for number in range(accepts):
        before = calls()
        server.client.files.create(file=("a", b"%d" % number), purpose="vision")
        between = calls()
        server.client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
        after = calls()
        counts["files"] += between - before
        counts["batches"] += after - between
        early += (between == before) + (after == between)
    return counts, early


if __name__ == "__main__":
    command(__doc__ or "", measure)
