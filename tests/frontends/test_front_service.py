"""A front end's service and the core, in one process: what dialects see is what `Service` would have told them."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.requests import Request

from sightline import tracing
from sightline.access.gate import Gate
from sightline.access.keys import to_digest
from sightline.access.limits import Cost
from sightline.access.permit import acting_by
from sightline.api import access
from sightline.api.app import create_app
from sightline.config import AccessPolicy, ImageLimits, KeyConfig, ModelConfig, Settings
from sightline.engines.fake import FakeEngine
from sightline.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailed,
    EngineUnavailable,
    Forbidden,
    ImageUnreadable,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    QuotaExceeded,
    Unauthenticated,
)
from sightline.frontends import frames
from sightline.frontends.core import Core
from sightline.frontends.forward import Forwarded
from sightline.frontends.lent import FarMeter
from sightline.frontends.link import Link
from sightline.frontends.service import FrontService
from sightline.items import ChoiceEvent, Prepared
from sightline.service import Service
from sightline.speech import Listening
from sightline.types import (
    AudioRef,
    ChatRequest,
    EmbeddingRequest,
    Finish,
    ImageRef,
    Message,
    SamplingParams,
    Segment,
    SpeechRequest,
    Text,
    TextDelta,
    Timing,
    Tool,
    ToolChoice,
    Transcribed,
)
from tests.images.samples import encode, waves

pytestmark = pytest.mark.anyio

PICTURE = (Path(__file__).parent.parent.parent / "examples" / "pictures" / "red-circle.png").read_bytes()
SECRET = "sl-0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass
class Pair:
    service: Service
    engine: FakeEngine
    core: Core
    front: FrontService
    gate: Gate
    lost: asyncio.Event
    settings: Settings

    def slots(self) -> int:
        return self.engine.running


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    config = ModelConfig(
        name="fake", engine="fake", aliases=("other",), max_concurrent=4, max_queue=0, options={"context_length": 2500}
    )
    keys = (
        KeyConfig(name="poor", sha256=to_digest(SECRET.encode()).hex(), tokens_per_day=40),
        KeyConfig(name="foreign", sha256="0" * 64, models=("nothing",)),
    )
    settings = Settings(models=(config,), access=AccessPolicy(keys=keys), images=ImageLimits(decoders=1))
    engine = FakeEngine(config)
    service = Service(settings, {"fake": engine})
    await service.start()
    gate = Gate(settings.access)
    core = Core(service, create_app(service, settings, gate=gate), gate, {})
    core.start()
    ours, theirs = socket.socketpair()
    core.join(Link(ours, frames.decode_to_core))
    lost = asyncio.Event()
    front = FrontService(settings, Link(theirs, frames.decode_to_front_end), lost=lost.set)
    await front.start()
    yield Pair(service, engine, core, front, gate, lost, settings)
    await front.close()
    await core.close()
    await service.close()


def ask(*parts: str | bytes, **more: Any) -> ChatRequest:
    content = tuple(
        Text(part) if isinstance(part, str) else ImageRef(part, f"messages[0].content[{place}]")
        for place, part in enumerate(parts)
    )
    return ChatRequest("request", "fake", (Message("user", content),), **more)


async def items(service: Any, request: ChatRequest) -> list[object]:
    """Without what time makes different."""
    told: list[object] = []
    async with aclosing(service.generate(request)) as stream:
        async for item in stream:
            if isinstance(item, Prepared):
                item = replace(item, fetch_s=0.0, decode_s=0.0, queue_s=0.0)
            elif isinstance(item.event, Finish):
                usage = replace(item.event.usage, images_cached=())
                item = ChoiceEvent(item.index, replace(item.event, usage=usage, timing=Timing()))
            told.append(item)
    return told


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


TOOL = Tool("paint", "Paints.", {"type": "object", "properties": {"colour": {"type": "string"}}})


@pytest.mark.parametrize(
    "request_",
    [
        ask("hello"),
        ask("what is this?", PICTURE),
        ask(PICTURE, "between", PICTURE, n=2, sampling=SamplingParams(seed=3)),
        ask("hello", sampling=SamplingParams(logprobs=2, max_tokens=3)),
        ask("[[fake: think hm]][[fake: say yes]]"),
        ask("[[fake: refuse]]"),
        ask('[[fake: tool paint {"colour": "red"}]]', tools=(TOOL,), tool_choice=ToolChoice("auto")),
        ask("[[fake: length 700]]"),
        replace(ask("x"), messages=(), prompt="once upon"),
    ],
    ids=["text", "picture", "choices", "logprobs", "thoughts", "refusal", "tool", "long", "prompt"],
)
async def test_events_are_those_of_the_service(pair: Pair, request_: ChatRequest) -> None:
    expected = await items(pair.service, request_)
    assert await items(pair.front, request_) == expected
    assert isinstance(expected[0], Prepared)
    assert len(expected) > 2


async def test_pictures_for_which_there_is_no_room_are_served_smaller(pair: Pair) -> None:
    large = encode(waves(1000, 900), "JPEG")
    first = (await items(pair.front, ask("word " * 2000, *[large] * 4)))[0]
    assert isinstance(first, Prepared)
    assert all(image.scaled_to_fit for image in first.images)


async def test_the_model_sees_the_pictures_colours(pair: Pair) -> None:
    red = np.zeros((40, 60, 3), np.uint8)
    red[..., 0] = 255
    told = await items(pair.front, ask("look", encode(red, "PNG")))
    text = "".join(i.event.text for i in told if isinstance(i, ChoiceEvent) and isinstance(i.event, TextDelta))
    assert text.startswith("I see 1 picture: 60x40 mostly red")


async def test_other_work_is_the_services_too(pair: Pair) -> None:
    request = ask("what is this?", PICTURE)
    assert await pair.front.measure(request) == await pair.service.measure(request)
    embedding = EmbeddingRequest("e", "fake", ("a word", "two"))
    ours, its = await pair.front.embed(embedding), await pair.service.embed(embedding)
    assert np.array_equal(ours.value.vectors, its.value.vectors)
    assert (ours.value.prompt_tokens, ours.engine, ours.path) == (its.value.prompt_tokens, its.engine, its.path)
    assert pair.front.models() == pair.service.models()
    assert {status.name for status in pair.front.models()} == {"fake", "other"}
    assert pair.front.ready()
    await pair.front.load("other")
    assert pair.front.unload("other") is pair.service.unload("other") is False


@pytest.mark.parametrize(
    ("request_", "error", "param"),
    [
        (replace(ask("hi"), model="nobody"), ModelNotFound, "model"),
        (ask("look", b"\x89PNG\r\n\x1a\n and no more"), ImageUnreadable, "messages[0].content[1]"),
        (ask("word " * 3000), ContextLengthExceeded, "messages"),
        (ask("[[fake: nonsense]]"), InvalidRequest, "messages"),
        (ask("x", sampling=SamplingParams(logit_bias={1: 2**70})), InvalidRequest, None),
    ],
    ids=["model", "picture", "length", "script", "integer"],
)
async def test_errors_arrive_as_they_are(pair: Pair, request_: ChatRequest, error: type, param: str | None) -> None:
    with pytest.raises(error) as caught:
        await items(pair.front, request_)
    assert param is None or caught.value.param == param
    assert pair.slots() == 0


async def test_who_finds_the_line_full_is_told_when_to_come_back(pair: Pair) -> None:
    hanging = [pair.front.generate(ask("[[fake: hang]]")) for _ in range(4)]
    waiting = [asyncio.ensure_future(anext(stream)) for stream in hanging]
    await until(lambda: pair.slots() == 4)
    with pytest.raises(Overloaded) as caught:
        await items(pair.front, ask("hi"))
    assert caught.value.retry_after_s >= 1
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    await until(lambda: pair.slots() == 0)


async def test_a_client_that_leaves_frees_its_slot(pair: Pair) -> None:
    async with aclosing(pair.front.generate(ask("[[fake: slow 0.01]] " + "word " * 500))) as stream:
        async for item in stream:
            if isinstance(item, ChoiceEvent):
                break
        assert pair.slots() == 1
    await until(lambda: pair.slots() == 0)


async def test_a_client_that_leaves_while_its_picture_is_fetched(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    fetching, given_up = asyncio.Event(), asyncio.Event()

    async def resolve(*_: object, **__: object) -> None:
        fetching.set()
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    monkeypatch.setattr(pair.front._intake, "resolve", resolve)
    asking = asyncio.create_task(items(pair.front, ask("look", PICTURE)))
    await fetching.wait()
    asking.cancel()
    await asyncio.wait_for(given_up.wait(), 5)


async def test_a_deadline_holds(pair: Pair) -> None:
    with pytest.raises(DeadlineExceeded):
        async for _ in pair.front.generate(ask("[[fake: hang]]"), timeout_s=0.1):
            pass
    assert pair.slots() == 0


async def test_a_slow_reader_is_not_sent_more_than_a_window(pair: Pair) -> None:
    async with aclosing(pair.front.generate(ask("[[fake: length 1500]]"))) as stream:
        assert isinstance(await anext(stream), Prepared)
        (held,) = pair.front._streams.values()
        await until(lambda: held._frames.qsize() == frames.WINDOW - 1)
        for _ in range(20):  # turns of the loop, in which the core would send more if it could
            await asyncio.sleep(0)
        assert held._frames.qsize() == frames.WINDOW - 1
        rest = [item async for item in stream]
    assert sum(isinstance(item.event, TextDelta) for item in rest) == 1500  # type: ignore[union-attr]


async def test_when_the_core_is_lost(pair: Pair) -> None:
    begun = pair.front.generate(ask("[[fake: slow 0.01]] " + "word " * 500))
    assert isinstance(await anext(begun), Prepared)
    waiting = asyncio.ensure_future(anext(pair.front.generate(ask("[[fake: hang]]"))))
    await until(lambda: pair.slots() == 2)
    await pair.core.close()
    with pytest.raises(EngineFailed):
        async for _ in begun:
            pass
    with pytest.raises(EngineUnavailable):
        await waiting
    with pytest.raises(EngineUnavailable):
        await items(pair.front, ask("hi"))
    assert pair.lost.is_set()
    assert not pair.front.ready()
    await until(lambda: pair.slots() == 0)


async def test_when_a_front_end_is_lost_its_slots_are_free(pair: Pair) -> None:
    stream = pair.front.generate(ask("[[fake: slow 0.01]] " + "word " * 500))
    assert isinstance(await anext(stream), Prepared)
    assert pair.slots() == 1
    pair.front._link.close()
    await until(lambda: pair.slots() == 0)


async def test_a_bug_in_the_core_is_a_bug_here(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(pair.service, "answer", broken)
    with pytest.raises(RuntimeError, match="bug") as caught:
        await items(pair.front, ask("hi"))
    assert "secret" not in str(caught.value)


async def test_a_recording_arrives_whole(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[SpeechRequest] = []
    segment = Segment(0.0, 1.0, " hello", (1, 2), 0.0, -0.1, 1.0, 0.0)

    async def transcribe(request: SpeechRequest, *, timeout_s: float | None = None) -> AsyncIterator[object]:
        heard.append(request)
        for item in (Listening("fake", 1.0, 0.1), segment, Transcribed("en")):
            yield item

    monkeypatch.setattr(pair.service, "transcribe", transcribe)
    request = SpeechRequest(request_id="s", model="fake", audio=AudioRef(bytes(range(256)) * 5000, "file"), prompt="p")
    assert [item async for item in pair.front.transcribe(request)] == [
        Listening("fake", 1.0, 0.1), segment, Transcribed("en")
    ]  # fmt: skip
    gone = replace_key(pair, "gone")
    before = len(os.listdir("/proc/self/fd"))
    with acting_by(await gone.admit(gone.get("key-gone"), asks=True)), pytest.raises(Unauthenticated):
        _ = [item async for item in pair.front.transcribe(request)]
    assert len(os.listdir("/proc/self/fd")) == before
    (arrived,) = heard
    assert arrived.audio == request.audio
    assert arrived.prompt == "p"


async def test_a_trace_goes_through_both(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "_tracer", provider.get_tracer("test"))
    with tracing.serving("POST", "http", []):
        await items(pair.front, ask("hello"))
    spans = {span.name: span for span in exporter.get_finished_spans()}
    ours, its = spans["POST"], spans["chat fake"]
    assert its.parent is not None
    assert its.parent.span_id == ours.context.span_id
    assert {span.context.trace_id for span in spans.values()} == {ours.context.trace_id}


# --- keys ------------------------------------------------------------------------------------------------------------


async def test_what_a_key_spends_is_counted_in_the_core(pair: Pair) -> None:
    gate = Gate(pair.settings.access, metering=FarMeter(pair.front.call, pair.front.settle))
    key = gate.identify(SECRET.encode())
    for _ in range(2):
        with acting_by(await gate.admit(key, asks=True)):
            told = await items(pair.front, ask("hello", sampling=SamplingParams(max_tokens=5)))
    finish = told[-1].event  # type: ignore[attr-defined]
    each = finish.usage.prompt_tokens + finish.usage.completion_tokens
    used = (await gate.metering.used())[key.id]
    assert used.tokens == 2 * each
    assert (await pair.gate.metering.used())[key.id] == used
    with acting_by(await gate.admit(key, asks=True)), pytest.raises(QuotaExceeded):
        await items(pair.front, ask("hello", sampling=SamplingParams(max_tokens=100)))


async def test_a_key_that_is_gone_or_may_not_use_the_model(pair: Pair) -> None:
    gate = Gate(pair.settings.access, metering=FarMeter(pair.front.call, pair.front.settle))
    foreign = gate.get("key-foreign")
    with acting_by(await gate.admit(foreign, asks=True)):
        assert pair.front.models() == ()
        with pytest.raises(Forbidden):
            pair.front.refuse_foreign("other")
        with pytest.raises(Forbidden):
            await items(pair.front, ask("hi"))
        with pytest.raises(Forbidden):
            pair.front.unload("fake")
    only_here = replace_key(pair, "gone")
    with acting_by(await only_here.admit(only_here.get("key-gone"), asks=True)), pytest.raises(Unauthenticated):
        await items(pair.front, ask("hi"))


async def forwarded(pair: Pair, body: bytes) -> tuple[int, bytes]:
    """What the core's application answers to `POST /v1/responses`."""
    headers = [(b"content-type", b"application/json"), (b"authorization", b"Bearer secret"), (b"host", b"evil.example")]
    scope: dict[str, Any] = {
        "type": "http", "method": "POST", "path": "/v1/responses", "query_string": b"", "headers": headers
    }  # fmt: skip
    access.open_record(scope, "req_1")
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.Event().wait()

    await Forwarded(pair.front.forward, Request(scope), body)(scope, receive, send)
    assert (b"x-request-id", b"req_1") not in sent[0]["headers"], "the front end's own `Edge` sets it"
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


async def test_a_forwarded_request_is_answered_by_the_cores_application_with_the_same_rights(pair: Pair) -> None:
    body = b'{"model": "fake", "input": "hi", "background": true}'
    gate = Gate(pair.settings.access, metering=FarMeter(pair.front.call, pair.front.settle))
    status, answer = await forwarded(pair, body)
    assert (status, b'"queued"' in answer) == (200, True)
    with acting_by(await gate.admit(gate.get("key-foreign"), asks=True)):
        status, answer = await forwarded(pair, body)
    assert status in (403, 404)
    assert b"secret" not in answer


async def test_what_a_lost_front_end_had_reserved_is_given_back(pair: Pair) -> None:
    meter = FarMeter(pair.front.call, pair.front.settle)
    limits = replace_limits(pair, concurrent=1)
    assert (await meter.admit("key-poor", limits, Cost(requests=1, concurrent=1))).refusal is None
    assert (await meter.admit("key-poor", limits, Cost(requests=1, concurrent=1))).refusal is not None
    pair.front._link.close()
    await until(lambda: not pair.core._front_ends)
    assert (await pair.gate.metering.admit("key-poor", limits, Cost(requests=1, concurrent=1))).refusal is None


async def test_who_leaves_while_asking_for_a_place_holds_none(pair: Pair) -> None:
    meter = FarMeter(pair.front.call, pair.front.settle)
    limits = replace_limits(pair, concurrent=1)
    asking = asyncio.create_task(meter.admit("key-poor", limits, Cost(requests=1, concurrent=1)))
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])

    async def is_free() -> bool:
        return (await meter.admit("key-poor", limits, Cost(requests=1, concurrent=1))).refusal is None

    async with asyncio.timeout(5):
        while not await is_free():
            await asyncio.sleep(0.005)


def replace_key(pair: Pair, name: str) -> Gate:
    """A front end's gate that still knows a key which is revoked in the core."""
    key = KeyConfig(name=name, sha256="1" * 64)
    return Gate(AccessPolicy(keys=(key,)), metering=FarMeter(pair.front.call, pair.front.settle))


def replace_limits(pair: Pair, **limits: int) -> Any:
    return type(pair.gate.get("key-poor").limits)(**limits)


# --- the two are alike -----------------------------------------------------------------------------------------------

NOT_FOR_DIALECTS = {"call"}
"""Of `Service`: its closure cannot travel, and `embed` and `transcribe` are what it is for."""


def test_it_has_the_services_methods() -> None:
    names = {name for name in vars(Service) if not name.startswith("_")} - NOT_FOR_DIALECTS
    for name in names:
        assert hasattr(FrontService, name), name
        theirs, ours = (inspect.signature(getattr(kind, name)) for kind in (Service, FrontService))
        assert list(theirs.parameters.items()) == list(ours.parameters.items()), name
    assert {"draining"} <= set(vars(FrontService(Settings(), None, lost=lambda: None)))  # type: ignore[arg-type]
