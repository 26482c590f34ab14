"""The lines of a batch's files: cut anywhere, checked one by one, written as they are told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from sightline.jobs import Item, Result, Usage
from sightline.jobs.lines import MAX_ERRORS, Reading, split_lines, to_message, to_result_line, to_usage

pytestmark = pytest.mark.anyio

CHAT = "/v1/chat/completions"


async def pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def line(custom_id: str = "a", **body: object) -> bytes:
    chat = {"model": "m", "messages": [], **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": CHAT, "body": chat}).encode()


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("content", [b"", b"a", b"a\n", b"ab\ncd\n\nef", b"\n\n", b"long line\nand another\n"])
async def test_lines_are_the_same_wherever_the_chunks_end(content: bytes, size: int) -> None:
    found = [text async for lines in split_lines(pieces(content, size)) for text in lines]
    assert found == content.split(b"\n")


def test_bodies_stay_as_they_were_written() -> None:
    body = b'{"model":"m" ,"x":1.0000000000000000001,  "y":"\\u00e9"}'
    reading = Reading(CHAT, 10)
    reading.feed(b'{"custom_id":"a","method":"POST","url":"' + CHAT.encode() + b'","body":' + body + b"}")
    (item,) = reading.take()
    assert (item.index, item.custom_id, item.body, reading.model) == (0, "a", body, "m")
    assert reading.take() == []


def test_limits() -> None:
    reading = Reading(CHAT, 2)
    for number in range(4):
        reading.feed(line(str(number)))
    assert [(error.code, error.line) for error in reading.errors] == [("too_many_lines", 3), ("too_many_lines", 4)]
    reading = Reading(CHAT, 10**6)
    for _ in range(MAX_ERRORS + 50):
        reading.feed(b"{")
    assert len(reading.errors) == MAX_ERRORS
    reading = Reading(CHAT, 10)
    for custom_id in ("", "x" * 513):
        reading.feed(line(custom_id))
    reading.feed(line("deep")[:-1] + b',"z":' + b"[" * 100_000)
    assert [error.code for error in reading.errors] == ["invalid_custom_id", "invalid_custom_id", "invalid_json_line"]


@pytest.mark.parametrize(
    ("begins", "why"),
    [
        (b"\xef\xbb\xbf", None),
        (b"\xff\xfe{\x00", "invalid character (byte 0)"),
        (b"{", "truncated"),
        (b'{"custom_id": "\xff"}', "UTF-8"),
        (b'{"custom_id": "a", "x": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_editors_put_at_the_beginning(begins: bytes, why: str | None) -> None:
    """A mark of UTF-8 is passed over; all else is told with its place, and nothing of what it says."""
    reading = Reading("/v1/chat/completions", 10)
    reading.feed(begins + (line("a") if why is None else b""))
    if why is None:
        assert [item.custom_id for item in reading.items] == ["a"]
        return
    (error,) = reading.errors
    assert (error.code, error.line) == ("invalid_json_line", 1)
    assert why in error.message
    assert "on one line, in UTF-8" in error.message


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (b'"url": "/v1/chat/completions"', "same key twice"),
        (b'"body": {"model": "other"}', "same key twice"),
        (b'"x": {"a": {"b": 1, "b": 1}}', "same key twice"),
        (b'"x": [{"body": {"model": "m"}}, {"c": 1}]', None),
        (b'"x": "\xff"', "UTF-8"),
        (b'"x": ' + b"1" * 5000, "not valid JSON"),
    ],
)
def test_what_stands_around_a_body(more: bytes, why: str | None) -> None:
    reading = Reading("/v1/chat/completions", 10)
    reading.feed(
        b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}, %b}' % more
    )
    assert [item.custom_id for item in reading.items] == ([] if why else ["a"])
    assert [(error.code, why in error.message) for error in reading.errors if why] == (
        [("invalid_json_line", True)] if why else []
    ), reading.errors


def test_what_a_line_tells() -> None:
    item = Item(0, "a\n", b"", "batch_req_1")
    assert to_result_line(item, Result(200, "req_1", b'{"x": [1]}')) == (
        b'{"id":"batch_req_1","custom_id":"a\\n",'
        b'"response":{"status_code":200,"request_id":"req_1","body":{"x": [1]}},"error":null}\n'
    )
    assert json.loads(to_result_line(item, Result(error_code="batch_expired", error_message="Over."))) == {
        "id": "batch_req_1", "custom_id": "a\n", "response": None,
        "error": {"code": "batch_expired", "message": "Over."},
    }  # fmt: skip


def test_a_line_of_an_output_file_is_one_line_whoever_splits_it() -> None:
    told = to_result_line(Item(0, "a\u2028b", b""), Result(200, "req_1", '{"x":"\u2028\u2029\x85"}'.encode())).decode()
    (line,) = told.splitlines()
    assert json.loads(line)["response"]["body"] == {"x": "\u2028\u2029\x85"}


def test_what_answers_tell_of_their_tokens() -> None:
    chat = {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 3}}
    assert to_usage(json.dumps({"usage": {**chat, "total_tokens": 7}}).encode()) == Usage(5, 3, 2, 0)
    response = {"input_tokens": 5, "output_tokens": 2, "output_tokens_details": {"reasoning_tokens": 1}}
    assert to_usage(json.dumps({"usage": response}).encode()) == Usage(5, 0, 2, 1)
    for silent in (b"", b"[]", b"{}", b'{"usage":null}', b'{"usage":"x"}'):
        assert to_usage(silent) == Usage()
    assert to_message(b'{"error":{"message":"No."}}') == "No."
    assert to_message(b'{"error":"No."}') == ""
