"""What an ingress knows of the answers it reads, before Ray does."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from sightline.cluster import answering

HERE, THERE = SimpleNamespace(replica_id="here"), SimpleNamespace(replica_id="there")


@pytest.fixture(autouse=True)
def nothing() -> Iterator[None]:
    yield
    for kept in (answering._found, answering._calls, answering._ended):
        kept.clear()


def begin(answer: str, replica: SimpleNamespace) -> None:
    answering.remember(answer, replica, SimpleNamespace(internal_request_id=f"call of {answer}"))


def test_an_answer_that_was_read_to_its_end_takes_no_slot_until_ray_counts_it_no_more() -> None:
    begin("a", HERE)
    begin("b", THERE)
    assert answering.lingering("here") == 0
    answering.forget("a")
    assert (answering.lingering("here"), answering.lingering("there")) == (1, 0)
    answering.completed("call of a")
    assert answering.lingering("here") == 0


def test_what_ray_said_first_is_not_counted_out_twice() -> None:
    begin("a", HERE)
    answering.completed("call of a")
    answering.forget("a")
    assert answering.lingering("here") == 0


def test_what_ray_never_says_is_not_believed_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(answering, "time", SimpleNamespace(monotonic=lambda: now))
    begin("a", HERE)
    answering.forget("a")
    assert answering.lingering("here") == 1
    now += 2
    assert answering.lingering("here") == 0
