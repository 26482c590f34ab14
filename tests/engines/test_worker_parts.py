"""What the worker is made of, without a process: frames, shared pictures, restarts, output."""

from __future__ import annotations

import asyncio
import os
from dataclasses import fields
from typing import Any, get_args

import numpy as np
import pytest

from sightline.config import ModelConfig
from sightline.engines import EngineInfo
from sightline.engines.worker import frames
from sightline.engines.worker.output import MAX_LINE_CHARS, printable_lines
from sightline.engines.worker.pictures import receive, share, size_only
from sightline.engines.worker.restarts import Restart, RestartPolicy
from sightline.images.budget import CellBudget
from sightline.interprocess import LENGTH_BYTES, WireMessage, body_length, encode
from sightline.types import (
    EngineRequest,
    Event,
    Finish,
    Image,
    Message,
    ReasoningDelta,
    RefusalDelta,
    ResponseFormat,
    SamplingParams,
    Text,
    TextDelta,
    Timing,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
    Usage,
)

# --- frames ----------------------------------------------------------------------------------------------------------

PIXELS = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
REQUEST = EngineRequest(
    request_id="r-1",
    model="m",
    messages=(
        Message[Image]("system", (Text("be brief"),)),
        Message[Image](
            "user",
            (Text("a"), Image(PIXELS, "sha256:1", 840, 560, "image/png", 7), Text(""),
             Image(PIXELS[:28, :28], "sha256:2", 30, 31, "image/webp", 9), Text("é\U0001f600")),
        ),
        Message[Image]("assistant", (), (ToolCall("c", "f", "{}"),)),
        Message[Image]("tool", (Text("4"),), tool_call_id="c", name="f"),
    ),
    sampling=SamplingParams(max_tokens=7, temperature=0.5, seed=2**63, stop=("x",), logit_bias={3: -1.5}, logprobs=2),
    tools=(Tool("f", "does f", {"type": "object", "properties": {"x": {"type": ["number", "null"]}}}, strict=True),),
    tool_choice=ToolChoice("required", ("f",)),
    response_format=ResponseFormat("json_schema", {"type": "object"}),
    priority=-3,
    tenant="t",
)  # fmt: skip


def there(frame: Any) -> Any:
    data = encode(frame)
    assert body_length(data[:LENGTH_BYTES]) == len(data) - LENGTH_BYTES
    decode = frames.decode_to_child if isinstance(frame, get_args(frames.ToChild)) else frames.decode_to_parent
    return decode(data[LENGTH_BYTES:])


def test_a_request_arrives_as_it_was() -> None:
    wire, size = frames.to_wire(REQUEST)
    frame = there(frames.Generate(4, wire, size))
    fd = share([i.pixels for i in REQUEST.images], [p.offset for p in pictures_of(wire)])
    arrived = frames.from_wire(frame.request, receive(fd, frame.shared_bytes))
    for field in fields(EngineRequest):
        if field.name != "messages":
            assert getattr(arrived, field.name) == getattr(REQUEST, field.name), field.name
    for here, sent in zip(arrived.messages, REQUEST.messages, strict=True):
        for field in fields(Message):
            if field.name != "content":
                assert getattr(here, field.name) == getattr(sent, field.name), field.name
        assert [c for c in here.content if isinstance(c, Text)] == [c for c in sent.content if isinstance(c, Text)]
    assert len(arrived.images) == 2
    for image, original in zip(arrived.images, REQUEST.images, strict=True):
        np.testing.assert_array_equal(image.pixels, original.pixels)
        assert image.pixels.flags.c_contiguous
        assert not image.pixels.flags.writeable
        for field in fields(Image):
            if field.name != "pixels":
                assert getattr(image, field.name) == getattr(original, field.name), field.name


def pictures_of(wire: frames.EngineWireRequest) -> list[frames.Picture]:
    return [part for m in wire.messages for part in m.content if isinstance(part, frames.Picture)]


def test_the_wire_form_forgets_no_field() -> None:
    """Whoever adds a field to a request or a message is told here that it does not travel yet."""
    assert {f.name for f in fields(EngineRequest)} == set(frames.EngineWireRequest.__struct_fields__)
    assert {f.name for f in fields(Message)} == set(WireMessage.__struct_fields__)
    assert {f.name for f in fields(Image)} <= {*frames.Picture.__struct_fields__, "pixels"}


def test_pictures_do_not_overlap() -> None:
    wire, size = frames.to_wire(REQUEST)
    first, second = pictures_of(wire)
    assert first.offset + 56 * 84 * 3 <= second.offset
    assert second.offset + 28 * 28 * 3 == size
    assert frames.to_wire(EngineRequest("r", "m", ()))[1] == 0


EVENTS: list[Event] = [
    TextDelta("é", 2, (TokenLogprob("é", -0.5, (195, 169), (TokenLogprob("e", -9999.0),)),)),
    ReasoningDelta("hm", 1),
    ToolCallDelta(1, '{"a"', "call_1", "f", 3),
    RefusalDelta("no", 1),
    Finish("tool_calls", Usage(5, 6, (4,), (True,), 1, 2), Timing(0.1, 0.2, 0.3, 0.4), "x"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_arrive_as_they_were(event: Event) -> None:
    frame = there(frames.said(9, event))
    assert (frame.stream, frame.event, type(frame.event)) == (9, event, type(event))


def test_every_event_has_a_frame() -> None:
    assert {type(event) for event in EVENTS} == set(get_args(Event))


def test_the_other_frames() -> None:
    info = EngineInfo("fake", 100, CellBudget(28, 1, 2), 3, frozenset({"seed"}), "sha256:0")
    config = ModelConfig(name="m", options={"a": 1, "b": [None, 1.5, {"c": "d"}]})
    for frame in (
        frames.Start(config, "module:Class"), frames.Cancel(1), frames.Credit(2, 128), frames.Ping(3), frames.Close(),
        frames.Ready(info), frames.Pong(4),
    ):  # fmt: skip
        assert there(frame) == frame


# --- pictures --------------------------------------------------------------------------------------------------------


def test_shared_memory_is_gone_with_the_last_array() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    pixels = receive(share([PIXELS], [0]), PIXELS.nbytes)
    array = pixels(frames.Picture(0, 56, 84, "", 1, 1, "", 1))
    del pixels
    part = array[10:20]
    del array
    np.testing.assert_array_equal(part, PIXELS[10:20])
    del part
    assert open_files() == before


def test_a_size_without_pixels_takes_no_memory() -> None:
    pixels = size_only(frames.Picture(0, 10_000, 20_000, "", 1, 1, "", 1))
    assert pixels.shape == (10_000, 20_000, 3)
    assert pixels.strides == (0, 0, 0)


# --- restarts --------------------------------------------------------------------------------------------------------


def test_the_first_restart_is_at_once_then_later_and_later() -> None:
    policy, now, delays = RestartPolicy(max_deaths=100), 0.0, []
    for _ in range(9):
        restart = policy.died(now, served=False, up_s=1.0)
        delays.append(restart.delay_s)
        now += restart.delay_s + 1.0
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_who_serves_between_deaths_is_back_at_once_each_time() -> None:
    policy = RestartPolicy()
    assert [policy.died(float(n), served=True, up_s=0.5) for n in range(20)] == [Restart(0.0)] * 20


def test_who_was_up_for_long_is_back_at_once() -> None:
    policy = RestartPolicy()
    for n in range(4):
        policy.died(float(n), served=False, up_s=0.0)
    assert policy.died(100.0, served=False, up_s=61.0) == Restart(0.0)


def test_a_crash_loop_is_given_up_and_probed_until_something_is_served() -> None:
    policy, now = RestartPolicy(), 0.0
    for _ in range(5):
        restart = policy.died(now, served=False, up_s=0.0)
        assert not restart.gives_up
        now += restart.delay_s + 0.2
    for _ in range(10):
        assert policy.died(now, served=False, up_s=0.0) == Restart(30.0, gives_up=True)
        now += 30.2
    assert policy.died(now, served=True, up_s=5.0) == Restart(0.0)


def test_slow_deaths_are_no_crash_loop() -> None:
    policy = RestartPolicy()
    restarts = [policy.died(20.0 * n, served=False, up_s=0.0) for n in range(10)]
    assert not any(r.gives_up for r in restarts)
    assert restarts[-1].delay_s == 30.0


# --- output ----------------------------------------------------------------------------------------------------------


async def read(*chunks: bytes) -> list[str]:
    reader = asyncio.StreamReader()
    collecting = asyncio.create_task(_collect(reader))
    for chunk in chunks:
        reader.feed_data(chunk)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    reader.feed_eof()
    return await collecting


async def _collect(reader: asyncio.StreamReader) -> list[str]:
    return [line async for line in printable_lines(reader)]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b"one\ntwo\n\n", b"th", b"ree\nlast"], ["one", "two", "three", "last"]),
        ([b"ev\x1b[31mil\rline\n"], ["ev\\x1b[31mil\\x0dline"]),
        (["ü".encode()[:1], "ü".encode()[1:] + b"\n\xff"], ["ü", "\ufffd"]),
        ([b"x" * 1500, b"x" * 1500, b"x" * 90_000, b"y\nnext\n"], ["x" * MAX_LINE_CHARS, "next"]),
        ([], []),
    ],
)
async def test_output_becomes_bounded_printable_lines(chunks: list[bytes], lines: list[str]) -> None:
    assert await read(*chunks) == lines
