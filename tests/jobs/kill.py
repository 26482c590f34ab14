"""A server, its engine, a worker or Redis, killed again and again while a batch runs.

python -m tests.jobs.kill --lines 1000 --kills 20 [--store redis] [--victim engine] [--json FILE]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import openai
import psutil

from tests.jobs.redis_server import RedisServer

StoreName = Literal["sqlite", "redis"]
Victim = Literal["server", "engine", "worker", "redis"]

PROMISE = "killed with kill -9 during a batch: no line is lost, none is told of twice"
VICTIMS: dict[StoreName, tuple[Victim, ...]] = {
    "sqlite": ("server", "engine"),
    "redis": ("server", "worker", "engine", "redis"),
}
TERMINAL = ("completed", "failed", "expired", "cancelled")


class Process:
    """A command of `sightline`, in a process group of its own with its engine, however often it is killed."""

    def __init__(self, *arguments: str) -> None:
        self._command = [sys.executable, "-m", "sightline.cli", *arguments, "--log-level", "error"]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *prefix: str) -> None:
        self._process = subprocess.Popen([*prefix, *self._command], stdout=subprocess.PIPE, start_new_session=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "it ended"  # both commands say so when they have begun
        self.wait_ready()

    def wait_ready(self) -> None:
        pass

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """The server and its engine, in the middle of whatever they do."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(self._process.pid, number)
        self._process.wait(60)

    def kill_engine(self) -> None:
        """Its process alone; the server starts another. Nothing where one is being started."""
        assert self._process is not None
        for child in psutil.Process(self._process.pid).children():
            with contextlib.suppress(psutil.Error):
                if "sightline.engines.worker" in " ".join(child.cmdline()):
                    child.kill()


class Server(Process):
    """`sightline serve` on one directory, with a fake engine unless a configuration says otherwise."""

    def __init__(
        self, data: Path, *, step_s: float = 0.01, config: Path | None = None, jobs: str | None = None
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        fake = ("--engine", "fake", "--name", "m", "--option", f"step_s={step_s}")
        super().__init__(
            *("serve", *(fake if config is None else (str(config),))),
            *("--data-dir", str(data), "--port", str(self.port)),
            *(() if jobs is None else ("--jobs", jobs)),
        )
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=10)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 60
        while not self._is_ready():
            assert self.is_alive, "the server ended"
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def _is_ready(self) -> bool:
        try:
            return bool(self.client.models.list().data)
        except openai.APIError:
            return False

    def requests(self, outcome: str = "") -> int:
        """How many requests it has answered, by its own metrics; those that ended so, if an outcome is named."""
        line = rf'^sightline_requests_total\{{[^}}]*outcome="{outcome}[^}}]*\}} ([0-9.e+]+)$'
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as reply:
            found = re.findall(line, reply.read().decode(), re.M)
        return int(sum(float(value) for value in found))


class Worker(Process):
    """`sightline worker`, with an engine of its own, or asking a server."""

    def __init__(self, data: Path, jobs: str, *, step_s: float = 0.01, server: str | None = None) -> None:
        fake = ("--engine", "fake", "--name", "m", "--option", f"step_s={step_s}")
        how = fake if server is None else ("--server", server)
        super().__init__("worker", "--jobs", jobs, *how, "--data-dir", str(data))


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


@dataclass(frozen=True, slots=True)
class Outcome:
    store: StoreName
    victim: Victim
    lines: int
    killed: int
    """Times, while the batch ran."""
    ends: dict[str, int]
    """What became of the lines."""
    seconds: float
    slowest_start_s: float

    @property
    def told(self) -> str:
        ends = ", ".join(f"{count} x {end}" for end, count in sorted(self.ends.items()))
        return f"{self.lines} lines, {self.victim} killed {self.killed} times: 0 lost, 0 twice ({ends})"


@dataclass(slots=True)
class Site:
    """All that answers a batch, with what is to be killed."""

    server: Server
    worker: Worker | None = None
    redis: RedisServer | None = None

    def start(self) -> None:
        for part in (self.redis, self.server, self.worker):
            if part is not None:
                part.start()

    def kill(self, victim: Victim) -> None:
        """And start it anew; the engine's server does that itself."""
        if victim == "engine":
            (self.worker or self.server).kill_engine()
            return
        part = {"server": self.server, "worker": self.worker, "redis": self.redis}[victim]
        assert part is not None
        part.kill()
        part.start()

    def stop(self) -> None:
        for part in (self.worker, self.server):
            if part is not None and part.is_alive:
                part.kill(signal.SIGTERM)
        if self.redis is not None:
            self.redis.stop()


@contextmanager
def running_site(data: Path, store: StoreName, *, with_worker: bool) -> Iterator[Site]:
    data.mkdir(parents=True, exist_ok=True)
    if store == "sqlite":
        site = Site(Server(data))
    else:
        redis = RedisServer(data / "redis")
        config = data / "sightline.yaml"
        at_once = 0 if with_worker else 16
        config.write_text(
            f"models: [{{name: m, engine: fake, options: {{step_s: 0.01}}}}]\nbatches: {{max_concurrent: {at_once}}}\n"
        )
        server = Server(data / "data", config=config, jobs=redis.url)
        site = Site(server, Worker(data / "data", redis.url) if with_worker else None, redis)
    try:
        site.start()
        yield site
    finally:
        site.stop()


def run_killed(
    data: Path, total: int, kills: int, seed: int, *, within_s: float, store: StoreName = "sqlite", victim: Victim
) -> Outcome:
    chance = random.Random(seed)
    killed, slowest, began = 0, 0.0, time.monotonic()
    with running_site(data, store, with_worker=victim == "worker") as site:
        batch_id = submit(site.server.client, total)
        deadline = time.monotonic() + within_s
        while (batch := retrieve(site.server.client, batch_id, deadline)).status not in TERMINAL:
            assert time.monotonic() < deadline, batch
            if killed < kills:
                time.sleep(chance.uniform(0.0, 0.5))
                killing = time.monotonic()
                site.kill(victim)
                killed += 1
                slowest = max(slowest, time.monotonic() - killing)
            else:
                time.sleep(0.1)
        assert batch.status == "completed", batch
        ends = verify(site.server.client, batch, total)
        return Outcome(store, victim, total, killed, dict(ends), time.monotonic() - began, slowest)


def retrieve(client: openai.OpenAI, batch_id: str, deadline: float) -> Any:
    """Also while what keeps it comes back."""
    while True:
        try:
            return client.batches.retrieve(batch_id)
        except openai.InternalServerError as error:
            if error.status_code != 503 or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--store", choices=list(VICTIMS), default="sqlite")
    parser.add_argument("--victim", choices=VICTIMS["redis"], default="server")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the outcome there, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_killed(
            Path(folder), args.lines, args.kills, args.seed, within_s=600, store=args.store, victim=args.victim
        )
    if args.json is not None:
        figure = {"number": 1, "store": args.store, "promise": PROMISE, "measured": outcome.told, "met": True}
        args.json.write_text(json.dumps(figure))  # what is lost or there twice has raised
    print(f"{args.store}: {outcome.told}; {outcome.seconds:.0f} s, slowest start {outcome.slowest_start_s:.1f} s")


if __name__ == "__main__":
    main()
