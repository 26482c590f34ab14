"""A server, or its engine, killed again and again while it works on a batch.

python -m tests.jobs.kill --lines 1000 --kills 20 [--victim engine]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import openai
import psutil

TERMINAL = ("completed", "failed", "expired", "cancelled")


class Server:
    """`sightline serve` on one directory, however often it is killed."""

    def __init__(self, data: Path, *, step_s: float = 0.01, config: Path | None = None) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        fake = ("--engine", "fake", "--name", "m", "--option", f"step_s={step_s}")
        self._command = [
            *(sys.executable, "-m", "sightline.cli", "serve", *(fake if config is None else (str(config),))),
            *("--data-dir", str(data), "--port", str(self.port), "--log-level", "error"),
        ]
        self.client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0, timeout=10
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *prefix: str) -> None:
        self._process = subprocess.Popen([*prefix, *self._command], stdout=subprocess.DEVNULL, start_new_session=True)
        deadline = time.monotonic() + 60
        while not self._is_ready():
            assert self._process.poll() is None, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            return bool(self.client.models.list().data)
        except openai.APIError:
            return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        """The server and its engine, in the middle of whatever they do."""
        assert self._process is not None
        os.killpg(self._process.pid, number)
        self._process.wait(60)

    def kill_engine(self) -> None:
        """Its process alone; the server starts another. Nothing where one is being started."""
        assert self._process is not None
        for child in psutil.Process(self._process.pid).children():
            with contextlib.suppress(psutil.Error):
                if "sightline.engines.worker" in " ".join(child.cmdline()):
                    child.kill()


def to_lines(total: int) -> bytes:
    def line(number: int) -> dict[str, Any]:
        body = {"model": "m", "messages": [{"role": "user", "content": f"number {number}"}]}
        return {"custom_id": f"r-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}

    return "\n".join(json.dumps(line(number)) for number in range(total)).encode()


def submit(client: openai.OpenAI, total: int) -> str:
    file = client.files.create(file=("in.jsonl", to_lines(total)), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id


def verify(client: openai.OpenAI, batch: Any, total: int) -> Counter[str]:
    """Asserts that every line is told of once, and answered as it must be. What became of them."""
    ends: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    for file_id in (batch.output_file_id, batch.error_file_id):
        for text in client.files.content(file_id).text.splitlines() if file_id else ():
            told = json.loads(text)
            seen[told["custom_id"]] += 1
            if told["response"] is None:
                ends[told["error"]["code"]] += 1
                continue
            ends[str(told["response"]["status_code"])] += 1
            if told["response"]["status_code"] == 200:
                (choice,) = told["response"]["body"]["choices"]
                number = told["custom_id"].removeprefix("r-")
                assert choice["message"]["content"].endswith(f"number {number}"), told
    assert seen == Counter(f"r-{number}" for number in range(total)), "a line is lost, or there twice"
    counts = batch.request_counts
    assert (counts.total, counts.completed + counts.failed) == (total, total)
    return ends


def run_killed(
    data: Path, total: int, kills: int, seed: int, *, within_s: float, victim: str = "server"
) -> tuple[int, Counter[str], float]:
    """How often it was killed at work, what became of the lines, and the longest that a start took."""
    chance = random.Random(seed)
    server = Server(data)
    killed, slowest = 0, 0.0
    server.start()
    try:
        batch_id = submit(server.client, total)
        deadline = time.monotonic() + within_s
        while (batch := server.client.batches.retrieve(batch_id)).status not in TERMINAL:
            assert time.monotonic() < deadline, batch
            if killed < kills:
                time.sleep(chance.uniform(0.0, 0.5))
                killed += 1
                if victim == "engine":
                    server.kill_engine()
                    continue
                server.kill()
                began = time.monotonic()
                server.start()
                slowest = max(slowest, time.monotonic() - began)
            else:
                time.sleep(0.1)
        assert batch.status == "completed", batch
        return killed, verify(server.client, batch, total), slowest
    finally:
        server.kill(signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--victim", choices=["server", "engine"], default="server")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        killed, ends, slowest = run_killed(
            Path(folder), args.lines, args.kills, args.seed, within_s=600, victim=args.victim
        )
    told = ", ".join(f"{count} x {end}" for end, count in sorted(ends.items()))
    print(f"{args.lines} lines, {args.victim} killed {killed} times: 0 lost, 0 twice ({told});", end=" ")
    print(f"{time.monotonic() - began:.0f} s, slowest start {slowest:.1f} s")


if __name__ == "__main__":
    main()
