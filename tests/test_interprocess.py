"""How values travel between processes, whichever two they are."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline import errors
from sightline.errors import InvalidRequest, Overloaded, SightlineError
from sightline.interprocess import Bodies, WireError, encode, from_wire_error, laid_out, to_wire_error


class Number(msgspec.Struct, frozen=True, array_like=True):
    number: int
    text: str = ""


def there(error: SightlineError) -> SightlineError:
    sent = msgspec.msgpack.encode(to_wire_error(error))
    return from_wire_error(msgspec.msgpack.decode(sent, type=WireError))


TREE = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, SightlineError)]


@pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)
def test_every_error_arrives_as_it_was(cls: type[SightlineError]) -> None:
    error = cls("what happened", param="messages[0]")
    arrived = there(error)
    assert type(arrived) is cls
    assert str(arrived) == "what happened"
    assert vars(arrived) == vars(error)
    assert (arrived.code, arrived.retryable) == (error.code, error.retryable)


def test_what_an_error_carries_arrives() -> None:
    error = there(Overloaded("later", retry_after_s=2.5))
    assert isinstance(error, Overloaded)
    assert error.retry_after_s == 2.5
    assert there(InvalidRequest("no", code="special")).code == "special"


def test_an_engines_own_kind_of_error_arrives_as_its_nearest() -> None:
    class Odd(InvalidRequest):
        pass

    assert type(there(Odd("no"))) is InvalidRequest


@given(st.lists(st.integers(1, 9), max_size=20))
def test_frames_are_found_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    sent = [Number(n) for n in range(6)] + [Number(0, "x" * 300)]
    data = b"".join(map(encode, sent))
    bodies, found = Bodies(), []
    for cut in [*cuts, len(data)]:
        found += list(bodies.feed(data[:cut]))
        data = data[cut:]
    assert [msgspec.msgpack.decode(body, type=Number) for body in found] == sent


def test_nonsense_is_not_read_into_memory() -> None:
    with pytest.raises(ValueError, match="bytes"):
        list(Bodies().feed(b"\xff\xff\xff\xff"))


def test_the_same_pixels_are_laid_out_once() -> None:
    one, two = np.zeros((10, 10, 3), np.uint8), np.zeros((5, 5, 3), np.uint8)
    offsets, size = laid_out([one, two, one])
    assert offsets == [0, 320, 0]
    assert size == 320 + two.nbytes
