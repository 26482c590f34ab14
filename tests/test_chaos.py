"""The proxy that harms, and a gateway behind it. `make chaos` measures the whole matrix."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sightline.config import ModelConfig, Settings
from sightline.errors import EngineUnavailable
from sightline.service import Service
from sightline.types import ChatRequest, ImageRef, Message, Text, TextDelta
from tests import chaos_matrix
from tests.chaos import Proxy, Toxic, bandwidth, latency, limit_data, reset_peer, slicer, timeout
from tests.chaos_matrix import MIXED, Cell
from tests.engines.remote.toxic import ANSWER as UPSTREAMS_ANSWER
from tests.engines.remote.toxic import STREAM, toxic
from tests.engines.remote.toxic import TEXT as UPSTREAMS_TEXT

pytestmark = pytest.mark.anyio

ANSWER = b"0123456789" * 40


@dataclass
class Peer:
    """Sends `ANSWER` for each line, and remembers in which pieces the lines came."""

    pieces: list[bytes] = field(default_factory=list)


@asynccontextmanager
async def proxied(seed: int = 1) -> AsyncIterator[tuple[Proxy, Peer]]:
    peer = Peer()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(65536):
                peer.pieces.append(piece)
                if piece.endswith(b"\n"):
                    writer.write(ANSWER)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Proxy("127.0.0.1", server.sockets[0].getsockname()[1], seed=seed) as proxy:
        yield proxy, peer


async def exchange(proxy: Proxy, *, within_s: float = 5.0) -> tuple[bytes, float]:
    """What came back, until all of it was there or no more comes, and how long that took."""
    began, received = time.perf_counter(), b""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        async with asyncio.timeout(within_s):
            writer.write(b"POST /ask HTTP/1.1\r\n")
            while len(received) < len(ANSWER) and (piece := await reader.read(65536)):
                received += piece
    finally:
        writer.close()
    return received, time.perf_counter() - began


async def test_without_a_toxic_all_passes_and_is_counted() -> None:
    async with proxied() as (proxy, _):
        assert (await exchange(proxy))[0] == ANSWER
        assert proxy.connections == 1
        assert proxy.asked == {"POST /ask": 1}


@pytest.mark.parametrize(
    ("direction", "toxic", "least_s"),
    [
        ("answers", latency(0.2, 0.05), 0.15),
        ("requests", latency(0.2, 0.05), 0.15),
        ("answers", bandwidth(4_000), 0.04),  # two pieces, the second after 50 ms
        ("answers", slicer(), 0.0),
    ],
    ids=["latency", "latency of requests", "bandwidth", "slicer"],
)
async def test_what_only_slows_loses_nothing(direction: str, toxic: Toxic, least_s: float) -> None:
    async with proxied() as (proxy, _):
        setattr(proxy, direction, toxic)
        received, took_s = await exchange(proxy)
    assert received == ANSWER
    assert took_s >= least_s


async def test_slices_are_one_to_seven_bytes() -> None:
    async with proxied() as (proxy, peer):
        proxy.requests = slicer()
        await exchange(proxy)
    assert b"".join(peer.pieces) == b"POST /ask HTTP/1.1\r\n"
    assert len(peer.pieces) > 1


async def test_what_is_swallowed_is_silence_and_no_end() -> None:
    async with proxied() as (proxy, peer):
        proxy.answers = timeout()
        with pytest.raises(TimeoutError):
            await exchange(proxy, within_s=0.3)
        assert peer.pieces, "it was asked"
        proxy.answers = None
        assert (await exchange(proxy))[0] == ANSWER


async def test_a_reset_is_a_reset() -> None:
    async with proxied() as (proxy, peer):
        proxy.requests = reset_peer()
        with pytest.raises(ConnectionResetError):
            await exchange(proxy)
        assert peer.pieces == []


async def test_a_limit_ends_the_connection_in_the_same_places_each_time() -> None:
    async def cuts(seed: int) -> list[int]:
        async with proxied(seed) as (proxy, _):
            proxy.answers = limit_data(1, 399)
            return [len((await exchange(proxy))[0]) for _ in range(5)]

    first = await cuts(7)
    assert all(0 < length < len(ANSWER) for length in first)
    assert first == await cuts(7)
    assert first != await cuts(8)


async def test_a_remote_server_that_was_away_at_start_is_used_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.models.reload_after_s", lambda failures: 0.05)
    async with toxic() as upstream, Proxy("127.0.0.1", int(upstream.base_url.split(":")[2][:-3]), seed=1) as proxy:
        upstream.misbehave = lambda connection: connection.send(STREAM + UPSTREAMS_ANSWER)
        proxy.requests = reset_peer()
        options = {"base_url": f"http://127.0.0.1:{proxy.port}/v1", "context_length": 1000}
        config = ModelConfig(name="m", engine="remote", options=options, start_timeout_s=0.1)
        service = Service(Settings(models=(config,)))
        await service.start()
        try:
            assert service.models()[0].state == "failed"
            request = ChatRequest("r", "m", (Message[ImageRef]("user", (Text("hi"),)),))
            with pytest.raises(EngineUnavailable, match="failed to load"):
                async for _ in service.generate(request):
                    pass
            proxy.requests = None
            async with asyncio.timeout(5):
                while service.models()[0].state != "ready":
                    await asyncio.sleep(0.01)
            events = [getattr(item, "event", None) async for item in service.generate(request)]
            assert "".join(event.text for event in events if isinstance(event, TextDelta)) == UPSTREAMS_TEXT
        finally:
            await service.close()


@pytest.mark.timeout(60)
async def test_through_every_toxic_in_turns_each_request_ends_well_or_with_a_wellformed_error(tmp_path: Path) -> None:
    cells = [
        Cell("engine", "answers", MIXED),
        Cell("engine", "requests", "reset_peer"),
        Cell("client", "answers", MIXED),
    ]
    async with chaos_matrix.bench(tmp_path, 15) as bench:
        for cell in cells:
            result = await chaos_matrix.run_cell(bench, cell, 30, deadline_s=1.5, at_once=20, seed=15)
            assert result.problems == []
            assert result.ends["ok"] > 0 or cell.side == "client"
            if cell.toxic == "reset_peer":
                assert result.fell_back == result.ends["ok"], "nothing else can answer"
