"""Whether what was accepted is on the disk before its client is told: `python -m tests.jobs.syncs` (it needs strace).

Every accepted batch and file must have brought a system call that waits for the disk.
"""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path

from tests.jobs.kill import Server, to_lines

STRACE = ("strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o")


def main(accepts: int = 100) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        server = Server(Path(folder) / "data")
        server.start(*STRACE, str(trace))

        def calls() -> int:
            return trace.read_text().count("sync(")

        try:
            client = server.client
            file = client.files.create(file=("in.jsonl", to_lines(1)), purpose="batch")
            counts = {"files": 0, "batches": 0}
            for number in range(accepts):
                before = calls()
                client.files.create(file=("a", b"%d" % number), purpose="vision")
                counts["files"] += (between := calls()) - before
                client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
                counts["batches"] += (after := calls()) - between
                assert before < between < after, "told before it was on the disk"
        finally:
            server.kill(signal.SIGKILL)
    for what, count in counts.items():
        print(f"{accepts} {what} accepted, each after at least one fsync or fdatasync: {count} calls")


if __name__ == "__main__":
    main()
