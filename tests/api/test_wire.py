"""Strict JSON: what is refused, what is not, and that neither takes long."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.api.wire import MAX_JSON_VALUES, parse
from sightline.errors import InvalidRequest
from tests.api.standin import JSON_HEADERS, Call, ScriptedService, app_of, chat, post

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"{", "not valid JSON"),
        (b"[1,]", "not valid JSON"),
        (b'{"a":1}x', "not valid JSON"),
        (b"{'a':1}", "not valid JSON"),
        (b'{"a":01}', "not valid JSON"),
        (b'{"a":"\n"}', "not valid JSON"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":Infinity}', "Infinity"),
        (b'{"a":-Infinity}', "-Infinity"),
        (b'{"a":1e999}', "too large"),
        (b'{"a":-1e999}', "too large"),
        (b'{"a":1,"a":1}', "same key twice"),
        (b'{"x":[{"a":1,"b":2,"a":3}]}', "same key twice"),
        (b'{"a":1,"\\u0061":1}', "same key twice"),
        (b'{"a":123456789012345678901}', "more than 20 digits"),
        (b'{"a":-123456789012345678901}', "more than 20 digits"),
        (b'{"a":' + b"9" * 5000 + b"}", "more than 20 digits"),
        (b'{"a":"\xff"}', "not UTF-8"),
        (b'{"a":"\xc0\xaf"}', "not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
        ('{"a":1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a":"\\ud800"}', "surrogate"),
        (b'{"\\udfff":1}', "surrogate"),
        (b'{"a":["\\ude00\\ud83d"]}', "surrogate"),
        (b"[" * 65 + b"]" * 65, "deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deeper than 64"),
        (b'[{"a":' * 33 + b"1" + b"}]" * 33, "deeper than 64"),
        (b"[" * 40_000, "deeper than 64"),
        (b'{"a":' * 40_000, "deeper than 64"),
        (b"[" * 1_000_000, "more than 50000 JSON values"),
        (b'{"a":' * 1_000_000, "more than 50000 JSON values"),
        (b"[" + b"1," * 60_000 + b"1]", "more than 50000 JSON values"),
        (b"[" + b",".join([b"[" * 60 + b"]" * 60] * 2000) + b"]", "more than 50000 JSON values"),
        (b"[" + b",".join([b'{"a":' * 60 + b"1" + b"}" * 60] * 2000) + b"]", "more than 50000 JSON values"),
        (b"{" + b",".join(b'"k%d":1' % i for i in range(1_000_000)) + b"}", "more than 50000 JSON values"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else None,
)
def test_refused(body: bytes, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refused:
        parse(body)
    assert refused.value.param is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":12345678901234567890,"b":-12345678901234567890}',
        b'{"a":"\\ud83d\\ude00"}',
        '{"a":"😀\u2028"}'.encode(),
        b"[" * 64 + b"]" * 64,
        b'[{"a":' * 32 + b"1" + b"}]" * 32,
        b"[" + b",".join([b"[]"] * 5000) + b"]",
        b'{"text":"' + b"a, [{" * 100_000 + b'"}',
        b'{"text":"' + b'\\",' * 100_000 + b'"}',
        b' {"a" : 1.5e3 } ',
    ],
    ids=lambda body: repr(body[:24]),
)
def test_accepted_as_the_standard_has_it(body: bytes) -> None:
    assert parse(body) == json.loads(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**19), 10**19) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(json_values)
@settings(deadline=None, max_examples=150)
def test_what_json_writes_comes_back(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_parsed_or_refused(body: bytes) -> None:
    try:
        value = parse(body)
    except InvalidRequest:
        return
    assert value == json.loads(body)


@pytest.mark.parametrize("filling", [b" ", b"[", b'"\\u0041",'], ids=["spaces", "brackets", "escapes"])
def test_what_a_parser_goes_over_in_one_step_is_bounded(filling: bytes) -> None:
    with pytest.raises(InvalidRequest, match="beside its long strings"):
        parse(b"[" + filling * ((17 << 20) // len(filling)))


def test_the_count_of_values_is_exact_where_it_is_near() -> None:
    assert len(parse(b"[" + b"1," * MAX_JSON_VALUES + b"1]")) == MAX_JSON_VALUES + 1
    with pytest.raises(InvalidRequest):
        parse(b"[" + b"1," * (MAX_JSON_VALUES + 1) + b"1]")


# --- over the application --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [7, 1 << 20])
async def test_a_body_over_the_cap_is_413_and_never_kept(chunk: int) -> None:
    app = app_of(ScriptedService(), max_body_bytes=1000)
    body = json.dumps(chat(padding="x" * 2000)).encode()
    reply = await Call("POST", "/v1/chat/completions", body, dict(JSON_HEADERS), chunk=chunk).run(app)
    assert reply.status == 413
    assert reply.headers["connection"] == "close"
    assert reply.json["error"] == {
        "message": "The body is larger than the 1000 bytes that this server takes.",
        "type": "invalid_request_error",
        "param": None,
        "code": "request_too_large",
    }
    exactly = json.dumps(chat(padding="")).encode()
    exactly = exactly.replace(b'"padding": ""', b'"padding": "%s"' % (b"x" * (1000 - len(exactly))))
    assert len(exactly) == 1000
    assert (await Call("POST", "/v1/chat/completions", exactly, dict(JSON_HEADERS), chunk=chunk).run(app)).status == 200


async def test_a_body_that_is_told_to_be_too_long_is_refused_unread() -> None:
    reply = await post(app_of(ScriptedService(), max_body_bytes=1000), b"{", content_length="1001")
    assert reply.status == 413


async def test_who_keeps_sending_has_more_time() -> None:
    """60 ms of them for each 6 bytes, at 100 bytes a second, beside the first 50 ms."""
    service = ScriptedService()
    body = json.dumps(chat()).encode()
    pieces = [body[i : i + 6] for i in range(0, len(body), 6)]

    async def slowly(scope: Any, receive: Any, send: Any) -> None:
        async def receive_one_piece() -> Any:
            if not pieces:
                return await asyncio.Event().wait()
            await asyncio.sleep(0.01)
            return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

        await app_of(service, body_s=0.05, min_body_rate=100)(scope, receive_one_piece, send)

    assert len(pieces) * 0.01 > 0.05
    reply = await Call("POST", "/v1/chat/completions", b"", dict(JSON_HEADERS)).run(slowly)
    assert reply.status == 200


async def test_a_body_that_never_ends_is_408() -> None:
    service = ScriptedService()
    call = Call("POST", "/v1/chat/completions", b"", dict(JSON_HEADERS))
    pieces = [b'{"model":']

    async def drips(scope: Any, receive: Any, send: Any) -> None:
        async def receive_one_piece() -> Any:
            if not pieces:
                await asyncio.sleep(3600)
            return {"type": "http.request", "body": pieces.pop(), "more_body": True}

        await app_of(service, body_s=0.05)(scope, receive_one_piece, send)

    async with asyncio.timeout(5):
        reply = await call.run(drips)
    assert (reply.status, reply.headers["connection"]) == (408, "close")
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert service.requests == []


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("", 415),
    ],
)
async def test_only_json_is_read(media_type: str, status: int) -> None:
    reply = await post(app_of(ScriptedService()), chat(), content_type=media_type)
    assert reply.status == status
    if status != 200:
        assert reply.json["error"]["type"] == "invalid_request_error"


async def test_a_compressed_body_is_told_to_come_plain() -> None:
    reply = await post(app_of(ScriptedService()), gzip.compress(json.dumps(chat()).encode()), content_encoding="gzip")
    assert (reply.status, "Content-Encoding" in reply.json["error"]["message"]) == (415, True)
    assert (await post(app_of(ScriptedService()), chat(), content_encoding="identity")).status == 200


@pytest.mark.parametrize("body", [b"[]", b"1", b'"a"', b"null", b"true"])
async def test_a_body_that_is_no_object(body: bytes) -> None:
    reply = await post(app_of(ScriptedService()), body)
    assert (reply.status, reply.json["error"]["code"]) == (400, "invalid_type")


async def test_torture_is_answered_with_400_and_the_loop_goes_on() -> None:
    """The lag allowed is generous: two cores, shared."""
    app = app_of(ScriptedService(), max_body_bytes=32 << 20)
    bodies = [
        b'{"model":' + b"[" * 1_000_000,
        b"{" + b",".join(b'"k%07d":1' % i for i in range(1_000_000)) + b"}",
        b'{"model":"m","messages":[' + b",".join([b"{}"] * 40_000) + b"]}",
    ]
    worst = 0.0

    async def heartbeat() -> None:
        nonlocal worst
        while True:
            asleep = time.perf_counter()
            await asyncio.sleep(0.005)
            worst = max(worst, time.perf_counter() - asleep - 0.005)

    beat = asyncio.create_task(heartbeat())
    for body in bodies:
        assert (await post(app, body)).status == 400
    beat.cancel()
    assert worst < 1.0


async def test_a_large_picture_is_parsed_off_the_loop_and_arrives_whole() -> None:
    service = ScriptedService()
    url = "data:image/png;base64," + "QUJD" * 500_000
    part = {"type": "image_url", "image_url": {"url": url}}
    assert (await post(app_of(service), chat(messages=[{"role": "user", "content": [part]}]))).status == 200
    assert service.requests[0].images[0].source == url


# --- long strings ----------------------------------------------------------------------------------------------------

LONG = "A/+b" * 20_000


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"a": LONG, "b": [LONG, {"c": LONG + "x"}], "d": "short"}),
        json.dumps([LONG] * 40),
        json.dumps(LONG),
        json.dumps({LONG: LONG}),
        '{"a" :\n"' + LONG + '" , "' + LONG + '" \t: 1}',
        json.dumps({"before": 'quote \\" and \\\\', "a": LONG}),
        json.dumps({"a": 'x\\"' * 30_000, "b": LONG}),  # more quotes than are looked at
        json.dumps({"a": "\\" * 101 + '"', "b": LONG}),
        json.dumps({"a": LONG + "\\n" + LONG, "b": LONG}),
        json.dumps({"a": LONG + "\u00e9", "b": LONG}, ensure_ascii=False),
        json.dumps({"a": "\\", "b": LONG}),
    ],
)
def test_long_strings_come_back(text: str) -> None:
    assert parse(text.encode()) == json.loads(text)
    assert parse(bytearray(text.encode())) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a":"' + LONG + "\n" + '"}', "control character"),
        ('{"a":"' + LONG + '","a":1}', "same key twice"),
        ('{"' + LONG + '":1,"' + LONG + '":2}', "same key twice"),
        ('{"a":"' + LONG, "not valid JSON"),
        ('{"a":"' + LONG + '\\"}', "not valid JSON"),
        ('{"a":"' + LONG + '" 1}', f"column {len(LONG) + 9}"),
        ("[" * 70 + '"' + LONG + '"' + "]" * 70, "64 levels"),
    ],
)
def test_what_is_wrong_around_long_strings_is_told_as_ever(text: str, problem: str) -> None:
    with pytest.raises(InvalidRequest, match=problem) as refused:
        parse(text.encode())
    assert "A/+b" not in refused.value.message


def test_a_photograph_does_not_keep_the_interpreter() -> None:
    """The parser would scan it byte by byte in one go: about 1 ms a megabyte for which every other thread waits."""
    body = json.dumps({"url": "A" * 16_000_000}).encode()
    whole, cut = (
        min(_seconds(lambda: json.loads(body)) for _ in range(3)),
        min(_seconds(lambda: parse(body)) for _ in range(3)),
    )
    assert cut < whole


def _seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began
