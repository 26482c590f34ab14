"""How long clients wait for their first token beside a batch of 1,000 lines: `python -m tests.jobs.beside`.

The fake engine with 8 slots, steps of 50 ms and prefill by tokens; the same clients before the batch and during it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import tempfile
import time
from pathlib import Path

import openai

from tests.jobs.kill import Server, submit
from tests.jobs.redis_server import RedisServer

CONFIG = """\
models:
  - {name: m, engine: fake, max_concurrent: 8, options: {step_s: 0.05, prefill_s_per_token: 0.0005}}
"""
PAUSE_S = 0.3


async def wait_times(url: str, clients: int, seconds: float) -> list[float]:
    """Sorted, in seconds: of clients who ask, read, pause and ask again."""
    client = openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
    ends = time.monotonic() + seconds
    waited: list[float] = []

    async def one(seed: int) -> None:
        chance = random.Random(seed)
        while time.monotonic() < ends:
            await asyncio.sleep(chance.uniform(0, PAUSE_S))
            question = f"{chance.random()} " + "word " * 60
            began, first = time.perf_counter(), None
            stream = await client.chat.completions.create(
                model="m", stream=True, max_tokens=8, messages=[{"role": "user", "content": question}]
            )
            async for chunk in stream:
                if first is None and chunk.choices and chunk.choices[0].delta.content:
                    first = time.perf_counter() - began
            assert first is not None
            waited.append(first)

    async with client:
        await asyncio.gather(*(one(seed) for seed in range(clients)))
    return sorted(waited)


def at(sorted_s: list[float], share: float) -> float:
    return sorted_s[min(len(sorted_s) - 1, int(len(sorted_s) * share))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--store", choices=["sqlite", "redis"], default="sqlite")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sightline.yaml"
        file.write_text(CONFIG)
        redis = RedisServer(Path(folder) / "redis").start() if args.store == "redis" else None
        server = Server(Path(folder) / "data", config=file, jobs=None if redis is None else redis.url)
        server.start()
        try:
            url = f"http://127.0.0.1:{server.port}/v1"
            asyncio.run(wait_times(url, args.clients, 2))
            bare = asyncio.run(wait_times(url, args.clients, args.seconds))
            batch_id = submit(server.client, 1000)
            while not (before := server.client.batches.retrieve(batch_id).request_counts.completed):  # type: ignore[union-attr]
                time.sleep(0.05)
            began = time.monotonic()
            beside = asyncio.run(wait_times(url, args.clients, args.seconds))
            done = server.client.batches.retrieve(batch_id).request_counts.completed - before  # type: ignore[union-attr]
            rate = done / (time.monotonic() - began)
        finally:
            server.kill(signal.SIGTERM)
            if redis is not None:
                redis.stop()
    for share in (0.5, 0.99):
        alone, with_batch = at(bare, share), at(beside, share)
        print(
            f"p{share * 100:g} of {len(bare)} and {len(beside)}: {alone * 1000:.0f} ms bare, "
            f"{with_batch * 1000:.0f} ms beside a batch, x {with_batch / alone:.2f}"
        )
    print(f"{rate:.1f} lines a second meanwhile")


if __name__ == "__main__":
    main()
