"""Stop strings: cut at the right place, never shown in part, whatever the deltas are."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline.engines.stops import StopStrings


def cut(stops: list[str], deltas: list[str]) -> tuple[str, str | None]:
    """What a client would have read in the end, and why it ended."""
    held = StopStrings(stops)
    shown = ""
    for delta in deltas:
        safe, hit = held.push(delta)
        shown += safe
        if hit is not None:
            return shown, hit
    return shown + held.flush(), None


@pytest.mark.parametrize(
    ("stops", "deltas", "expected"),
    [
        (["END"], ["one ", "END", " two"], ("one ", "END")),
        (["END"], ["END of it"], ("", "END")),  # at the very first token
        (["END"], ["one E", "N", "D two"], ("one ", "END")),  # across tokens
        (["END"], ["EN", "EN", "D!"], ("EN", "END")),  # a false start that overlaps the true one
        (["END"], ["the EN"], ("the EN", None)),  # a part at the end was text after all
        (["aab"], ["a", "a", "a", "b"], ("a", "aab")),
        (["abcd", "c"], ["abcd"], ("ab", "c")),  # the first to be complete
        (["bc", "abc"], ["xabc"], ("x", "abc")),  # complete together: the longest
        (["\n\n"], ["line\n", "more\n", "\nrest"], ("line\nmore", "\n\n")),
        (["é…"], ["caf", "é", "…"], ("caf", "é…")),
        ([], ["anything"], ("anything", None)),
        ([""], ["anything"], ("anything", None)),
    ],
)
def test_cuts(stops: list[str], deltas: list[str], expected: tuple[str, str | None]) -> None:
    assert cut(stops, deltas) == expected


def test_text_is_shown_as_soon_as_it_can_no_longer_become_a_stop() -> None:
    held = StopStrings(["###"])
    assert held.push("a#") == ("a", None)
    assert held.push("#") == ("", None)
    assert held.push("b") == ("##b", None)
    assert held.push("c") == ("c", None)
    assert held.flush() == ""


def test_nothing_comes_after_a_hit() -> None:
    held = StopStrings(["!"])
    assert held.push("hey!you") == ("hey", "!")
    assert held.push("more") == ("", "!")
    assert held.flush() == ""


texts = st.text(alphabet="ab\n", max_size=24)


@given(stops=st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4), deltas=st.lists(texts, max_size=8))
def test_deltas_do_not_matter_and_the_answer_is_what_a_plain_search_finds(stops: list[str], deltas: list[str]) -> None:
    text = "".join(deltas)
    ends = [(text.find(s) + len(s), -len(s), s) for s in stops if s in text]
    expected = (text[: min(ends)[0] + min(ends)[1]], min(ends)[2]) if ends else (text, None)
    assert cut(stops, deltas) == expected
    assert cut(stops, list(text)) == expected


def test_a_hostile_stop_costs_no_more_than_a_plain_one() -> None:
    held = StopStrings(["a" * 20_000 + "b"])
    began = time.perf_counter()
    for _ in range(20_000):
        held.push("a")
    assert time.perf_counter() - began < 5.0
