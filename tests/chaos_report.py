"""`make chaos`: what the safety page promises of deadlines, the breaker, retries and broken networks, measured.

    python -m tests.chaos_report --requests 10000 --json chaos.json

Everything runs here: an upstream on the fake engine, a gateway with the engine `remote`, `tests/chaos.py` between them
and before them. The exit status is 1 when a promise is not met.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import logging
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sightline.config import ModelConfig, Settings
from sightline.errors import SightlineError
from sightline.routing import Breaker
from sightline.service import Service
from sightline.types import ChatRequest, ImageRef, Message, Text, TextDelta
from tests import chaos_matrix
from tests.chaos import Proxy, limit_data, reset_peer, timeout
from tests.chaos_client import Outcome, Question, ask
from tests.chaos_cuts import cuts_of, read, record
from tests.chaos_matrix import fake, metric, remote, server

_CHAT = "POST /v1/chat/completions"
_HOLD = "[[fake: slow 60]]"
"""Commands the upstream's engine to hold its slot for longer than anybody waits."""


@dataclass
class Row:
    figure: int
    promise: str
    measured: str
    met: bool
    held_up_ms: int = 0
    """See `chaos_matrix.HeldUp`."""
    details: Any = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stack:
    """A gateway before a proxy before an upstream."""

    gateway: int
    proxy: Proxy
    upstream: int


@asynccontextmanager
async def stack(directory: Path, seed: int, **model: Any) -> AsyncIterator[Stack]:
    async with (
        server(directory, "upstream", {"models": [fake()]}) as upstream,
        Proxy("127.0.0.1", upstream, seed=seed) as proxy,
        server(directory, "gateway", {"models": [remote("m", proxy.port, **model)]}) as gateway,
    ):
        yield Stack(gateway, proxy, upstream)


# --- 7: who waits past his deadline ----------------------------------------------------------------------------------


async def deadlines(directory: Path, seed: int, requests: int) -> Row:
    """One slot, taken; everybody else comes within half a second and waits for it until his deadline."""
    chance, statuses, started = random.Random(seed), [], 0
    late_ms: dict[str, float] = {}
    wanted: dict[str, float] = {}
    async with stack(directory, seed, max_concurrent=1, silence_s=60.0) as it:
        for wave in range(max(1, requests // 40)):
            before = it.proxy.asked[_CHAT]
            holder = asyncio.create_task(ask(it.gateway, Question("m", wave, script=_HOLD), timeout_s=2.0))
            while it.proxy.asked[_CHAT] == before:
                await asyncio.sleep(0.005)

            async def waits(number: int) -> tuple[Outcome, float]:
                await asyncio.sleep(chance.uniform(0.0, 0.5))
                deadline_s = chance.uniform(0.1, 1.0)
                question = Question("m", number, stream=number % 2 == 0)
                return await ask(it.gateway, question, timeout_s=deadline_s, patience_s=5.0), deadline_s

            for outcome, deadline_s in await asyncio.gather(*(waits(number) for number in range(40))):
                statuses.append(outcome.status)
                wanted[name := outcome.headers["x-request-id"]] = deadline_s
                late_ms[name] = 1000 * (outcome.took_s - deadline_s)
            await holder
            started += it.proxy.asked[_CHAT] - before - 1
        log = (directory / "gateway.log").read_text().splitlines()
        told = {line["id"]: line["duration_s"] for line in chaos_matrix.chats(log)}
    in_server = sorted(1000 * (told[name] - deadline_s) for name, deadline_s in wanted.items())
    in_client = sorted(late_ms.values())
    late = statuses.count(504)
    return Row(
        7,
        "a request queued past its deadline never starts; 504 at most 100 ms after it",
        f"{len(statuses)} queued requests: {started} started, {late} answered 504; after the deadline, by the server's "
        f"log {_spread(in_server)}, as the client saw it {_spread(in_client)}",
        started == 0 and late == len(statuses) and in_server[-1] <= 100,
        details={
            "requests": len(statuses),
            "started": started,
            "status_504": late,
            "late_in_server_ms": _figures(in_server),
            "late_in_client_ms": _figures(in_client),
        },
    )


# --- 9: the breaker --------------------------------------------------------------------------------------------------


async def breaker(directory: Path, seed: int, requests: int) -> Row:
    async with stack(directory, seed) as it:
        numbers = itertools.count()

        async def one(*, quick: bool = False) -> Outcome:
            return await ask(it.gateway, Question("m", next(numbers)), patience_s=0.2 if quick else 10.0)

        it.proxy.requests = reset_peer()
        failures = 0
        while not await asyncio.to_thread(metric, it.gateway, "sightline_breaker_open"):
            await one()
            failures += 1
            assert failures < 100, "the breaker stays closed"
        opened = time.monotonic()
        asked = it.proxy.asked.total()
        while_open, health_ms = [], []
        for _ in range(requests):
            while_open.append(await one())
            health_ms.append(await _health_ms(it.gateway))
        health_ms.sort()
        open_ms = sorted(1000 * outcome.took_s for outcome in while_open)
        refused = sum(outcome.status == 503 for outcome in while_open)
        tries_open = it.proxy.asked.total() - asked
        assert time.monotonic() - opened < 4.5, "too slow to be measured"

        it.proxy.requests = timeout()  # so that the probe takes a while, in which the others come
        asked, beside_ms = it.proxy.asked.total(), []
        probe_s = 0.0
        while not probe_s:
            burst = await asyncio.gather(*(one(quick=True) for _ in range(20)))
            probe_s = time.monotonic() - opened if it.proxy.asked.total() > asked else 0.0
            beside_ms = sorted(1000 * outcome.took_s for outcome in burst if outcome.status == 503)
        probes = it.proxy.asked.total() - asked

        it.proxy.requests = None
        healed = time.monotonic()
        while (await one()).end != "ok":
            await asyncio.sleep(0.02)
        healed_s = time.monotonic() - healed
        after = [await one() for _ in range(20)]
    well = sum(outcome.end == "ok" for outcome in after)
    met = (
        failures == 5 and refused == requests and tries_open == 0 and open_ms[_p(99, requests)] <= 10 and probes == 1
        and probe_s >= 5.0 and well == 20
    )  # fmt: skip
    return Row(
        9,
        "5 failures within 10 s open the breaker; one probe after 5 s; 503 within 10 ms while it is open",
        f"open after {failures} failed requests; {refused} of {requests} answered 503 in {_spread(open_ms)} "
        f"(GET /health on the same server, by turns: {_spread(health_ms)}), {tries_open} "
        f"reached the upstream; after {probe_s:.2f} s {probes} of 20 at once was let through as a probe; it closed "
        f"{healed_s:.2f} s after the upstream was well again",
        met,
        details={
            "failures": failures,
            "refused": refused,
            "open_ms": _figures(open_ms),
            "health_ms": _figures(health_ms),
            "upstream_requests_while_open": tries_open,
            "probes_of_20": probes,
            "beside_the_probe_ms": _figures(beside_ms),
            "healed_after_s": round(healed_s, 2),
            "answered_after": well,
        },
    )


async def _health_ms(port: int) -> float:
    """What this machine takes just now for a request that asks for nothing."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    await reader.read()
    writer.close()
    return 1000 * (time.perf_counter() - began)


# --- 10: retries -----------------------------------------------------------------------------------------------------


async def retries(directory: Path, seed: int, requests: int) -> Row:
    """An outage as it is, one in which the breaker is held shut, and answers that break off in the middle."""
    outage = await _outage(directory, seed, requests)
    async with (
        server(directory, "upstream", {"models": [fake()]}) as upstream,
        Proxy("127.0.0.1", upstream, seed=seed) as proxy,
    ):
        shut = await _without_breaker(proxy, requests, kind="openai", context_length=8192)
        counting = await _without_breaker(proxy, requests, kind="sightline")
        cut = await _cut_off(proxy, max(20, requests // 10))
    allowed = 1.2 * requests + 10  # what a budget has saved up
    met = max(outage, shut, counting) <= allowed and cut["tries"] == cut["begun"] == cut["failed"]
    return Row(
        10,
        "in an outage at most 1.2 tries for each request; none after the first byte",
        f"{requests} requests: {outage} tries with the breaker; {shut} with it held shut (of which at most ten had "
        f"been saved up), {counting} where a prompt is counted first; {cut['begun']} answers broken off after their "
        f"first byte: {cut['tries']} tries",
        met,
        details={
            "requests": requests,
            "outage": outage,
            "breaker_shut": shut,
            "breaker_shut_counting": counting,
            "cut": cut,
        },
    )


async def _outage(directory: Path, seed: int, requests: int) -> int:
    async with stack(directory, seed) as it:
        it.proxy.requests = reset_peer()
        before = it.proxy.asked.total()
        await _at_once(requests, 16, lambda number: ask(it.gateway, Question("m", number), patience_s=10.0))
        return it.proxy.asked.total() - before


async def _without_breaker(proxy: Proxy, requests: int, **options: Any) -> int:
    async with service(proxy.port, **options) as it:
        proxy.requests = reset_peer()
        before = proxy.asked.total()
        await _at_once(requests, 16, lambda number: _text(it, f"q{number}"))
        proxy.requests = None
        return proxy.asked.total() - before


async def _cut_off(proxy: Proxy, requests: int) -> dict[str, int]:
    async with service(proxy.port, kind="openai", context_length=8192) as it:
        proxy.answers = limit_data(1500, 6000)  # a head takes 250 bytes, a token 200
        before = proxy.asked[_CHAT]
        told = await _at_once(requests, 4, lambda number: _text(it, f"q{number}[[fake: length 60]]"))
        proxy.answers = None
    return {
        "tries": proxy.asked[_CHAT] - before,
        "begun": sum(bool(text) for text, _ in told),
        "failed": sum(error is not None for _, error in told),
    }


@asynccontextmanager
async def service(port: int, **options: Any) -> AsyncIterator[Service]:
    """A service of this process, whose breaker never opens."""
    given = {"base_url": f"http://127.0.0.1:{port}/v1", "model": "m", "budget": chaos_matrix.BUDGET, **options}
    it = Service(Settings(models=(ModelConfig(name="m", engine="remote", options=given),)))
    await it.start()
    it._models["m"].breaker = Breaker(failures=1_000_000)
    try:
        yield it
    finally:
        await it.close()


async def _text(it: Service, text: str) -> tuple[str, SightlineError | None]:
    """What was said, and how it failed."""
    request = ChatRequest("r", "m", (Message[ImageRef]("user", (Text(text),)),))
    said = ""
    try:
        async with aclosing(it.generate(request, timeout_s=20.0)) as items:
            async for item in items:
                event = getattr(item, "event", None)
                said += event.text if isinstance(event, TextDelta) else ""
    except SightlineError as error:
        return said, error
    return said, None


# --- 15: everything else that networks do ----------------------------------------------------------------------------


async def matrix(
    directory: Path, seed: int, requests: int, *, cells: list[chaos_matrix.Cell] | None = None,
    deadline_s: float = 3.0, at_once: int = 16, say: Callable[[str], None] = lambda line: None,
) -> Row:  # fmt: skip
    cells = cells or chaos_matrix.cells()
    shares = [len(range(index, requests, len(cells))) for index in range(len(cells))]
    results: list[chaos_matrix.Result] = []
    async with chaos_matrix.bench(directory, seed) as bench:
        for cell, share in zip(cells, shares, strict=True):
            began = time.monotonic()
            result = await chaos_matrix.run_cell(bench, cell, share, deadline_s=deadline_s, at_once=at_once, seed=seed)
            results.append(result)
            ends = ", ".join(f"{count} {end}" for end, count in sorted(result.ends.items()))
            say(
                f"  {cell!s:32} {ends:44} slowest {result.slowest_s:.2f} s, held up "
                f"{result.held_up_s:.2f} s, in {time.monotonic() - began:.0f} s"
            )
            for problem in result.problems[:5]:
                say(f"    {problem}")
            await chaos_matrix.heal(bench)
    ends = {end: sum(r.ends[end] for r in results if r.cell.side == "engine") for end in ("ok", "error")}
    client = sum(sum(r.ends.values()) for r in results if r.cell.side == "client")
    problems = [problem for result in results for problem in result.problems]
    slowest_s = max(result.slowest_s for result in results)
    stuck = sum(result.left_over for result in results)
    return Row(
        15,
        "through every toxic each request ends, well or with a well-formed error, within its deadline + 1 s",
        f"{requests} requests, deadline {deadline_s:g} s: slowest {slowest_s:.2f} s, {stuck} stuck, {len(problems)} "
        f"otherwise wrong; upstream's side: {ends['ok']} answered, {ends['error']} well-formed errors; "
        f"client's side: {client} ended in the server",
        not problems,
        details={"deadline_s": deadline_s, "cells": [result.to_json() for result in results]},
    )


# --- 16: cuts --------------------------------------------------------------------------------------------------------


async def cuts(directory: Path, seed: int, splits: int) -> Row:
    """A stream of our own server, cut at every byte, into slices of every size from 1 to 7, and at random."""
    stream = await record(directory)
    whole = read([stream])
    chance = random.Random(seed)
    tried = wrong = 0
    for pieces in cuts_of(stream, chance, splits):
        tried += 1
        wrong += read(pieces) != whole
    return Row(
        16,
        "an upstream's stream gives the same text for every cut of its bytes",
        f"{len(stream)} bytes cut in {tried} ways: {wrong} differ",
        wrong == 0 and len(whole) > 0,
        details={"bytes": len(stream), "splits": tried, "different": wrong},
    )


# --- all of it -------------------------------------------------------------------------------------------------------


async def _at_once(count: int, at_once: int, one: Callable[[int], Any]) -> list[Any]:
    places = asyncio.Semaphore(at_once)

    async def in_turn(number: int) -> Any:
        async with places:
            return await one(number)

    return await asyncio.gather(*(in_turn(number) for number in range(count)))


def _p(percent: int, count: int) -> int:
    return min(count - 1, count * percent // 100)


def _figures(sorted_: list[float]) -> dict[str, float]:
    if not sorted_:
        return {}
    at = {"p50": _p(50, len(sorted_)), "p99": _p(99, len(sorted_)), "max": -1}
    return {name: round(sorted_[index], 2) for name, index in at.items()}


def _spread(sorted_ms: list[float]) -> str:
    return ", ".join(f"{name} {value:.1f} ms" for name, value in _figures(sorted_ms).items())


def table(rows: list[Row]) -> str:
    """In Markdown."""
    lines = ["| figure | promise | measured | met | machine |", "|---|---|---|---|---|"]
    for row in rows:
        met = "yes" if row.met else "**no**"
        lines.append(f"| {row.figure} | {row.promise} | {row.measured} | {met} | held up by {row.held_up_ms} ms |")
    return "\n".join(lines)


async def report(requests: int, at_once: int, seed: int, only: set[int], say: Callable[[str], None]) -> list[Row]:
    small = max(40, min(1000, requests // 10))
    promises: dict[int, Callable[[Path], Any]] = {
        7: lambda directory: deadlines(directory, seed, min(400, small)),
        9: lambda directory: breaker(directory, seed, min(300, small)),
        10: lambda directory: retries(directory, seed, small),
        15: lambda directory: matrix(directory, seed, requests, at_once=at_once, say=say),
        16: lambda directory: cuts(directory, seed, requests),
    }
    rows = []
    for figure, measure in promises.items():
        if only and figure not in only:
            continue
        say(f"figure {figure} ...")
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
            async with chaos_matrix.HeldUp() as held_up:
                row = await measure(Path(directory))
        row.held_up_ms = round(1000 * held_up.most_s)
        say(f"  {'met' if row.met else 'NOT MET'}: {row.measured} ({time.monotonic() - began:.0f} s)")
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000, help="through the matrix of toxics (default: 10000)")
    parser.add_argument("--at-once", type=int, default=16, help="of those (default: 16)")
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--only", type=int, action="append", default=[], help="a figure; may be given again")
    parser.add_argument("--json", type=Path, help="where the figures are written, with their details")
    args = parser.parse_args()
    logging.getLogger("sightline").setLevel(logging.CRITICAL)  # of the service that runs in this process
    began = time.monotonic()
    rows = asyncio.run(
        report(args.requests, args.at_once, args.seed, set(args.only), lambda line: print(line, flush=True))
    )
    print()
    print(table(rows))
    if args.json is not None:
        told = {
            "command": "python -m tests.chaos_report "
            f"--requests {args.requests} --at-once {args.at_once} --seed {args.seed}",
            "machine": f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}",
            "load_average": [round(load, 1) for load in os.getloadavg()],
            "took_s": round(time.monotonic() - began),
            "promises": [dataclasses.asdict(row) for row in rows],
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
