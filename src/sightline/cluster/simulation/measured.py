"""Measured points, and what the simulation says in their place: `python -m sightline.cluster.simulation.measured`.

Without a file it measures 1, 2, 4 and 8 engines here, which takes a minute and little of a processor; with one
(`{"points": [...]}`) it takes those. It fails where the simulation is off by more than 15 %.

A point is a closed loop: clients that each ask one thing after the other, all about pictures nobody has seen before,
until each has its requests answered. `make bench-cluster` measures such through Ray Serve; `measure` does without a
server, on engines of this process.
"""

# ruff: noqa: T201 - a program that prints its table
from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from sightline.cluster.simulation.policy import POLICIES
from sightline.cluster.simulation.replica import Pace
from sightline.cluster.simulation.run import Way, trace
from sightline.cluster.simulation.traffic import Conversation, Turn
from sightline.config import ModelConfig
from sightline.engines.fake import FakeEngine
from sightline.types import EngineRequest, SamplingParams, TextDelta

POLICY = "affinity"
WITHIN = 0.15
"""How far the simulation may be off, of what was measured."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of what, and what came of it. A file has a list of them, as `points`."""

    replicas: int
    clients: int
    requests: int
    """Of each client, one after the other."""
    prompt_tokens: int
    """Of each request, all of which are computed."""
    answer_tokens: int
    slots: int = 8
    step_s: float = 0.05
    prefill_chunk: int = 256
    prefill_s_per_token: float = 0.0
    before_s: float = 0.0
    """From a client until its request stands in the ingress' line: sent, read, its picture looked at and counted."""
    out_s: float | None = None
    """As `Way` has it; None: no ingress is in between."""
    back_s: float = 0.0
    """As `Way` has it."""
    tokens_per_s: float = 0.0
    """Of answers, from the first request to the last token."""
    ttft_p50_s: float | None = None
    """None: not measured."""

    def pace(self) -> Pace:
        """Without caches: the fake engine takes its time also for what it has seen."""
        return Pace(
            self.slots, self.step_s, self.prefill_chunk, self.prefill_s_per_token, 0.0,
            prefix_tokens=0, embedding_tokens=0,
        )  # fmt: skip

    def way(self) -> Way | None:
        return None if self.out_s is None else Way(self.out_s, self.back_s)

    def conversations(self) -> list[Conversation]:
        """A client's requests are of one conversation that has no memory; each is about a picture of its own."""
        pictures = itertools.count()
        return [
            [
                Turn(next(pictures), 0, 0, self.prompt_tokens, self.answer_tokens, self.before_s)
                for _ in range(self.requests)
            ]
            for _ in range(self.clients)
        ]


POINTS = [
    Point(
        replicas=replicas, clients=10 * replicas, requests=3, prompt_tokens=600, answer_tokens=40,
        prefill_s_per_token=0.0002,
    )
    for replicas in (1, 2, 4, 8)
]  # fmt: skip
"""Two of ten clients wait at any time."""


@dataclass(frozen=True, slots=True)
class Compared:
    point: Point
    simulated: Point

    @property
    def off(self) -> float:
        """By how much of what was measured the simulation is off, at worst."""
        pairs = [(self.point.tokens_per_s, self.simulated.tokens_per_s)]
        if self.point.ttft_p50_s is not None and self.simulated.ttft_p50_s is not None:
            pairs.append((self.point.ttft_p50_s, self.simulated.ttft_p50_s))
        return max(abs(simulated - measured) / measured for measured, simulated in pairs)


def compare(points: Sequence[Point]) -> list[Compared]:
    return [Compared(point, simulated(point)) for point in points]


def simulated(point: Point) -> Point:
    """The same point, as it comes out of the simulation."""
    asked = [one for _, one in trace(point.conversations(), point.replicas, POLICY, point.pace(), way=point.way())]
    before, back = point.before_s, point.back_s
    return _told(point, [(one.arrived - before, one.first_token + back, one.finished + back) for one in asked])


async def measure(point: Point) -> Point:
    """The same point, as it comes out of fake engines in this process, by the clock of the running loop."""
    names = [f"replica-{number}" for number in range(point.replicas)]
    engines = {name: FakeEngine(_config(point)) for name in names}
    for engine in engines.values():
        await engine.start()
    choose = POLICIES[POLICY](names, point.slots, random.Random(0))
    loads = dict.fromkeys(names, 0)
    clock, times = asyncio.get_running_loop().time, []

    async def ask(conversation: Conversation) -> None:
        for turn in conversation:
            name, arrived = choose(turn, loads), clock()
            loads[name] += 1
            told = [clock() async for event in engines[name].generate(_request(turn)) if isinstance(event, TextDelta)]
            loads[name] -= 1
            times.append((arrived, told[0], told[-1]))

    began = clock()
    await asyncio.gather(*map(ask, point.conversations()))
    for engine in engines.values():
        await engine.close()
    return _told(point, [(arrived - began, first - began, last - began) for arrived, first, last in times])


def _config(point: Point) -> ModelConfig:
    options = {
        "slots": point.slots,
        "step_s": point.step_s,
        "prefill_chunk": point.prefill_chunk,
        "prefill_s_per_token": point.prefill_s_per_token,
        "context_length": point.prompt_tokens + point.answer_tokens,
        "script": f"[[fake: say {'so ' * point.answer_tokens}]]",
    }
    return ModelConfig(name="fake", engine="fake", source="fake", options=options)


def _request(turn: Turn) -> EngineRequest:
    sampling = SamplingParams(max_tokens=turn.answer_tokens)
    return EngineRequest("measured", "fake", (), sampling, prompt=(ord("x"),) * turn.text_tokens)


def _told(point: Point, times: Sequence[tuple[float, float, float]]) -> Point:
    """`times`: of each request, when it arrived, when its first token did and when its last."""
    waits = [first - arrived for arrived, first, _ in times]
    return msgspec.structs.replace(
        point,
        tokens_per_s=len(times) * point.answer_tokens / max(last for *_, last in times),
        ttft_p50_s=float(np.median(waits)),
    )


class _File(msgspec.Struct, frozen=True):
    points: list[Point]


def read(file: Path) -> list[Point]:
    """Points that were measured elsewhere: `{"points": [...]}`, whatever else it says. Raises as msgspec does."""
    return msgspec.json.decode(file.read_bytes(), type=_File).points


def table(compared: Sequence[Compared]) -> str:
    lines = [
        "| replicas | clients | tokens/s, measured | simulated | TTFT p50, measured, s | simulated | off by |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for each in compared:
        measured, told = each.point, each.simulated
        wait = "" if measured.ttft_p50_s is None else f"{measured.ttft_p50_s:.3f}"
        lines.append(
            f"| {measured.replicas} | {measured.clients} | {measured.tokens_per_s:.1f} | {told.tokens_per_s:.1f} "
            f"| {wait} | {told.ttft_p50_s:.3f} | {each.off:.1%} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", help="points that were measured elsewhere")
    file = parser.parse_args().file
    points = read(file) if file is not None else [asyncio.run(measure(point)) for point in POINTS]
    compared = compare(points)
    print(table(compared), end="")
    return int(any(each.off > WITHIN for each in compared))


if __name__ == "__main__":
    sys.exit(main())
