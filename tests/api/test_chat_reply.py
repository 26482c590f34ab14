"""Events become replies: whole and in chunks, byte for byte."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sightline.api.chat.reply import Chunks, Head, to_completion
from sightline.api.collected import to_collected
from sightline.api.extension import to_input_tokens
from sightline.api.wire import encode
from sightline.items import ChoiceEvent, Item
from sightline.types import (
    Delta,
    Finish,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
    Timing,
    TokenCount,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from tests.api.standin import DIGEST, FINISH, PREPARED

HEAD = Head("chatcmpl-1", 1741570283, "vlm", "fp_1")
CALLS: list[Delta] = [
    ToolCallDelta(0, id="call_1", name="f"),
    ToolCallDelta(0, '{"a'),
    ToolCallDelta(1, '{"b":2}', id="call_2", name="g"),
    ToolCallDelta(0, '":1}'),
]
LOGPROB = TokenLogprob("é", -0.5, (195, 169), (TokenLogprob("é", -0.5, (195, 169)), TokenLogprob("e", -9999.0, (101,))))


def stream(*events: Delta | Finish, n: int = 1) -> list[Item]:
    return [PREPARED, *(ChoiceEvent(i, e) for e in events for i in range(n))]


def whole(*events: Delta | Finish, n: int = 1, logprobs: bool = False) -> Any:
    return json.loads(encode(to_completion(HEAD, to_collected(stream(*events, n=n), n=n), logprobs=logprobs)))


def chunked(*events: Delta | Finish, n: int = 1, include_usage: bool = False, logprobs: bool = False) -> list[Any]:
    chunks = Chunks(HEAD, "req_1", n=n, include_usage=include_usage, logprobs=logprobs)
    body = b"".join(chunks.to_frames(item) for item in stream(*events, n=n)) + chunks.end()
    *data, done, rest = body.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(d.removeprefix("data: ")) for d in data]


def test_a_completion_in_full() -> None:
    assert whole(TextDelta("A "), TextDelta("cat."), FINISH) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1741570283,
        "model": "vlm",
        "system_fingerprint": "fp_1",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "A cat.", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": 3,
            "total_tokens": 23,
            "prompt_tokens_details": {"cached_tokens": 16, "audio_tokens": 0, "image_tokens": 12, "text_tokens": 8},
            "completion_tokens_details": {
                "reasoning_tokens": 0,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        },
        "sightline": {
            "engine": "scripted",
            "path": ["m@0"],
            "images": [
                {
                    "index": 0,
                    "width": 640,
                    "height": 480,
                    "served_width": 112,
                    "served_height": 84,
                    "tokens": 12,
                    "digest": DIGEST,
                    "cached": True,
                }
            ],
            "timing": {
                "fetch_s": 0.0,
                "decode_s": 0.04,
                "queue_s": 0.03,
                "encode_s": 0.1,
                "prefill_s": 0.3,
                "decode_per_token_s": 0.02,
            },
        },
    }


def test_the_stream_byte_for_byte() -> None:
    chunks = Chunks(HEAD, "req_1", n=1, include_usage=True, logprobs=False)
    frames = [chunks.to_frames(item) for item in stream(TextDelta('A "cat"\n\u2028.'), FINISH)]
    start = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1741570283,"model":"vlm","system_fingerprint":"fp_1","choices":['  # noqa: E501
    end = b'],"usage":null}\n\n'
    assert frames == [
        start + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}' + end,
        start + rb'{"index":0,"delta":{"content":"A \"cat\"\n\u2028."},"logprobs":null,"finish_reason":null}' + end,
        start + b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}' + end,
    ]
    last = chunks.end()
    assert last.startswith(start + b'],"usage":{"prompt_tokens":20,"completion_tokens":3,"total_tokens":23,')
    assert last.endswith(b"}\n\ndata: [DONE]\n\n")


def test_without_include_usage_no_chunk_speaks_of_usage() -> None:
    for chunk in chunked(TextDelta("x"), FINISH):
        assert set(chunk) == {"id", "object", "created", "model", "system_fingerprint", "choices"}
        assert len(chunk["choices"]) == 1


def test_with_include_usage_one_more_chunk_has_it() -> None:
    *others, last = chunked(TextDelta("x"), FINISH, include_usage=True)
    assert all(c["usage"] is None and "sightline" not in c for c in others)
    complete = whole(TextDelta("x"), FINISH)
    assert last["choices"] == []
    assert (last["usage"], last["sightline"]) == (complete["usage"], complete["sightline"])


def test_choices_interleave_and_each_has_one_role_and_one_finish() -> None:
    choices = [c["choices"][0] for c in chunked(TextDelta("a"), TextDelta("b"), FINISH, n=3)]
    assert [c["index"] for c in choices] == [0, 1, 2] * 4
    assert [c["delta"].get("role") for c in choices[:3]] == ["assistant"] * 3
    assert [c["finish_reason"] for c in choices] == [None] * 9 + ["stop"] * 3
    assert all(c["delta"] == {} for c in choices[9:])
    reply = whole(TextDelta("a"), TextDelta("b"), FINISH, n=3)
    assert [c["message"]["content"] for c in reply["choices"]] == ["ab"] * 3
    assert [c["index"] for c in reply["choices"]] == [0, 1, 2]


def test_usage_of_several_choices_counts_the_prompt_once() -> None:
    def finish(completion: int, cached: int, hit: bool) -> Finish:
        usage = Usage(20, completion, (12,), (hit,), cached, reasoning_tokens=1)
        return Finish("length", usage, Timing(0.1, 0.2, 0.3, completion / 10))

    events: list[Item] = [
        PREPARED,
        ChoiceEvent(1, finish(5, 16, True)),
        ChoiceEvent(0, finish(3, 0, False)),
    ]
    reply = json.loads(encode(to_completion(HEAD, to_collected(events, n=2))))
    assert reply["usage"]["prompt_tokens"] == 20
    assert reply["usage"]["completion_tokens"] == 8
    assert reply["usage"]["total_tokens"] == 28
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert reply["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2
    assert reply["sightline"]["images"][0]["cached"] is False
    assert reply["sightline"]["timing"]["decode_per_token_s"] == pytest.approx(0.15)


def test_tool_calls_whole_and_in_pieces_say_the_same() -> None:
    finish = replace(FINISH, reason="tool_calls")
    choice = whole(*CALLS, finish)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": '{"b":2}'}},
    ]
    pieces = [c["choices"][0]["delta"]["tool_calls"][0] for c in chunked(*CALLS, finish)[1:-1]]
    assert pieces == [
        {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"a'}},
        {"index": 1, "id": "call_2", "type": "function", "function": {"name": "g", "arguments": '{"b":2}'}},
        {"index": 0, "function": {"arguments": '":1}'}},
    ]


def test_text_before_a_tool_call_is_kept() -> None:
    message = whole(TextDelta("Let me see."), *CALLS, FINISH)["choices"][0]["message"]
    assert message["content"] == "Let me see."
    assert len(message["tool_calls"]) == 2


def test_a_refusal() -> None:
    events = (RefusalDelta("I "), RefusalDelta("can't."), FINISH)
    message = whole(*events)["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, "I can't.")
    assert [c["choices"][0]["delta"] for c in chunked(*events)[1:-1]] == [{"refusal": "I "}, {"refusal": "can't."}]


def test_reasoning_stands_beside_the_answer() -> None:
    events = (ReasoningDelta("Hm. "), ReasoningDelta("So:"), TextDelta("yes"), FINISH)
    message = whole(*events)["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm. So:", "yes")
    assert chunked(*events)[1]["choices"][0]["delta"] == {"reasoning_content": "Hm. "}


def test_an_empty_answer_is_a_string_and_empty_deltas_are_not_sent() -> None:
    events = (TextDelta(""), replace(FINISH, reason="length"))
    assert whole(*events)["choices"][0]["message"]["content"] == ""
    assert len(chunked(*events)) == 2


def test_logprobs() -> None:
    events = (TextDelta("é", logprobs=(LOGPROB,)), TextDelta("", logprobs=(LOGPROB,)), FINISH)
    one = {
        "token": "é",
        "logprob": -0.5,
        "bytes": [195, 169],
        "top_logprobs": [
            {"token": "é", "logprob": -0.5, "bytes": [195, 169]},
            {"token": "e", "logprob": -9999.0, "bytes": [101]},
        ],
    }
    assert whole(*events, logprobs=True)["choices"][0]["logprobs"] == {"content": [one, one], "refusal": None}
    seen = [c["choices"][0]["logprobs"] for c in chunked(*events, logprobs=True)]
    assert seen == [None, *[{"content": [one], "refusal": None}] * 2, None]
    assert whole(*events)["choices"][0]["logprobs"] is None


def test_a_stream_without_its_finish_is_a_bug_not_an_answer() -> None:
    with pytest.raises(AssertionError):
        to_completion(HEAD, to_collected(stream(TextDelta("x"))))
    chunks = Chunks(HEAD, "req_1", n=1, include_usage=False, logprobs=False)
    chunks.to_frames(PREPARED)
    with pytest.raises(AssertionError):
        chunks.end()


def test_a_picture_that_the_context_made_smaller_says_so_and_others_say_nothing() -> None:
    images = (PREPARED.images[0], replace(PREPARED.images[0], scaled_to_fit=True))
    prepared = replace(PREPARED, images=images, token_count=TokenCount(32, (12, 12)))
    reply = json.loads(encode(to_completion(HEAD, to_collected([prepared, ChoiceEvent(0, FINISH)]))))
    assert [i.get("scaled_to_fit") for i in reply["sightline"]["images"]] == [None, True]
    counted = json.loads(encode(to_input_tokens("input_tokens", prepared.token_count, images)))
    assert [i.get("scaled_to_fit") for i in counted["images"]] == [None, True]


@pytest.mark.parametrize("text", ['"content":""', '"\\\n\r', "\u2028\u0000", "日本 👩‍👩‍👧", "{}"])
def test_any_text_in_any_choice_of_any_model_arrives(text: str) -> None:
    chunks = Chunks(replace(HEAD, model='"content":""'), "req_1", n=2, include_usage=False, logprobs=False)
    for index in range(2):
        frame = json.loads(chunks.to_frames(ChoiceEvent(index, TextDelta(text))).removeprefix(b"data: "))
        assert frame["model"] == '"content":""'
        assert frame["choices"] == [
            {"index": index, "delta": {"content": text}, "logprobs": None, "finish_reason": None}
        ]
