"""What a batch costs: `Batch` beside the same paced engine driven bare, in one run. `python -m sightline.bench.batch`.

The engine is the fake one, in its own process as always: 8 sequences at once, a step of 50 ms. Bare means that its
`generate` is called with ready-made requests, as many at once as keep it full, and nothing else is done.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from sightline.batch import Batch
from sightline.config import ModelConfig, Settings
from sightline.engines import open_engine
from sightline.types import EngineRequest, Finish, Image, Message, SamplingParams, Text

SLOTS = 8
_PROMPT = "hello"
_SIDE = 448


def _model(step_s: float) -> ModelConfig:
    return ModelConfig(name="fake", engine="fake", max_concurrent=SLOTS, options={"step_s": step_s, "slots": SLOTS})


async def drive_bare(model: ModelConfig, total: int, max_tokens: int) -> float:
    """Requests a second."""
    pixels = np.zeros((_SIDE, _SIDE, 3), np.uint8)
    picture = Image(pixels, "sha256:0", _SIDE, _SIDE, "image/jpeg", 1)
    engine = open_engine(model)
    await engine.start()
    numbers = iter(range(total))

    async def drive() -> None:
        for number in numbers:
            messages = (Message[Image]("user", (picture, Text(_PROMPT))),)
            request = EngineRequest(f"bare-{number}", "fake", messages, SamplingParams(max_tokens=max_tokens))
            async with aclosing(engine.generate(request)) as events:
                async for event in events:
                    assert not isinstance(event, Finish) or event.usage.completion_tokens == max_tokens

    try:
        began = time.perf_counter()
        await asyncio.gather(*(drive() for _ in range(2 * SLOTS)))
        return total / (time.perf_counter() - began)
    finally:
        await engine.close()


async def drive_batch(model: ModelConfig, total: int, max_tokens: int, folder: Path) -> float:
    """Rows a second. Every picture is another file of 100 KB or so, so that each is read and decoded."""
    noise = np.random.default_rng(0)
    paths = []
    for number in range(total):
        small = noise.integers(0, 255, (_SIDE // 8, _SIDE // 8, 3), np.uint8)
        file = io.BytesIO()
        PILImage.fromarray(small).resize((2 * _SIDE, 2 * _SIDE)).save(file, "JPEG", quality=90)
        path = folder / f"{number}.jpg"
        path.write_bytes(file.getvalue())
        paths.append(path)
    async with Batch(_PROMPT, settings=Settings(models=(model,)), max_tokens=max_tokens) as batch:
        began = time.perf_counter()
        async for row in batch.run(paths):
            assert row.error is None, row.error
            assert row.completion_tokens == max_tokens
        return total / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--max-tokens", type=int, default=8)
    parser.add_argument("--step-s", type=float, default=0.05)
    args = parser.parse_args()
    model = _model(args.step_s)
    bare = asyncio.run(drive_bare(model, args.pictures, args.max_tokens))
    with tempfile.TemporaryDirectory() as folder:
        batch = asyncio.run(drive_batch(model, args.pictures, args.max_tokens, Path(folder)))
    print(json.dumps({"bare_per_s": round(bare, 2), "batch_per_s": round(batch, 2), "ratio": round(batch / bare, 3)}))


if __name__ == "__main__":
    main()
