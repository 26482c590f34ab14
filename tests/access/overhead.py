"""What a key costs a request: CPU of one core, with a hundred keys and every limit set.

python -m tests.access.overhead
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path
from typing import Any

from sightline.access.gate import Gate
from sightline.access.permit import acting_by, current
from sightline.api.entrance import Entrance, to_rate_headers
from sightline.config import AccessPolicy, KeyLimits
from tests.access.keyed import Keyed

REQUESTS = 3000
ROUNDS = 7


async def cost_us(entrance: Entrance, secret: str) -> float:
    """Microseconds of CPU: identified, admitted, its tokens reserved and settled, its headers written."""
    headers = [(b"host", b"localhost"), (b"authorization", f"Bearer {secret}".encode()), (b"user-agent", b"x")]
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(REQUESTS):
            scope: dict[str, Any] = {"method": "POST", "path": "/v1/chat/completions", "headers": headers}
            with acting_by(await entrance.admit(scope)):
                async with current().spending(10, 20) as spent:
                    spent.read(10)
                to_rate_headers(scope)
        best = min(best, (time.process_time() - began) / REQUESTS * 1e6)
    return best


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        keyed = Keyed(Path(directory))
        for number in range(100):
            keyed.key(f"key-{number}")
        limits = dict.fromkeys(KeyLimits.__struct_fields__, 10**12)
        secrets = {"without limits": keyed.key("free"), "with every limit": keyed.key("limited", **limits)}
        entrance = Entrance(Gate(AccessPolicy(), keyed.file.path))
        for name, secret in secrets.items():
            print(f"a key {name}: {await cost_us(entrance, secret):.1f} us")


if __name__ == "__main__":
    asyncio.run(main())
