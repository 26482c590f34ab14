"""Whether times tell what they must not: of a key that is nearly right, of a picture that another tenant has sent.

    python -m tests.access.timing        2,000 tries with keys, 200 pictures of each kind (about a minute)

Two samples are taken in turns, in random order, so that whatever else the machine does falls on both, and compared by
Welch's t-test on their logarithms (times are skewed). A *control* that does leak is measured in the same way: it shows
that the test would see one.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from starlette.types import ASGIApp

from sightline.access.gate import Gate
from sightline.access.keys import new_secret
from sightline.config import AccessPolicy, FetchPolicy, ImageLimits, ModelConfig
from sightline.errors import Unauthenticated
from sightline.images.budget import CellBudget
from sightline.images.intake import Intake
from sightline.types import ImageRef
from tests.access.keyed import Keyed, bearer
from tests.api.standin import chat, post


def p_of_welch(left: Sequence[float], right: Sequence[float]) -> float:
    """Two-sided, that both are of one distribution (B. L. Welch, Biometrika 34, 1947). With 20 or more in each,
    Student's distribution is the normal one, near enough."""
    a, b = [math.log(x) for x in left], [math.log(x) for x in right]
    error = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
    z = abs(statistics.fmean(a) - statistics.fmean(b)) / error
    return math.erfc(z / math.sqrt(2))


def in_turns(count: int, left: Callable[[], float], right: Callable[[], float]) -> tuple[list[float], list[float]]:
    """`count` of each."""
    samples: tuple[list[float], list[float]] = ([], [])
    for which in random.sample([0, 1] * count, 2 * count):
        samples[which].append((left, right)[which]())
    return samples


# --- keys ------------------------------------------------------------------------------------------------------------


def of_keys(count: int, *, leaks: bool = False) -> float:
    """p of: a key whose last character alone is wrong takes as long as one that has nothing in common with any.
    `leaks`: by the control."""
    with tempfile.TemporaryDirectory() as directory:
        keyed = Keyed(Path(directory))
        secret = keyed.key()
        gate = Gate(AccessPolicy(), keyed.file.path)
        ask: Callable[[bytes], object] = to_leaky(secret.encode()) if leaks else gate.identify

        def timed(secret: bytes) -> float:
            began = time.perf_counter_ns()
            with suppress(Unauthenticated):
                ask(secret)
            return float(time.perf_counter_ns() - began)

        # Made before any is timed: what is done just before a call has its part in how long that takes.
        wrong = "A" if secret[-1] != "A" else "B"
        nearly = iter([f"{secret[:-1]}{wrong}".encode() for _ in range(count)])
        unknown = iter([new_secret().encode() for _ in range(count)])

        def ask_nearly() -> float:
            return timed(next(nearly))

        def ask_unknown() -> float:
            return timed(next(unknown))

        return p_of_welch(*in_turns(count, ask_nearly, ask_unknown))


def to_leaky(known: bytes) -> Callable[[bytes], None]:
    """The control: a comparison that stops at the first difference, character by character."""

    def identify(secret: bytes) -> None:
        if not all(a == b for a, b in zip(known, secret, strict=True)):
            raise Unauthenticated("no")

    return identify


# --- pictures --------------------------------------------------------------------------------------------------------


def noise(seed: int) -> str:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


async def _timed(app: ASGIApp, secret: str, uri: str) -> float:
    body = chat(
        max_tokens=1, messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": uri}}]}]
    )
    began = time.perf_counter()
    reply = await post(app, body, **bearer(secret))
    assert reply.status == 200, reply.body
    return time.perf_counter() - began


async def of_pictures(count: int, *, own: bool = False) -> float:
    """p of: a picture that another tenant has sent takes as long as one that nobody has. `own`: that it has sent
    itself, which is the control."""
    with tempfile.TemporaryDirectory() as directory:
        keyed = Keyed(Path(directory), models=(ModelConfig(name="m", engine="fake"),))
        first, second = keyed.key("first"), keyed.key("second")
        async with keyed.running() as app:
            known = [noise(number) for number in range(count)]
            for uri in known:
                await _timed(app, second if own else first, uri)
            fresh = [noise(count + number) for number in range(count)]
            samples: tuple[list[float], list[float]] = ([], [])
            for which in random.sample([0, 1] * count, 2 * count):
                samples[which].append(await _timed(app, second, (known, fresh)[which].pop()))
            return p_of_welch(*samples)


async def of_decoding(count: int, *, own: bool = False) -> float:
    """As `of_pictures`, of the part of the way that may keep pictures: fetched, decoded, or found."""
    limits = ImageLimits(decoders=1)
    intake = Intake(limits, FetchPolicy())
    await intake.start()
    try:

        async def timed(number: int, tenant: str) -> float:
            uri = noise(number)
            began = time.perf_counter()
            await intake.resolve([ImageRef(uri, "picture")], [CellBudget(28, 16 * 784, 128 * 784)], tenant=tenant)
            return time.perf_counter() - began

        for number in range(count):
            await timed(number, "second" if own else "first")
        unasked = [list(range(count)), list(range(count, 2 * count))]
        samples: tuple[list[float], list[float]] = ([], [])
        for which in random.sample([0, 1] * count, 2 * count):
            samples[which].append(await timed(unasked[which].pop(), "second"))
        return p_of_welch(*samples)
    finally:
        await intake.close()


async def tells_nothing(measure: Callable[[], Awaitable[float]], *, rounds: int = 3) -> bool:
    """Whether p is above 0.01 in one round. Of nothing, one round in a hundred is below, and all three are one time in
    a million; what leaks is below in each."""
    for _ in range(rounds):
        if await measure() > 0.01:
            return True
    return False


async def main() -> None:
    print(f"keys, 2,000 tries:             p = {of_keys(1000):.3f}   control {of_keys(1000, leaks=True):.2g}")
    p, control = await of_pictures(200), await of_pictures(200, own=True)
    print(f"pictures, 200 hits and misses: p = {p:.3f}   control {control:.2g}")


if __name__ == "__main__":
    asyncio.run(main())
