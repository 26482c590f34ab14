"""Files as accidents and attackers leave them: `python -m tests.images.damage` fuzzes the decoder processes.

Every prefix in steps of a 64th of some hundred seed files over all formats, and seeded mutations: bits flipped, numbers
overwritten, parts cut, doubled and swapped, lengths that lie. Each goes to a decoder process as a request's picture
does; an outcome may be a picture or one of our errors, and nothing else. With --server they go to a whole server, which
may only answer 200 or 400. Prints a table; the exit status tells.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import random
import socket
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil

from sightline.config import MIB, ImageLimits
from sightline.errors import ImageError
from sightline.images.budget import CellBudget
from sightline.images.decoder import DecoderPool
from tests.images.gallery import forms

BUDGET = CellBudget(28, 784, 8 * 784)
LIMITS = ImageLimits(max_pixels=4_000_000)
"""The checks are the same at every limit; less is to be waited for."""
_LIES = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\x01", b"\x01\0\0\0", b"\0\x01", b"\xff\xfe")


def seeds() -> dict[str, bytes]:
    """A file of each kind: of the turned ones only the fifth, which has the most to go wrong."""
    return {f.name: f.file for f in forms() if "orientation" not in f.name or f.name.endswith("5")}


def prefixes(file: bytes) -> Iterator[bytes]:
    for part in range(64):
        yield file[: len(file) * part // 64]


def mutate(file: bytes, rng: random.Random) -> bytes:
    data = bytearray(file)
    near_the_head = rng.random() < 0.5  # where the structure is
    for _ in range(rng.choice([1, 1, 2, 8, 40])):
        if not data:
            break
        at = rng.randrange(min(len(data), 600) if near_the_head else len(data))
        length = rng.randrange(1, 60)
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                lie = rng.choice(_LIES)
                data[at : at + len(lie)] = lie
            case 2:
                del data[at : at + length]
            case 3:
                data[at:at] = rng.randbytes(length)
            case 4:
                data[at:at] = data[at : at + length]
            case 5:
                there = rng.randrange(len(data))
                data[at : at + length], data[there : there + length] = (
                    data[there : there + length],
                    data[at : at + length],
                )
    return bytes(data)


def mutations(count: int, seed: int = 2026) -> Iterator[tuple[str, bytes]]:
    """(name of the seed file, file), each seed in turn."""
    rng = random.Random(seed)
    named = list(seeds().items())
    for index in range(count):
        name, file = named[index % len(named)]
        yield name, mutate(file, rng)


class Watch:
    """What the decoder processes did beside answering: deaths, and the most memory."""

    def __init__(self) -> None:
        self.pids: set[int] = set()
        self.peak_mib = 0.0

    def look(self, pool: DecoderPool) -> None:
        self.pids |= set(pool.pids)
        for pid in pool.pids:
            try:
                peak = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()
            except OSError:
                continue
            self.peak_mib = max(self.peak_mib, int(peak[0]) / 1024 if peak else 0.0)


async def fuzz(files: list[tuple[str, bytes]]) -> bool:
    """Whether every outcome was one that is allowed."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    slowest: dict[str, float] = defaultdict(float)
    faults: list[str] = []
    watch = Watch()
    before = psutil.Process().memory_info().rss
    pool = DecoderPool(LIMITS)
    await pool.start()
    queue = iter(enumerate(files))

    async def work() -> None:
        for index, (name, file) in queue:
            began = time.perf_counter()
            try:
                await pool.decode(file, BUDGET)
                outcome = "picture"
            except ImageError as error:
                outcome = type(error).__name__
                if "twice ended" in error.message:
                    outcome = "death"
                    faults.append(f"{index} ({name}): {error.message}")
            except Exception as error:
                outcome = type(error).__name__
                faults.append(f"{index} ({name}): {error!r}")
            format = name.split()[0]
            outcomes[format][outcome] += 1
            slowest[format] = max(slowest[format], time.perf_counter() - began)
            if index % 20 == 0:
                watch.look(pool)

    await asyncio.gather(*(work() for _ in range(LIMITS.decoders)))
    watch.look(pool)
    await pool.close()
    kinds = sorted({kind for counts in outcomes.values() for kind in counts})
    print(f"{'format':8}{'files':>8}", *(f"{kind:>24}" for kind in kinds), f"{'slowest s':>12}", sep="")
    for format, counts in sorted(outcomes.items()):
        numbers = (f"{counts[kind]:>24}" for kind in kinds)
        print(f"{format:8}{counts.total():>8}", *numbers, f"{slowest[format]:>12.2f}", sep="")
    grown = (psutil.Process().memory_info().rss - before) / MIB
    print(
        f"decoders: {len(watch.pids)} processes for {LIMITS.decoders} places, {watch.peak_mib:.0f} MiB at most; "
        f"this process: {grown:+.0f} MiB"
    )
    for fault in faults:
        print("FAULT", fault)
    return not faults


async def fuzz_server(files: list[tuple[str, bytes]]) -> bool:
    """Each file as a request's picture, to a `sightline serve` of the fake engine: only 200 and 400 are answered, the
    undamaged seeds among them all with 200, and `/health` always."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "sightline.cli", "serve", "--port", url.rpartition(":")[2], "--engine", "fake"]
    server = psutil.Popen([*command, "--log-level", "error"], stdout=subprocess.DEVNULL)
    statuses: Counter[tuple[int, str]] = Counter()
    files = files + [("whole", file) for file in seeds().values()]
    queue = iter(files)
    whole: Counter[int] = Counter()

    async def send(client: httpx.AsyncClient) -> None:
        for name, file in queue:
            picture = {"type": "image", "image": f"data:;base64,{base64.b64encode(file).decode()}"}
            message = {"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}
            body = {"model": "fake", "max_tokens": 1, "messages": [message]}
            reply = await client.post(f"{url}/v1/chat/completions", json=body)
            code = "" if reply.is_success else reply.json()["error"]["code"]
            statuses[reply.status_code, code] += 1
            whole[reply.status_code] += name == "whole"

    try:
        async with httpx.AsyncClient(timeout=60) as client:
            await until_ready(client, url)
            before = server.memory_info().rss
            await asyncio.gather(*(send(client) for _ in range(8)))
            health = (await client.get(f"{url}/health")).status_code
        grown = (server.memory_info().rss - before) / MIB
    finally:
        server.terminate()
        server.wait(30)
    for (status, code), count in sorted(statuses.items()):
        print(f"{status} {code:24}{count:>8}")
    print(f"undamaged: {dict(+whole)}; /health {health}; the server's memory {grown:+.0f} MiB")
    return {status for status, _ in statuses} <= {200, 400} and set(+whole) == {200} and health == 200


async def until_ready(client: httpx.AsyncClient, url: str) -> None:
    for _ in range(300):
        try:
            if (await client.get(f"{url}/ready")).is_success:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise TimeoutError("the server did not get ready")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mutations", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--server", action="store_true", help="through a whole server, not only the decoders")
    args = parser.parse_args()
    if args.server:
        return 0 if asyncio.run(fuzz_server(list(mutations(args.mutations, args.seed)))) else 1
    cut = [(name, prefix) for name, file in seeds().items() for prefix in prefixes(file)]
    print(f"{len(seeds())} seed files, {len(cut)} prefixes")
    is_fine = asyncio.run(fuzz(cut))
    print(f"{args.mutations} mutations, seed {args.seed}")
    return 0 if asyncio.run(fuzz(list(mutations(args.mutations, args.seed)))) and is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
