"""A real stream of our own server, and every way to cut its bytes (safety figure 16)."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path

from sightline.engines.remote.answer import Answer
from sightline.engines.remote.sse import ServerEvents
from sightline.types import TextDelta
from tests.chaos_matrix import fake, server


async def record(directory: Path) -> bytes:
    """The body of a streamed answer."""
    text = "Gr\u00fc\u00dfe \U0001f431 caf\u00e9"
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": text}]}).encode()
    head = "POST /v1/chat/completions HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    async with server(directory, "upstream", {"models": [fake()]}) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        received = await reader.read()
        writer.close()
    return received.partition(b"\r\n\r\n")[2]


def cuts_of(stream: bytes, chance: random.Random, count: int) -> Iterator[list[bytes]]:
    """In two at every byte, in slices of every size from 1 to 7, and `count` times at random."""
    for cut in range(len(stream) + 1):
        yield [stream[:cut], stream[cut:]]
    for size in range(1, 8):
        yield [stream[start : start + size] for start in range(0, len(stream), size)]
    for _ in range(count):
        places = sorted({0, len(stream), *(chance.randrange(len(stream)) for _ in range(chance.randrange(1, 40)))})
        yield [stream[a:b] for a, b in itertools.pairwise(places)]


def read(pieces: list[bytes]) -> str:
    """The text that the engine `remote` makes of a body which comes so."""
    events, answer = ServerEvents(), Answer("r")
    deltas = [delta for piece in pieces for event in events.feed(piece) for delta in answer.take(event)]
    assert answer.done
    return "".join(delta.text for delta in deltas if isinstance(delta, TextDelta))
