"""What stands in front of several proxies, as a load balancer does: a connection goes to one that takes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress


@asynccontextmanager
async def balancing(ports: Callable[[], Sequence[int]]) -> AsyncIterator[str]:
    """The address of one before these ports of this machine, in turn. It knows TCP only: what is under way on a
    connection that breaks is the client's to ask again."""
    turn = 0

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal turn
        turn += 1
        found = list(ports())
        for place in range(len(found)):
            try:
                there, to = await asyncio.open_connection("127.0.0.1", found[(turn + place) % len(found)])
            except OSError:
                continue
            await asyncio.gather(_carry(reader, to), _carry(there, writer))
            return
        writer.transport.abort()

    async with await asyncio.start_server(connect, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """To the end, and what broke on one side breaks on the other."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.transport.abort()
    finally:
        with suppress(OSError):
            writer.close()
