"""Load on an engine alone, without HTTP: `python -m sightline.bench.engine`.

Through the same door as the server's, so the engine runs in its own process. Closed loop: each of N clients reads one
answer after another about a picture of its own that nobody has asked about before, so nothing comes from a cache.
Prints, for each N: time to first token (median and 99th percentile), time per output token (median over answers) and
tokens a second over all clients. First it tells how long the engine took to start, and to answer once after that.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass, field

import numpy as np

from sightline.config import PEEK, ModelConfig
from sightline.engines import Engine, engine_names, open_engine
from sightline.types import EngineRequest, Finish, Image, Message, SamplingParams, Text

QUESTION = "What colour is the circle?"


@dataclass
class Run:
    clients: int
    ttft_s: list[float] = field(default_factory=list)
    tpot_s: list[float] = field(default_factory=list)
    tokens: int = 0
    wall_s: float = 0.0


def picture(engine: Engine, number: int) -> Image:
    """Noise that no other number gives, in the largest square that the model takes."""
    vision = engine.info.vision
    assert vision is not None, "this load asks about pictures"
    width, height, _ = vision.serve(4000, 4000)
    pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image(pixels, f"sha256:bench-{number}", width, height, "image/png", pixels.nbytes)


async def one_answer(run: Run, engine: Engine, number: int, max_tokens: int) -> None:
    content = (picture(engine, number), Text(QUESTION))
    sampling = SamplingParams(max_tokens=max_tokens, temperature=0.0, ignore_eos=True)
    request = EngineRequest(f"bench-{number}", "bench", (Message[Image]("user", content),), sampling)
    began = time.perf_counter()
    first = last = 0.0
    async for event in engine.generate(request):
        if isinstance(event, Finish):
            run.tokens += event.usage.completion_tokens
            run.ttft_s.append(first - began)
            if event.usage.completion_tokens > 1:
                run.tpot_s.append((last - first) / (event.usage.completion_tokens - 1))
        else:
            last = time.perf_counter()
            first = first or last


async def measure(engine: Engine, clients: int, answers: int, max_tokens: int) -> Run:
    run = Run(clients)
    began = time.perf_counter()

    async def client(index: int) -> None:
        for i in range(answers):
            await one_answer(run, engine, int(began * 1e6) + index * answers + i, max_tokens)

    await asyncio.gather(*(client(i) for i in range(clients)))
    run.wall_s = time.perf_counter() - began
    return run


def report(run: Run) -> str:
    def ms(values: list[float], share: float) -> str:
        return f"{np.quantile(values, share) * 1000:.1f}" if values else "-"

    return (
        f"{run.clients:7d} {ms(run.ttft_s, 0.5):>9} {ms(run.ttft_s, 0.99):>9} {ms(run.tpot_s, 0.5):>9} "
        f"{run.tokens / run.wall_s:9.0f}"
    )


async def main(args: argparse.Namespace) -> None:
    began = time.perf_counter()
    engine = open_engine(ModelConfig(name="bench", engine=args.engine, source=args.model))
    await engine.start()
    started = time.perf_counter()
    try:
        await measure(engine, 1, 1, 1)
        answered = time.perf_counter()
        print(f"started in {started - began:.2f} s, first answer {answered - started:.3f} s later")
        await measure(engine, 1, 2, 8)  # warm
        print("clients  TTFT p50  TTFT p99  TPOT p50   tokens/s   (times in ms)")
        for clients in args.clients:
            print(report(await measure(engine, clients, args.answers, args.max_tokens)), flush=True)
    finally:
        await engine.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", default="openvino", help=f"one of {', '.join(engine_names())}")
    parser.add_argument("--model", default=PEEK, help="as of `sightline serve`")
    parser.add_argument("--clients", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 16])
    parser.add_argument("--answers", type=int, default=8, help="answers each client asks for")
    parser.add_argument("--max-tokens", type=int, default=64)
    asyncio.run(main(parser.parse_args()))
