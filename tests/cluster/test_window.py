"""How far a replica runs ahead of its reader."""

from __future__ import annotations

import asyncio

import pytest

from sightline.cluster.window import WINDOW, Ahead, Reading

pytestmark = pytest.mark.anyio


async def test_a_replica_stops_a_window_ahead_of_its_reader_and_goes_on_when_told() -> None:
    ahead, sent = Ahead(), 0

    async def send() -> None:
        nonlocal sent
        while True:
            await ahead.send()
            sent += 1

    async with asyncio.timeout(60):
        sending = asyncio.create_task(send())
        for read, may in ((0, WINDOW), (100, WINDOW + 100), (50, WINDOW + 100), (WINDOW, 2 * WINDOW)):
            ahead.read(read)
            for _ in range(10):
                await asyncio.sleep(0)
            assert sent == may
        sending.cancel()


async def test_who_reads_on_is_never_waited_for() -> None:
    """The two ends together, for an answer of many windows: it is told often enough, and seldom."""
    ahead, reading, told = Ahead(), Reading(), 0
    async with asyncio.timeout(60):
        for _ in range(10 * WINDOW):
            await ahead.send()
            if reading.next():
                ahead.read(reading.count)
                told += 1
    assert told <= 20


async def test_an_answer_of_usual_length_is_told_nothing_about() -> None:
    reading = Reading()
    assert not any(reading.next() for _ in range(WINDOW // 2 - 1))
