"""What the client makes of replies, and when it tries again."""

from __future__ import annotations

import json

import pytest

from sightline.client.wire import (
    ApiError,
    ClientError,
    ConnectionFailed,
    StreamBroken,
    Streamed,
    choose_model,
    retry_in_s,
    to_answer,
    to_error,
    to_object,
)


def error(status: int, **headers: str) -> ApiError:
    return to_error(status, {name.replace("_", "-"): value for name, value in headers.items()}, b"")


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
def test_what_may_pass_is_tried_again_twice_with_growing_waits(status: int) -> None:
    first, second = retry_in_s(error(status), 0, 2), retry_in_s(error(status), 1, 2)
    assert first is not None
    assert second is not None
    assert 0.375 <= first <= 0.5
    assert 0.75 <= second <= 1.0
    assert retry_in_s(error(status), 2, 2) is None


@pytest.mark.parametrize("status", [400, 401, 404, 413])
def test_what_will_not_pass_is_not(status: int) -> None:
    assert retry_in_s(error(status), 0, 2) is None


def test_the_server_has_its_say() -> None:
    assert retry_in_s(error(503, retry_after="7"), 0, 2) == 7
    assert retry_in_s(error(503, retry_after_ms="70", retry_after="7"), 0, 2) == pytest.approx(0.07)
    assert retry_in_s(error(503, retry_after="121"), 0, 2) is None
    assert retry_in_s(error(500, x_should_retry="false"), 0, 2) is None
    assert retry_in_s(error(400, x_should_retry="true"), 0, 2) is not None
    assert retry_in_s(error(503, retry_after="Wed, 21 Oct"), 0, 2) is not None


def test_a_connection_is_tried_again_and_a_broken_stream_is_not() -> None:
    assert retry_in_s(ConnectionFailed(), 0, 2) is not None
    assert retry_in_s(StreamBroken(), 0, 2) is None


def test_errors_of_other_shapes_keep_their_status() -> None:
    strange = to_error(502, {"x-request-id": "r"}, b"<html>Bad Gateway")
    assert (strange.status, strange.message, strange.request_id) == (
        502,
        "The server answered with the status 502.",
        "r",
    )


@pytest.mark.parametrize(
    ("models", "chosen"),
    [
        ([{"id": "text", "sightline": {"vision": False}}, {"id": "sees", "sightline": {"vision": True}}], "sees"),
        ([{"id": "loading", "sightline": {"vision": None}}], "loading"),
        ([{"id": "elsewhere"}], "elsewhere"),
        ([{"id": "text", "sightline": {"vision": False}}], "text"),
    ],
)
def test_the_model_is_one_that_sees(models: list[object], chosen: str) -> None:
    assert choose_model({"data": models}) == chosen


def test_no_model_is_an_error() -> None:
    with pytest.raises(ClientError, match="no models"):
        choose_model({"data": []})


def test_replies_that_are_something_else() -> None:
    with pytest.raises(ClientError, match="/v1"):
        to_object(b"<html>")
    with pytest.raises(ClientError, match="/v1"):
        to_answer({"choices": []}, {}, ())


CHUNKS = b"".join(
    b"data: " + json.dumps({"model": "m", "choices": choices, **more}).encode() + b"\n\n"
    for choices, more in (
        ([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}], {}),
        ([{"index": 0, "delta": {"content": "gr\u00fcn"}, "finish_reason": None}], {"usage": None}),
        ([{"index": 0, "delta": {}, "finish_reason": "stop"}], {}),
        ([], {"usage": {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}}}),
    )
)


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_a_stream_reads_the_same_however_it_is_cut(size: int) -> None:
    data = CHUNKS + b": ping\n\ndata: [DONE]\n\n"
    streamed = Streamed({}, ())
    pieces = [text for i in range(0, len(data), size) for text in streamed.feed(data[i : i + size])]
    answer = streamed.end()
    assert (pieces, answer.text, answer.prompt_tokens, answer.cached_tokens) == (["grün"], "grün", 3, 2)


@pytest.mark.parametrize(
    "data",
    [
        CHUNKS,
        b"data: [DONE]\n\n",
        CHUNKS + b'data: {"error": {"message": "it broke"}}\n\n',
        b"data: {nonsense\n\n",
        b"data: []\n\n",
    ],
    ids=["no end", "nothing but an end", "error event", "no JSON", "no chunk"],
)
def test_half_an_answer_is_never_taken_for_a_whole_one(data: bytes) -> None:
    streamed = Streamed({}, ())
    with pytest.raises(StreamBroken):
        list(streamed.feed(data))
        streamed.end()
