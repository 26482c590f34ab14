"""What grammars cost: `python -m sightline.bench.grammar`.

First over a made-up vocabulary (150,000 tokens, as large models have): the time to compile a schema and the time of a
token's mask, which includes taking the token before it. Then on an engine: tokens a second of plain requests in a batch
of their kind, and where half of the batch is held to a schema. The two alternate, so that whatever else the machine
does meets both; told is the median of the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sightline.config import PEEK, ModelConfig
from sightline.engines import Engine, engine_names, open_engine
from sightline.engines.constraint import Constraints
from sightline.engines.tool_formats import GENERIC
from sightline.types import EngineRequest, Finish, Image, Message, ResponseFormat, SamplingParams, Text

TEXT = {"type": "string"}
SCHEMAS: Mapping[str, dict[str, Any]] = {
    "any object": {"type": "object"},
    "a record of 5": {
        "type": "object",
        "properties": {"name": TEXT, "age": {"type": "integer"}, "tags": {"type": "array", "items": TEXT},
                       "colour": {"enum": ["red", "green", "blue"]}, "when": {"type": "string", "format": "date-time"}},
        "required": ["name", "age", "tags", "colour", "when"],
        "additionalProperties": False,
    },
    "a choice of 2,500": {"enum": [f"value {i} {i * i}" for i in range(2500)]},
    "a pattern": {"type": "string", "pattern": "^([A-Z][a-z]+ )+[0-9]{3,9}$"},
    "a tree": {"$ref": "#/$defs/n", "$defs": {"n": {
        "type": "object", "properties": {"v": TEXT, "c": {"type": "array", "items": {"$ref": "#/$defs/n"}}},
        "required": ["v", "c"], "additionalProperties": False}}},
}  # fmt: skip


class MadeUp:
    """Bytes, words of a few syllables with and without a space, and an end."""

    def __init__(self, size: int, seed: int = 0) -> None:
        chance = np.random.default_rng(seed)
        letters = list("abcdefghijklmnopqrstuvwxyz")
        syllables = ["".join(chance.choice(letters, chance.integers(1, 4))) for _ in range(3000)]
        words = {bytes([value]) for value in range(256)} | {b'{"', b'":', b'",', b'"}', b'": "', b'", "', b"\n\n"}
        while len(words) < size - 1:
            word = "".join(syllables[int(i)] for i in chance.integers(0, 3000, chance.integers(1, 4)))
            words.add((" " + word if chance.random() < 0.5 else word.capitalize()).encode())
        self.words = sorted(words)
        self._bytes = {word[0]: token for token, word in enumerate(self.words) if len(word) == 1}
        self.size = size
        self.eos_tokens = frozenset({size - 1})
        self.added = {size - 1: b"<|end|>"}

    def spelling(self, token: int) -> bytes:
        return self.added.get(token) or self.words[token]

    def tokens_of(self, texts: Iterable[str]) -> frozenset[int]:
        return frozenset()

    def encode(self, text: str) -> list[int]:
        return [self._bytes[byte] for byte in text.encode()]


def bound(schema: dict[str, Any]) -> EngineRequest:
    return EngineRequest("bench", "bench", (), response_format=ResponseFormat("json_schema", schema, strict=True))


async def masks(size: int, steps: int) -> None:
    vocabulary = MadeUp(size)
    constraints = Constraints(vocabulary, vocabulary.encode, GENERIC)
    chance = np.random.default_rng(1)
    began = time.perf_counter()
    await constraints.of(bound({"const": 0}))
    print(f"{size:,} tokens; first schema, with all that is made for it once: {time.perf_counter() - began:.2f} s")
    print(f"{'schema':>20}  compile    mask mean       p99       max   (ms)")
    for name, schema in SCHEMAS.items():
        began = time.perf_counter()
        constraint = await constraints.of(bound(schema))
        compiled = time.perf_counter() - began
        assert constraint is not None
        times = []
        for _ in range(steps):
            began = time.perf_counter()
            allowed = np.flatnonzero(constraint.mask())
            times.append(time.perf_counter() - began)
            token = int(chance.choice(allowed))
            began = time.perf_counter()
            if token in vocabulary.eos_tokens or constraint.accept(token):
                constraint = await constraints.of(bound(schema))
                assert constraint is not None
            else:
                times[-1] += time.perf_counter() - began
        ms = np.array(times) * 1000
        told = (compiled * 1000, ms.mean(), np.quantile(ms, 0.99), ms.max())
        print(f"{name:>20} " + " ".join(f"{value:9.2f}" for value in told))
    constraints.close()


async def neighbours(engine: Engine, clients: int, max_tokens: int, rounds: int) -> None:
    plain = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    # A string without an end: as many tokens as the others'.
    held = ResponseFormat("json_schema", {"type": "string", "minLength": 20_000}, strict=True)

    async def tokens_a_second(number: int, wanted: ResponseFormat) -> float:
        message = Message[Image]("user", (Text(f"Tell me more. {number}"),))
        request = EngineRequest(f"bench-{number}", "bench", (message,), plain, response_format=wanted)
        first = last = 0.0
        async for event in engine.generate(request):
            last = time.perf_counter()
            first = first or last
            if isinstance(event, Finish):
                return (event.usage.completion_tokens - 1) / (last - first)
        raise AssertionError("a stream without an end")

    async def batch(others: ResponseFormat) -> float:
        wanted = [ResponseFormat()] * (clients // 2) + [others] * (clients - clients // 2)
        speeds = await asyncio.gather(*(tokens_a_second(i, w) for i, w in enumerate(wanted)))
        return float(np.mean(speeds[: clients // 2]))

    await batch(held)
    pairs = [(await batch(ResponseFormat()), await batch(held)) for _ in range(rounds)]
    alone, beside = (float(np.median(values)) for values in zip(*pairs, strict=True))
    ratio = float(np.median([held / free for free, held in pairs]))
    print(
        f"{clients} at once, a plain one: {alone:.1f} tokens a second among its kind; where half are held to a schema"
    )
    print(f"{beside:.1f}, which is {ratio:.3f} times as fast")


async def main(args: argparse.Namespace) -> None:
    await masks(args.vocabulary, args.steps)
    engine = open_engine(ModelConfig(name="bench", engine=args.engine, source=args.model))
    await engine.start()
    try:
        for clients in args.clients:
            await neighbours(engine, clients, args.max_tokens, args.rounds)
    finally:
        await engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--steps", type=int, default=300, help="masks of each schema")
    parser.add_argument("--engine", default="openvino", help=f"one of {', '.join(engine_names())}")
    parser.add_argument("--model", default=PEEK, help="as of `sightline serve`")
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[2, 8])
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=7)
    asyncio.run(main(parser.parse_args()))
