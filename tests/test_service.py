"""The service, on a scripted engine: what is refused, what is tried again, what a consumer that leaves sets free."""

from __future__ import annotations

import asyncio
import base64
import io
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import msgspec
import pytest
from PIL import Image as PILImage

from sightline import metrics
from sightline.config import ImageLimits, ModelConfig, PictureSize, Settings
from sightline.engines import EngineInfo
from sightline.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailed,
    EngineUnavailable,
    ImageFormatUnsupported,
    ImageUnreadable,
    ModelNotFound,
    Overloaded,
    SightlineError,
    UnsupportedFeature,
)
from sightline.images.budget import CellBudget
from sightline.images.decoder import DecoderPool
from sightline.images.fetch import Fetcher
from sightline.items import ChoiceEvent, Item, Prepared, ServedImage
from sightline.service import Service
from sightline.types import (
    ChatRequest,
    EngineRequest,
    Event,
    Finish,
    ImageRef,
    Message,
    SamplingParams,
    Text,
    TextDelta,
    TokenCount,
    Tool,
    Usage,
)

pytestmark = pytest.mark.anyio

VISION = CellBudget(cell=28, min_pixels=16 * 784, max_pixels=64 * 784)
Script = Callable[["ScriptedEngine", EngineRequest], AsyncGenerator[Event, None]]


async def say(engine: ScriptedEngine, request: EngineRequest) -> AsyncGenerator[Event, None]:
    yield TextDelta("Hello")
    yield Finish("stop", Usage(3, 1))


class ScriptedEngine:
    """Runs a script for each request, and remembers what it was asked and what is still open."""

    def __init__(self, script: Script = say, info: EngineInfo | None = None) -> None:
        self.script = script
        self.info = info or EngineInfo(engine="scripted", context_length=100, vision=VISION)
        self.requests: list[EngineRequest] = []
        self.open = 0
        self.closed = False
        self.fails_to_start = False
        self.counts_exactly = True

    async def start(self) -> None:
        if self.fails_to_start:
            raise EngineUnavailable("no such model")

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        assert self.info.vision is not None
        image_tokens = tuple(self.info.vision.tokens(i.served_width, i.served_height) for i in request.images)
        return TokenCount(10 + sum(image_tokens), image_tokens, self.counts_exactly)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        self.open += 1
        try:
            async for event in self.script(self, request):
                yield event
        finally:
            self.open -= 1

    async def close(self) -> None:
        self.closed = True


@asynccontextmanager
async def serving(engine: ScriptedEngine, settings: Settings | None = None, **model: object) -> AsyncIterator[Service]:
    config = ModelConfig(name="m", engine="fake", **model)  # type: ignore[arg-type]
    service = Service(msgspec.structs.replace(settings or Settings(), models=(config,)), engines={"m": engine})
    await service.start()
    try:
        yield service
    finally:
        await service.close()
        assert engine.closed
        assert engine.open == 0


def request(*content: Text | ImageRef, **fields: object) -> ChatRequest:
    message = Message[ImageRef]("user", content or (Text("hi"),))
    return replace(ChatRequest(request_id="r", model="m", messages=(message,)), **fields)  # type: ignore[arg-type]


def picture(width: int = 60, height: int = 40, colour: str = "red") -> ImageRef:
    file = io.BytesIO()
    PILImage.new("RGB", (width, height), colour).save(file, "PNG")
    return ImageRef("data:image/png;base64," + base64.b64encode(file.getvalue()).decode(), param="messages[0]")


async def collect(service: Service, wanted: ChatRequest, **kwargs: float) -> list[Item]:
    return [item async for item in service.generate(wanted, **kwargs)]


async def test_prepared_comes_first_and_says_what_became_of_the_pictures() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as service:
        items = await collect(service, request(picture(600, 300), Text("what?"), picture(28, 28, "blue")))
    prepared, *events = items
    assert isinstance(prepared, Prepared)
    assert prepared.path == ("m@0",)
    first, second = prepared.images
    assert (first.width, first.height, second.width, second.height) == (600, 300, 28, 28)
    assert first.served_width * first.served_height <= VISION.max_pixels
    assert second.served_width * second.served_height >= VISION.min_pixels
    assert (first.tokens, second.tokens) == (55, 16)
    assert prepared.token_count == TokenCount(10 + 55 + 16, (55, 16))
    assert events == [ChoiceEvent(0, TextDelta("Hello")), ChoiceEvent(0, Finish("stop", Usage(3, 1)))]
    seen, text, other = engine.requests[0].messages[0].content
    assert isinstance(text, Text)
    assert seen.pixels[0, 0].tolist() == [255, 0, 0]  # type: ignore[union-attr]
    assert other.pixels[0, 0].tolist() == [0, 0, 255]  # type: ignore[union-attr]


async def test_choices_have_their_own_seeds_and_interleave() -> None:
    engine = ScriptedEngine()
    engine.info = replace(engine.info, features=frozenset({"seed"}))
    async with serving(engine) as service:
        items = await collect(service, request(n=3, sampling=SamplingParams(seed=7)))
    assert [r.sampling.seed for r in engine.requests] == [7, 8, 9]
    assert len({r.request_id for r in engine.requests}) == 3
    finishes = [i.index for i in items if isinstance(i, ChoiceEvent) and isinstance(i.event, Finish)]
    assert sorted(finishes) == [0, 1, 2]
    assert sum(isinstance(i, Prepared) for i in items) == 1


@pytest.mark.parametrize(
    ("wanted", "error", "param"),
    [
        (request(model="other"), ModelNotFound, "model"),
        (request(sampling=SamplingParams(top_k=5)), UnsupportedFeature, "top_k"),
        (request(sampling=SamplingParams(logprobs=0)), UnsupportedFeature, "logprobs"),
        (request(sampling=SamplingParams(frequency_penalty=1.0)), UnsupportedFeature, "frequency_penalty"),
        (request(tools=(Tool("f"),)), UnsupportedFeature, "tools"),
        (request(ImageRef("data:image/png;base64,aGVsbG8=", param="there")), ImageFormatUnsupported, "there"),
    ],
)  # fmt: skip
async def test_what_cannot_be_honoured_is_refused(wanted: ChatRequest, error: type[SightlineError], param: str) -> None:
    engine = ScriptedEngine()
    async with serving(engine) as service:
        with pytest.raises(error) as refused:
            await collect(service, wanted)
    assert refused.value.param == param
    assert engine.requests == []


async def test_pictures_for_a_blind_model_and_too_many_pictures() -> None:
    engine = ScriptedEngine()
    async with serving(engine) as service:
        engine.info = replace(engine.info, max_images=1)
        with pytest.raises(UnsupportedFeature, match=r"at most 1 pictures.*2 were sent"):
            await collect(service, request(picture(), picture()))
        engine.info = replace(engine.info, vision=None)
        with pytest.raises(UnsupportedFeature, match="cannot see"):
            await collect(service, request(picture()))
    assert engine.requests == []


async def test_an_engine_that_dies_before_it_spoke_is_asked_once_more() -> None:
    async def dies_once(engine: ScriptedEngine, request: EngineRequest) -> AsyncGenerator[Event, None]:
        if len(engine.requests) == 1:
            raise EngineUnavailable("died")
        yield TextDelta("second try")
        yield Finish("stop", Usage(1, 1))

    async with serving(ScriptedEngine(dies_once)) as service:
        prepared, *events = await collect(service, request())
    assert isinstance(prepared, Prepared)
    assert prepared.path == ("m@0", "m@0")
    assert events[0] == ChoiceEvent(0, TextDelta("second try"))


async def test_an_engine_that_dies_twice_or_after_it_spoke_is_not() -> None:
    async def always_dies(engine: ScriptedEngine, request: EngineRequest) -> AsyncGenerator[Event, None]:
        raise EngineUnavailable("died")
        yield

    async def dies_speaking(engine: ScriptedEngine, request: EngineRequest) -> AsyncGenerator[Event, None]:
        yield TextDelta("half")
        raise EngineFailed("died")

    silent = ScriptedEngine(always_dies)
    async with serving(silent) as service:
        with pytest.raises(EngineUnavailable):
            await collect(service, request())
    assert len(silent.requests) == 2

    speaking = ScriptedEngine(dies_speaking)
    seen: list[Item] = []
    async with serving(speaking) as service:
        with pytest.raises(EngineFailed):
            async for item in service.generate(request()):
                seen.append(item)
    assert len(speaking.requests) == 1
    assert seen[1] == ChoiceEvent(0, TextDelta("half"))


async def test_a_bug_in_an_engine_is_not_dressed_up() -> None:
    async def bug(engine: ScriptedEngine, request: EngineRequest) -> AsyncGenerator[Event, None]:
        raise ZeroDivisionError
        yield

    async with serving(ScriptedEngine(bug)) as service:
        with pytest.raises(ZeroDivisionError):
            await collect(service, request())


async def forever(engine: ScriptedEngine, request: EngineRequest) -> AsyncGenerator[Event, None]:
    while True:
        yield TextDelta("x")
        await asyncio.sleep(0.001)


async def silence(engine: ScriptedEngine, request: EngineRequest) -> AsyncGenerator[Event, None]:
    await asyncio.sleep(3600)
    yield TextDelta("never")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(2):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("script", [forever, silence])
async def test_the_deadline_ends_a_request_at_every_stage(script: Script) -> None:
    engine = ScriptedEngine(script)
    async with serving(engine) as service:
        with pytest.raises(DeadlineExceeded, match=r"0\.1 s"):
            await collect(service, request(), timeout_s=0.1)
        assert engine.open == 0


async def test_leaving_mid_stream_frees_the_engine_and_the_slot() -> None:
    engine = ScriptedEngine(forever)
    async with serving(engine, max_concurrent=1) as service:
        async with aclosing(service.generate(request())) as items:
            await anext(items)
            assert engine.open == 1
        assert engine.open == 0
        engine.script = say
        assert len(await collect(service, request(), timeout_s=1)) == 3


@pytest.mark.parametrize("stage", ["queued", "prefill"])
async def test_leaving_before_the_first_event_frees_too(stage: str) -> None:
    engine = ScriptedEngine(silence)
    async with serving(engine, max_concurrent=1) as service:
        tasks = [asyncio.create_task(collect(service, request())) for _ in range(2)]
        await until(lambda: engine.open == 1 and len(engine.requests) == 1)
        leaving = tasks[1 if stage == "queued" else 0]
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        if stage == "prefill":
            await until(lambda: len(engine.requests) == 2)  # the one that waited has the slot now
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert engine.open == 0


async def test_a_full_queue_is_refused_at_once() -> None:
    engine = ScriptedEngine(silence)
    async with serving(engine, max_concurrent=1, max_queue=2) as service:
        tasks = [asyncio.create_task(collect(service, request())) for _ in range(3)]
        await until(lambda: engine.open == 1)
        with pytest.raises(Overloaded) as refused:
            await collect(service, request())
        assert 1 <= refused.value.retry_after_s <= 120
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_queue_is_bounded_while_the_model_loads_too() -> None:
    engine = ScriptedEngine()
    loading = asyncio.Event()
    engine.start = loading.wait  # type: ignore[method-assign, assignment]
    config = ModelConfig(name="m", engine="fake", max_concurrent=1, max_queue=1)
    service = Service(Settings(models=(config,)), engines={"m": engine})
    await service.start(wait=False)
    tasks = [asyncio.create_task(collect(service, request())) for _ in range(2)]
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded):
        await collect(service, request())
    loading.set()
    assert [len(items) for items in await asyncio.gather(*tasks)] == [3, 3]
    await service.close()


async def test_a_slow_reader_stops_the_engine_rather_than_filling_memory() -> None:
    engine = ScriptedEngine()
    sent = 0

    async def fast(engine: ScriptedEngine, request: EngineRequest) -> AsyncGenerator[Event, None]:
        nonlocal sent
        while True:
            sent += 1
            yield TextDelta("x")

    engine.script = fast
    async with serving(engine) as service, aclosing(service.generate(request())) as items:
        await anext(items)
        await asyncio.sleep(0.05)
        assert sent < 200


async def test_a_model_that_fails_to_load_is_told_to_its_callers() -> None:
    engine = ScriptedEngine()
    engine.fails_to_start = True
    async with serving(engine) as service:
        assert not service.ready()
        assert [(s.name, s.state) for s in service.models()] == [("m", "failed")]
        with pytest.raises(EngineUnavailable, match="failed to load"):
            await collect(service, request())


async def test_ready_and_status() -> None:
    async with serving(ScriptedEngine()) as service:
        assert service.ready()
        (status,) = service.models()
        assert (status.name, status.state, status.engine) == ("m", "ready", "fake")
        assert status.info is not None
        assert status.info.context_length == 100
        count, _ = await service.measure(request(picture()))
        assert count == TokenCount(30, (20,))


async def test_a_truncated_picture_is_named() -> None:
    whole = picture(300, 300)
    broken = replace(whole, source=str(whole.source)[:-400], param="messages[0].content[1]")
    async with serving(ScriptedEngine()) as service:
        with pytest.raises(ImageUnreadable) as refused:
            await collect(service, request(whole, broken))
    assert refused.value.param == "messages[0].content[1]"


# --- how large pictures may be ---------------------------------------------------------------------------------------


class Calls:
    """How often the intake fetched, inspected and decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: Counter[str] = Counter()
        for cls, name in ((Fetcher, "fetch"), (DecoderPool, "inspect"), (DecoderPool, "decode")):
            monkeypatch.setattr(cls, name, self._counted(name, getattr(cls, name)))

    def _counted(self, name: str, original: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def counted(*args: object, **kwargs: object) -> object:
            self.of[name] += 1
            return await original(*args, **kwargs)

        return counted


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def with_context(tokens: int) -> ScriptedEngine:
    return ScriptedEngine(info=EngineInfo(engine="scripted", context_length=tokens, vision=VISION))


async def images_of(service: Service, wanted: ChatRequest) -> tuple[ServedImage, ...]:
    prepared = (await collect(service, wanted))[0]
    assert isinstance(prepared, Prepared)
    assert (prepared.token_count, prepared.images) == await service.measure(wanted)  # the same plan
    return prepared.images


async def test_where_pictures_of_any_size_fit_none_is_looked_at_twice(calls: Calls) -> None:
    async with serving(with_context(1000)) as service:
        await collect(service, request(picture(600, 300), picture(90, 90)))
    assert calls.of == {"fetch": 2, "decode": 2}


async def test_pictures_are_scaled_to_the_context_that_remains_and_it_is_told(calls: Calls) -> None:
    engine = with_context(120)
    async with serving(engine) as service:
        wanted = request(picture(600, 400), picture(112, 112, "blue"), sampling=SamplingParams(max_tokens=50))
        large, small = await images_of(service, wanted)
    assert calls.of == {"fetch": 4, "inspect": 4, "decode": 2}  # generate and measure; one decode for each picture
    assert (small.tokens, small.scaled_to_fit) == (16, False)  # the small one keeps its size
    assert large.scaled_to_fit
    assert 16 < large.tokens <= 120 - 10 - 50 - 16
    assert large.tokens >= 36  # 44 tokens are left, and 3:2 in whole cells does not get nearer than that
    sent = engine.requests[0].images[0]
    assert VISION.tokens(sent.served_width, sent.served_height) == large.tokens


async def test_the_reply_has_what_the_context_takes_and_no_more() -> None:
    async with serving(with_context(100)) as service:
        wanted = request(picture(600, 400), picture(600, 400, "blue"), sampling=SamplingParams(max_tokens=20))
        images = await images_of(service, wanted)
    assert [i.scaled_to_fit for i in images] == [True, True]
    assert images[0].tokens == images[1].tokens == 35  # 7 x 5 cells: 70 are left
    assert metrics.REGISTRY.get_sample_value("sightline_images_scaled_to_fit_total", {"model": "m"}) >= 2


@pytest.mark.parametrize("max_tokens", [30, None])
async def test_what_does_not_fit_at_its_smallest_is_refused_before_any_engine_runs(
    max_tokens: int | None, calls: Calls
) -> None:
    engine = with_context(60)
    refused = request(*[picture()] * (1 if max_tokens else 4), sampling=SamplingParams(max_tokens=max_tokens))
    engine.info = replace(engine.info, context_length=55)
    async with serving(engine) as service:
        with pytest.raises(ContextLengthExceeded, match=r"holds 55 tokens.*at their smallest") as error:
            await collect(service, refused)
        with pytest.raises(ContextLengthExceeded):
            await service.measure(refused)
    assert error.value.param == "messages"
    assert engine.requests == []
    assert calls.of["decode"] == 0


async def test_an_estimate_refuses_nothing() -> None:
    engine = with_context(55)
    engine.counts_exactly = False
    async with serving(engine) as service:
        await collect(service, request(picture(), sampling=SamplingParams(max_tokens=30)))
    assert len(engine.requests) == 1


async def test_too_many_pictures_are_refused_before_any_is_fetched(calls: Calls) -> None:
    async with serving(ScriptedEngine(), limit_mm_per_prompt={"image": 2}) as service:
        await collect(service, request(picture(), picture()))
        with pytest.raises(UnsupportedFeature, match=r"at most 2 pictures in a request; 3 were sent") as refused:
            await collect(service, request(*(replace(picture(), param=f"[{i}]") for i in range(3))))
        with pytest.raises(UnsupportedFeature):
            await service.measure(request(*[picture()] * 3))
    assert refused.value.param == "[2]"
    assert calls.of["fetch"] == 2
    async with serving(ScriptedEngine(), Settings(images=ImageLimits(max_images=1))) as service:
        with pytest.raises(UnsupportedFeature, match="at most 1 pictures"):
            await collect(service, request(picture(), picture()))


async def test_operators_choose_sizes_for_all_models_and_for_one() -> None:
    everywhere = Settings(picture_size=PictureSize(max_pixels=40 * 784))
    async with serving(with_context(1000), everywhere, picture_size=PictureSize(max_pixels=30 * 784)) as service:
        (image,) = await images_of(service, request(picture(600, 600)))
    assert image.tokens == 25
    assert not image.scaled_to_fit  # that is what was asked for, not what the context forced


async def test_swapped_pictures_reach_the_engine_swapped() -> None:
    red, blue = picture(colour="red"), picture(colour="blue")
    engine = ScriptedEngine()
    async with serving(engine) as service:
        for content in ((red, Text("a"), blue), (blue, Text("a"), red), (Text("a"), red, blue)):
            await collect(service, request(*content))
    seen = [
        [p.text if isinstance(p, Text) else p.pixels[0, 0].tolist() for p in r.messages[0].content]
        for r in engine.requests
    ]
    r, b = [255, 0, 0], [0, 0, 255]
    assert seen == [[r, "a", b], [b, "a", r], ["a", r, b]]


async def test_the_file_itself_is_a_source() -> None:
    """As the multipart form will have it."""
    file = base64.b64decode(str(picture(colour="green").source).partition(",")[2])
    engine = ScriptedEngine()
    async with serving(engine) as service:
        await collect(service, request(ImageRef(file, "image")))
    assert engine.requests[0].images[0].pixels[0, 0].tolist() == [0, 128, 0]


async def test_an_engine_that_counts_pictures_otherwise_is_a_bug_that_is_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def mismatches() -> float:
        return metrics.REGISTRY.get_sample_value("sightline_image_token_mismatches_total", {"model": "m"}) or 0.0

    async def honest(engine: ScriptedEngine, request: EngineRequest) -> AsyncGenerator[Event, None]:
        yield Finish("stop", Usage(30, 1, image_tokens=(20,)))

    before = mismatches()
    async with serving(ScriptedEngine(honest)) as service:
        await collect(service, request(picture()))
        assert mismatches() == before
    async with serving(ScriptedEngine()) as service:
        await collect(service, request(picture()))
    assert mismatches() == before + 1
    assert "has a bug" in caplog.text


async def test_the_log_tells_of_pictures_what_may_be_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    wanted = request(replace(picture(60, 40), uuid="secret"), Text("CANARY"))
    async with serving(ScriptedEngine()) as service:
        prepared = (await collect(service, wanted))[0]
    assert isinstance(prepared, Prepared)
    (line,) = [
        r.getMessage() for r in caplog.records if r.name == "sightline.understanding" and "sha256" in r.getMessage()
    ]
    assert prepared.images[0].digest in line
    assert "image/png" in line
    assert "60x40" in line
    assert not any(word in caplog.text for word in ("CANARY", "secret", "base64", str(wanted.images[0].source)[-40:]))


async def test_measuring_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*args: object, **kwargs: object) -> object:
        return await asyncio.Event().wait()

    monkeypatch.setattr(Fetcher, "fetch", never)
    async with serving(ScriptedEngine()) as service:
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await service.measure(request(picture()), timeout_s=0.05)
