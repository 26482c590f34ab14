"""One batch for a hundred requests with one Idempotency-Key, also after a kill: `python -m tests.jobs.once`."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai

from tests.jobs.figures import Figure, command
from tests.jobs.kill import Server, StoreName, to_lines
from tests.jobs.redis_server import RedisServer

PROMISE = "100 POSTs at once with one Idempotency-Key: 1 batch; another body: 422; known after kill -9"


def measure(folder: Path, store: StoreName, *, posts: int = 100) -> Figure:
    with ExitStack() as stack:
        redis = None
        if store == "redis":
            redis = RedisServer(folder / "redis").start()
            stack.callback(redis.stop)
        server = Server(folder / "data", jobs=None if redis is None else redis.url)
        server.start()
        stack.callback(server.kill)
        file = server.client.files.create(file=("in.jsonl", to_lines(1)), purpose="batch")
        body = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}

        def post(**more: Any) -> str:
            made = server.client.batches.create(**{**body, **more}, extra_headers={"Idempotency-Key": "k"})
            return str(made.id)

        with ThreadPoolExecutor(20) as pool:
            made = set(pool.map(lambda _: post(), range(posts)))
        for part in (server, redis):
            if part is not None:
                part.kill()
        for part in (redis, server):
            if part is not None:
                part.start()
        made.add(post())
        try:
            post(metadata={"a": "b"})
            other = 200
        except openai.APIStatusError as error:
            other = error.status_code
        listed = len(server.client.batches.list().data)
    measured = f"{posts} posts: {len(made)} id, {listed} batch, also after kill -9; another body: {other}"
    return Figure(12, store, PROMISE, measured, (len(made), listed, other) == (1, 1, 422))


if __name__ == "__main__":
    command(__doc__ or "", measure)
