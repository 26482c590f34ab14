"""Server-sent events: the same, however the bytes are cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.engines.remote.sse import MalformedStream, ServerEvent, ServerEvents

STREAM = (
    "\ufeff: a comment\r\n\r\ndata: {\"text\":\"gr\u00fc\u00df dich \U0001f431\"}\r\n\r\n"
    "event: error\ndata: one\ndata:two\ndata:  three\n\n"
    "id: 7\rretry: 3\rdata\r\r"
    ": ping\n\n\n\n"
    "event: lonely\n\n"
    "nonsense\ndata: a: b\r\ndata:\r\n\r\n"
    "data: [DONE]\n\ndata: cut off"
).encode()  # fmt: skip
EVENTS = [
    ServerEvent('{"text":"gr\u00fc\u00df dich \U0001f431"}'),
    ServerEvent("one\ntwo\n three", "error"),
    ServerEvent(""),
    ServerEvent("a: b\n"),
    ServerEvent("[DONE]"),
]


def parse(pieces: list[bytes], **options: int) -> list[ServerEvent]:
    parser = ServerEvents(**options)
    return [event for piece in pieces for event in parser.feed(piece)]


def test_events_of_a_whole_stream() -> None:
    assert parse([STREAM]) == EVENTS


def test_cut_in_two_at_every_byte() -> None:
    for cut in range(len(STREAM) + 1):
        assert parse([STREAM[:cut], STREAM[cut:]]) == EVENTS, cut


@pytest.mark.parametrize("size", range(1, 8))
def test_cut_into_small_pieces(size: int) -> None:
    assert parse([STREAM[i : i + size] for i in range(0, len(STREAM), size)]) == EVENTS


lines = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)
fields = st.sampled_from(["data: ", "data:", "event: ", ": ", "id: ", "other: ", ""])
ends = st.sampled_from(["\n", "\r\n", "\r"])


@given(
    st.lists(st.tuples(fields, lines, ends, st.booleans()), max_size=12),
    st.lists(st.integers(0, 400), max_size=20),
    st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_cut_anywhere_any_stream_is_the_same(
    written: list[tuple[str, str, str, bool]], cuts: list[int], with_bom: bool
) -> None:
    text = "".join(field + line + end + (end if last else "") for field, line, end, last in written)
    stream = (b"\xef\xbb\xbf" if with_bom else b"") + text.encode()
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    pieces = [stream[a:b] for a, b in itertools.pairwise(places)]
    assert parse(pieces) == parse([stream])
    assert parse([bytes([byte]) for byte in stream]) == parse([stream])


def test_what_has_no_end_is_refused_before_it_fills_the_memory() -> None:
    parser = ServerEvents(max_event_bytes=1000)
    with pytest.raises(MalformedStream, match="more than 1000 bytes"):
        for _ in range(1001):
            assert list(parser.feed(b"x")) == []
    with pytest.raises(MalformedStream, match="more than 1000 bytes"):
        parse([b"data: 123456\n"] * 100, max_event_bytes=1000)
    assert len(parse([b"data: 123456\n\n"] * 1000, max_event_bytes=1000)) == 1000


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(MalformedStream, match="UTF-8"):
        parse([b"data: \xff\n\n"])


@given(st.lists(st.tuples(fields, lines, ends, st.integers(0, 2)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_events_that_come_one_by_one_are_the_same(written: list[tuple[str, str, str, int]]) -> None:
    """As servers send them: a piece ends where an event does, and most have one line."""
    pieces = [(field + line + end + end * more).encode() for field, line, end, more in written]
    assert parse([b": begun\n\n", *pieces]) == parse([b": begun\n\n" + b"".join(pieces)])


def test_what_is_no_utf8_is_refused_in_an_event_of_its_own() -> None:
    with pytest.raises(MalformedStream, match="UTF-8"):
        parse([b"data: one\n\n", b"data: \xff\n\n"])


def test_an_event_of_its_own_may_be_as_long_as_any() -> None:
    just = b"data: " + b"x" * 92 + b"\n\n"
    assert parse([b"data: one\n\n", just], max_event_bytes=100) == parse([b"data: one\n\n" + just], max_event_bytes=100)
    with pytest.raises(MalformedStream, match="more than 99 bytes"):
        parse([b"data: one\n\n", just], max_event_bytes=99)
    with pytest.raises(MalformedStream, match="more than 99 bytes"):
        parse([b"data: one\n\n" + just], max_event_bytes=99)
