"""Every toxic, on both sides of a server and in both directions, and how each request ends (safety figure 15).

    client  ->  [proxy]  ->  gateway  ->  [proxy]  ->  upstream
    this        chaos.py     serve        chaos.py     serve, on the fake engine

Both servers are `sightline serve` in processes of their own. In the gateway half of the models have a healthy fallback
and half have none; there are several of each, because every model's breaker opens after five failures and would keep
the rest of the requests from meeting the toxic.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.chaos import TOXICS, Proxy, Toxic
from tests.chaos_client import Outcome, Question, ask

_ADDRESS = re.compile(r"on http://[^:]+:(\d+)/v1")
_OF_EACH = 8
"""Models with a fallback, and without."""
_SILENCE_S = 1.0
"""After which the gateway gives a silent upstream up; less than the deadline, so that there is time for another."""
_SWITCH_S = 0.2
"""Between one toxic and the next, where they take turns."""
MIXED = "all in turns"
BUDGET = {"type": "CellBudget", "cell": 28, "min_pixels": 12544, "max_pixels": 100352}
"""The fake engine's."""


@dataclass(frozen=True, slots=True)
class Cell:
    side: str
    """`engine` or `client`: of the gateway."""
    direction: str
    """`requests` or `answers`: which of them meet the toxic."""
    toxic: str

    def __str__(self) -> str:
        return f"{self.side} {self.direction} {self.toxic}"


def cells() -> list[Cell]:
    return [
        Cell(side, direction, toxic)
        for side in ("engine", "client")
        for direction in ("requests", "answers")
        for toxic in (*TOXICS, MIXED)
    ]


@dataclass
class Result:
    cell: Cell
    ends: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    """As the client saw it on the engine's side, as the gateway's log tells it on the client's."""
    upstream_tries: int = 0
    fell_back: int = 0
    held_up_s: float = 0.0
    """See `HeldUp`."""
    left_over: int = 0
    """Requests that the gateway still had when all had ended for the client."""
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "side": self.cell.side,
            "direction": self.cell.direction,
            "toxic": self.cell.toxic,
            "ends": dict(sorted(self.ends.items())),
            "slowest_s": round(self.slowest_s, 3),
            "upstream_tries": self.upstream_tries,
            "fell_back": self.fell_back,
            "held_up_s": round(self.held_up_s, 3),
            "left_over": self.left_over,
            "problems": self.problems,
        }


@asynccontextmanager
async def server(directory: Path, name: str, config: dict[str, Any]) -> AsyncIterator[int]:
    """`sightline serve` with this configuration, ready; its port. Its log is `directory/name.log`."""
    file = directory / f"{name}.yaml"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-m", "sightline.cli", "serve", str(file), "--port", "0", "--log-level", "info"]
    with (directory / f"{name}.log").open("w") as log:
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=log)
        try:
            assert process.stdout is not None
            found = _ADDRESS.search((await process.stdout.readline()).decode())
            assert found is not None, "it says where it serves"
            deadline = time.monotonic() + 60.0
            while await asyncio.to_thread(_get, int(found[1]), "/ready") is None:
                assert time.monotonic() < deadline, f"{name} is not ready"
                await asyncio.sleep(0.02)
            yield int(found[1])
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


def _get(port: int, path: str) -> str | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as reply:
            return str(reply.read().decode())
    except OSError:
        return None


def metric(port: int, name: str, **labels: str) -> float:
    """The sum over all rows of that name with these labels."""
    total = 0.0
    for line in (_get(port, "/metrics") or "").splitlines():
        key, _, value = line.rpartition(" ")
        if key.partition("{")[0] == name and all(f'{label}="{text}"' in key for label, text in labels.items()):
            total += float(value)
    return total


def remote(name: str, port: int, *, silence_s: float = _SILENCE_S, **model: Any) -> dict[str, Any]:
    """A model of a gateway, behind a server of ours or a proxy before one, where it is called `m`."""
    options = {
        "base_url": f"http://127.0.0.1:{port}/v1",
        "kind": "sightline",
        "model": "m",
        "budget": BUDGET,
        "connect_s": 1.0,
        "silence_s": silence_s,
    }
    return {"name": name, "engine": "remote", "max_concurrent": 64, "options": options, **model}


def fake(name: str = "m", **options: Any) -> dict[str, Any]:
    return {"name": name, "engine": "fake", "max_concurrent": 64, "options": {"step_s": 0.004, **options}}


def chats(log: Iterable[str]) -> list[dict[str, Any]]:
    """What a server's log tells of each chat that has ended."""
    lines = [json.loads(line) for line in log if '"logger":"sightline.access"' in line]
    return [told for told in lines if told["route"] == "/v1/chat/completions"]


class HeldUp:
    """The most by which this process woke too late from a short sleep, while inside: what the machine, if others use it
    too, adds to any time that is measured on it."""

    def __init__(self) -> None:
        self.most_s = 0.0
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._watch = asyncio.create_task(self._sleep())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._watch is not None
        self._watch.cancel()

    async def _sleep(self) -> None:
        while True:
            asleep = time.perf_counter()
            await asyncio.sleep(0.02)
            self.most_s = max(self.most_s, time.perf_counter() - asleep - 0.02)


class Bench:
    """The two servers and the two proxies."""

    def __init__(self, gateway: int, upstream: int, engine_side: Proxy, client_side: Proxy, log: Path) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.engine_side = engine_side
        self.client_side = client_side
        self._log = log.open()

    def ended(self) -> list[dict[str, Any]]:
        """What the gateway's access log says of chats since this was last asked."""
        return chats(self._log)

    def under_way(self) -> int:
        names = ("sightline_requests_running", "sightline_requests_waiting")
        return sum(int(metric(self.gateway, name)) for name in names)


@asynccontextmanager
async def bench(directory: Path, seed: int) -> AsyncIterator[Bench]:
    async with (
        server(directory, "upstream", {"models": [fake()]}) as upstream,
        Proxy("127.0.0.1", upstream, seed=seed) as engine_side,
    ):
        models = [remote("spare", upstream)]
        for i in range(_OF_EACH):
            models += [remote(f"alone{i}", engine_side.port), remote(f"backed{i}", engine_side.port)]
            models[-1]["fallbacks"] = ["spare"]
        async with (
            server(directory, "gateway", {"models": models}) as gateway,
            Proxy("127.0.0.1", gateway, seed=seed + 1) as client_side,
        ):
            yield Bench(gateway, upstream, engine_side, client_side, directory / "gateway.log")


async def run_cell(bench: Bench, cell: Cell, requests: int, *, deadline_s: float, at_once: int, seed: int) -> Result:
    """Raises nothing: what is wrong stands in `Result.problems`."""
    result = Result(cell)
    proxy = bench.engine_side if cell.side == "engine" else bench.client_side
    chance = random.Random(f"{seed}:{cell}")
    bench.ended()
    tries = bench.engine_side.asked["POST /v1/chat/completions"]
    turns = asyncio.create_task(_keep_toxic(proxy, cell, random.Random(f"{seed}:{cell}:turns")))
    places = asyncio.Semaphore(at_once)

    async def one(number: int) -> Outcome:
        name = chance.choice(["alone", "backed"]) + str(chance.randrange(_OF_EACH))
        question = Question(name, number, stream=chance.random() < 0.5, picture=chance.random() < 0.3)
        async with places:
            port = bench.client_side.port if cell.side == "client" else bench.gateway
            # On the client's side an answer may never come: then the gateway's own log tells how it ended.
            patience_s = deadline_s + (1.0 if cell.side == "engine" else 0.5)
            return await ask(port, question, timeout_s=deadline_s, patience_s=patience_s)

    try:
        async with HeldUp() as held_up:
            outcomes = await asyncio.gather(*(one(number) for number in range(requests)))
        result.held_up_s = held_up.most_s
    finally:
        turns.cancel()
        proxy.requests = proxy.answers = None
    result.upstream_tries = bench.engine_side.asked["POST /v1/chat/completions"] - tries
    result.ends = Counter(outcome.end for outcome in outcomes)
    result.left_over = await _left_over(bench)
    told = bench.ended()
    result.fell_back = sum("spare@0" in line.get("path", ()) for line in told)
    of_gateway = max((line["duration_s"] for line in told), default=0.0)
    of_client = max(outcome.took_s for outcome in outcomes)
    result.slowest_s = of_client if cell.side == "engine" else of_gateway
    never = {"malformed", "wrong"} | ({"cut", "silent"} if cell.side == "engine" else set())
    bad = [outcome for outcome in outcomes if outcome.end in never]
    result.problems = [f"{o.end} after {o.took_s:.2f} s (status {o.status}): {o.why}" for o in bad]
    if result.slowest_s > deadline_s + 1.0:
        result.problems.append(f"the slowest took {result.slowest_s:.2f} s")
    if result.left_over:
        result.problems.append(f"{result.left_over} requests are still in the gateway")
    if sum(result.ends.values()) != requests:
        result.problems.append("requests were lost")
    return result


async def _keep_toxic(proxy: Proxy, cell: Cell, chance: random.Random) -> None:
    while True:
        name = chance.choice([*TOXICS, ""]) if cell.toxic == MIXED else cell.toxic
        toxic: Toxic | None = TOXICS[name]() if name else None
        setattr(proxy, cell.direction, toxic)
        await asyncio.sleep(_SWITCH_S if cell.toxic == MIXED else 3600)


async def _left_over(bench: Bench, within_s: float = 1.0) -> int:
    deadline = time.monotonic() + within_s
    while (left := await asyncio.to_thread(bench.under_way)) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
    return left


async def heal(bench: Bench, within_s: float = 12.0) -> None:
    """Until every breaker is closed again, by requests that are answered."""
    deadline = time.monotonic() + within_s
    names = [f"{kind}{i}" for kind in ("alone", "backed") for i in range(_OF_EACH)]
    while await asyncio.to_thread(metric, bench.gateway, "sightline_breaker_open"):
        assert time.monotonic() < deadline, "a breaker stays open though the upstream is well"
        await asyncio.gather(*(ask(bench.gateway, Question(name, 0), patience_s=5.0) for name in names))
        await asyncio.sleep(0.1)
