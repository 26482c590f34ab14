"""Frames over a socket pair, and descriptors beside them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import numpy as np
import pytest

from sightline.engines.worker.pictures import share
from sightline.frontends import frames
from sightline.frontends.link import Link

pytestmark = pytest.mark.anyio


class End:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.link: Link[frames.ToCore] = Link(sock, frames.decode_to_core)
        self.came: list[tuple[frames.ToCore, int | None]] = []
        self.lost = asyncio.Event()
        self.link.open(lambda frame, fd: self.came.append((frame, fd)), self.lost.set)

    async def has(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.came) < count:
                await asyncio.sleep(0.001)


@pytest.fixture
async def ends() -> AsyncIterator[tuple[End, End]]:
    first, second = map(End, socket.socketpair())
    yield first, second
    first.link.close()
    second.link.close()


def memory(text: bytes) -> int:
    return share([np.frombuffer(text, np.uint8)], [0])


async def test_frames_come_in_order_each_with_its_own_descriptor(ends: tuple[End, End]) -> None:
    ours, theirs = ends
    before = len(os.listdir("/proc/self/fd"))
    for number in range(300):
        if number % 3 == 0:
            text = b"picture %d" % number
            ours.link.send(frames.Pictures(number, (), len(text)), memory(text))
        else:
            ours.link.send(frames.Call(number, "x" * (number % 7) * 10_000, b""))
    await theirs.has(300)
    for number, (frame, fd) in enumerate(theirs.came):
        assert getattr(frame, "number", getattr(frame, "stream", None)) == number
        assert (fd is not None) == (number % 3 == 0)
        if fd is not None:
            assert os.pread(fd, 100, 0) == b"picture %d" % number
            os.close(fd)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_what_the_other_side_does_not_take_waits(ends: tuple[End, End]) -> None:
    ours, theirs = ends
    asyncio.get_running_loop().remove_reader(theirs.sock)
    for number in range(40):
        ours.link.send(frames.Call(number, "", b"." * 100_000))
    for _ in range(20):
        await asyncio.sleep(0)
    assert ours.link._outgoing
    asyncio.get_running_loop().add_reader(theirs.sock, theirs.link._read)
    await theirs.has(40)
    assert [frame.stream for frame, _ in theirs.came] == list(range(40))  # type: ignore[union-attr]


async def test_whoever_goes_the_other_hears_of_it_once(ends: tuple[End, End]) -> None:
    ours, theirs = ends
    ours.link.send(frames.Cancel(1))
    await theirs.has(1)
    ours.link.close()
    await asyncio.wait_for(theirs.lost.wait(), 5)
    assert not ours.lost.is_set()
    theirs.link.send(frames.Cancel(2))  # to nobody


async def test_nonsense_ends_a_link(ends: tuple[End, End]) -> None:
    ours, theirs = ends
    ours.sock.send(b"\xff\xff\xff\xff nonsense")
    await asyncio.wait_for(theirs.lost.wait(), 5)


async def test_what_has_no_form_on_the_wire_is_refused_and_its_descriptor_closed(ends: tuple[End, End]) -> None:
    ours, _ = ends
    fd = memory(b"x")
    with pytest.raises(OverflowError):
        ours.link.send(frames.Credit(1, 2**70), fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
