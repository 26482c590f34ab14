"""How much is done twice when servers or workers are killed: `python -m tests.jobs.attempts [--store redis]`.

What is killed has no engine: it asks a server that lives on and counts. Then a line that always fails is counted.
"""

from __future__ import annotations

import json
import random
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

import openai

from tests.jobs.figures import Figure, command
from tests.jobs.kill import TERMINAL, Process, Server, StoreName, Worker, retrieve, submit, to_lines, verify
from tests.jobs.redis_server import RedisServer

AT_ONCE = 16
P = TypeVar("P", bound=Process)
PROMISE = "a kill costs at most the lines under way (16) a second run; a line that fails is tried 3 times"


def measure(folder: Path, store: StoreName, *, lines: int = 1000, kills: int = 20) -> Figure:
    chance = random.Random(1)
    with ExitStack() as stack:
        upstream = _started(stack, Server(folder / "upstream"))
        client, victim, jobs = _site(stack, folder, store, upstream)
        batch_id, killed = submit(client, lines), 0
        deadline = time.monotonic() + 600
        while (batch := retrieve(client, batch_id, deadline)).status not in TERMINAL:
            assert time.monotonic() < deadline, batch
            time.sleep(chance.uniform(0.0, 0.5))
            if killed < kills:
                victim.kill()
                victim.start()
                killed += 1
        ends = verify(client, batch, lines)
        again = upstream.requests() - lines
        tries, end = _tries_of_failing(stack, folder, jobs)
    measured = (
        f"{lines} lines, {killed} kills: {again} runs more than lines ({again / max(1, killed):.1f} a kill; "
        f"{dict(ends)}); a line that always fails: {tries} runs, then {end}"
    )
    return Figure(2, store, PROMISE, measured, 0 <= again <= AT_ONCE * killed and (tries, end) == (3, "max_attempts"))


def _site(
    stack: ExitStack, folder: Path, store: StoreName, upstream: Server
) -> tuple[openai.OpenAI, Process, str | None]:
    """Whom to ask, whom to kill, and the queue."""
    if store == "redis":
        redis = RedisServer(folder / "redis").start()
        stack.callback(redis.kill)
        config = folder / "idle.yaml"
        config.write_text("models: [{name: m, engine: fake}]\nbatches: {max_concurrent: 0}\n")
        server = _started(stack, Server(folder / "data", config=config, jobs=redis.url))
        return server.client, _started(stack, Worker(folder / "data", redis.url, server=upstream.url)), redis.url
    config = folder / "remote.yaml"
    options = json.dumps({"base_url": f"{upstream.url}/v1", "context_length": 4096})
    config.write_text(f"models: [{{name: m, engine: remote, source: m, options: {options}}}]\n")
    server = _started(stack, Server(folder / "data", config=config))
    return server.client, server, None


def _started(stack: ExitStack, process: P) -> P:
    process.start()
    stack.callback(process.kill)
    return process


def _tries_of_failing(stack: ExitStack, folder: Path, jobs: str | None) -> tuple[int, str]:
    """How often a line that always fails is run, and what becomes of it. One alone: more would open the breaker, and
    refusals are no tries."""
    server = _started(stack, Server(folder / "failing", jobs=None if jobs is None else jobs.replace("/0", "/1")))
    content = to_lines(1).replace(b"number ", b"[[fake: error 0]] number ")
    file = server.client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = server.client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    deadline = time.monotonic() + 120
    while (over := retrieve(server.client, batch.id, deadline)).status not in TERMINAL:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (told,) = server.client.files.content(over.error_file_id).text.splitlines()
    return server.requests("EngineFailed"), json.loads(told)["error"]["code"]


if __name__ == "__main__":
    command(__doc__ or "", measure)
