"""Large memory: what is put there is there, whatever its size."""

from __future__ import annotations

import resource
import string

import pytest

from sightline.api.large import room_for, to_text

MIB = 1024 * 1024
PATTERN = string.printable.encode()


@pytest.mark.parametrize("size", [0, 1, 100_000, MIB - 1, MIB, MIB + 1, 3 * MIB + 7])
def test_text_is_what_its_bytes_are(size: int) -> None:
    characters = (PATTERN * (size // len(PATTERN) + 2))[: size + 3]
    text = to_text(memoryview(characters)[3:])

    assert text == characters[3:].decode()
    assert hash(text) == hash(characters[3:].decode())
    assert len(text) == size
    assert text.isascii()


def test_text_of_memory_that_is_gone_afterwards() -> None:
    room = room_for(2 * MIB)
    room[: 2 * MIB] = b"a" * 2 * MIB
    text = to_text(memoryview(room)[: 2 * MIB])
    room[: 2 * MIB] = b"b" * 2 * MIB

    assert text == "a" * 2 * MIB


@pytest.mark.parametrize("size", [1, 70_000, MIB - 1, MIB, 2 * MIB, 2 * MIB + 1, 64 * MIB])
def test_there_is_room(size: int) -> None:
    room = room_for(size)

    assert size <= len(room) < 2 * size + 2
    room[size - 1 : size] = b"x"
    assert room.find(b"x") == size - 1, "the rest is zeros"


def test_a_length_alone_takes_no_memory() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    rooms = [room_for(60 * MIB) for _ in range(4)]

    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 1000, "of 61,440 pages"
    assert len(rooms) == 4
