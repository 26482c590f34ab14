"""Figure 20: front ends are replaced under requests. `python -m tests.reliability.rolling`.

Two front ends of one server are replaced one after the other, three times, while eight clients ask, half of them on
connections that they keep. Every request that does not get its answer counts, a refused or reset connection too.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from sightline.bench import frontends
from tests.reliability.result import Result

PROMISE = "1,000 requests during 3 rolling restarts with 2 gateways: 0 failed"


async def measure(*, rounds: int = 3, requests: int = 1000) -> Result:
    outcomes, wall_s = await asyncio.to_thread(_replaced, rounds, requests)
    failed = outcomes.total() - outcomes["ok"]
    measured = f"{outcomes.total():,} requests during {rounds} replacements of both in {wall_s:.0f} s: {failed} failed"
    met = failed == 0 and outcomes.total() >= requests
    return Result(20, PROMISE, measured, met, {"outcomes": dict(outcomes), "wall_s": round(wall_s, 1)})


def _replaced(rounds: int, requests: int) -> tuple[Counter[str], float]:
    with frontends.serving(2, 0.5) as server:
        return asyncio.run(frontends.replace(server, rounds, requests))


if __name__ == "__main__":
    from tests.reliability.result import HEADER

    print(HEADER, asyncio.run(measure()).row(), sep="\n")
