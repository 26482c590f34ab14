"""Load on a running server, as its clients feel it: `python -m sightline.bench.serve --url http://127.0.0.1:8000`.

Closed loop: each of N clients streams one answer after another and asks about a picture of its own that nobody has
asked about before, so nothing is answered from a cache. Prints, for each N: time to first token (median and 99th
percentile), time per output token, tokens a second over all clients, the latency of `/health` meanwhile, and how late
the server's event loop woke (from its own histogram).

A bare HTTP/1.1 client over asyncio streams, so that the two cores are the server's and not the SDK's.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

QUESTION = "What colour is the circle?"


@dataclass
class Run:
    clients: int
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    tokens: int = 0
    errors: int = 0
    health_s: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    lag_p99_s: float = 0.0


def picture(number: int) -> str:
    """A data URI that no other number gives: a shade of its own, with a circle's worth of noise."""
    noise = np.random.default_rng(number).integers(0, 256, (168, 168, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def exchange(host: str, port: int, method: str, path: str, body: bytes = b"") -> AsyncIterator[bytes]:
    """One request on one connection; yields the body's lines. Raises `OSError` when the status is not 200."""
    reader, writer = await asyncio.open_connection(host, port, limit=2**20)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        status = await reader.readline()
        while (await reader.readline()).strip():
            pass
        if b" 200 " not in status:
            raise OSError(status.decode())
        async for line in reader:
            yield line
    finally:
        writer.close()


async def one_answer(run: Run, host: str, port: int, model: str, number: int, max_tokens: int) -> None:
    message = [
        {"type": "image_url", "image_url": {"url": picture(number)}},
        {"type": "text", "text": QUESTION},
    ]
    body = {
        "model": model,
        "stream": True,
        "temperature": 0,
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": message}],
        "stream_options": {"include_usage": True},
    }
    payload = json.dumps(body).encode()
    began = time.perf_counter()
    first = last = 0.0
    tokens = 0
    try:
        async for line in exchange(host, port, "POST", "/v1/chat/completions", payload):
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                last = time.perf_counter()
                first = first or last
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    except (OSError, ValueError, KeyError):
        run.errors += 1
        return
    run.ttft_s.append(first - began)
    run.tokens += tokens
    if tokens > 1:
        run.tpot_s.append((last - first) / (tokens - 1))


async def watch_health(run: Run, host: str, port: int) -> None:
    while True:
        began = time.perf_counter()
        async for _ in exchange(host, port, "GET", "/health"):
            pass
        run.health_s.append(time.perf_counter() - began)
        await asyncio.sleep(0.05)


async def lag_buckets(host: str, port: int) -> dict[float, float]:
    """The server's histogram of event-loop lag: upper bound -> how many so far."""
    buckets = {}
    async for line in exchange(host, port, "GET", "/metrics"):
        text = line.decode()
        if text.startswith("sightline_event_loop_lag_seconds_bucket"):
            bound, count = text.split('le="')[1].split('"} ')
            buckets[float(bound)] = float(count)
    return buckets


def quantile_bound(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """The bucket's upper bound under which `share` of the samples between two scrapes lie."""
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    total = counts[float("inf")]
    return next((bound for bound, count in counts.items() if count >= share * total), float("inf"))


async def measure(host: str, port: int, model: str, clients: int, answers: int, max_tokens: int) -> Run:
    run = Run(clients)
    before = await lag_buckets(host, port)
    watcher = asyncio.create_task(watch_health(run, host, port))
    began = time.perf_counter()

    async def client(index: int) -> None:
        for i in range(answers):
            await one_answer(run, host, port, model, int(began * 1e6) + index * answers + i, max_tokens)

    await asyncio.gather(*(client(i) for i in range(clients)))
    run.wall_s = time.perf_counter() - began
    watcher.cancel()
    run.lag_p99_s = quantile_bound(before, await lag_buckets(host, port), 0.99)
    return run


def report(run: Run) -> str:
    def ms(values: list[float], share: float) -> str:
        return f"{np.quantile(values, share) * 1000:.1f}" if values else "-"

    return (
        f"{run.clients:7d} {ms(run.ttft_s, 0.5):>9} {ms(run.ttft_s, 0.99):>9} {ms(run.tpot_s, 0.5):>9} "
        f"{run.tokens / run.wall_s:9.0f} {ms(run.health_s, 0.5):>11} {ms(run.health_s, 0.99):>11} "
        f"{run.lag_p99_s * 1000:>11.1f} {run.errors:6d}"
    )


async def main(args: argparse.Namespace) -> None:
    url = urlsplit(args.url)
    host, port = url.hostname or "127.0.0.1", url.port or 80
    await measure(host, port, args.model, 1, 2, 8)  # warm
    print(
        "clients  TTFT p50  TTFT p99  TPOT p50   tokens/s  health p50  health p99  loop lag p99  errors   (times in ms)"
    )
    for clients in args.clients:
        print(report(await measure(host, port, args.model, clients, args.answers, args.max_tokens)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="peek")
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 16])
    parser.add_argument("--answers", type=int, default=8, help="answers each client asks for")
    parser.add_argument("--max-tokens", type=int, default=64)
    asyncio.run(main(parser.parse_args()))
