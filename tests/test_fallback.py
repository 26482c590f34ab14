"""What happens when a model fails, is full or is not there: retries, other models, the breaker, loading."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from PIL import Image as PILImage

from sightline.config import ModelConfig, Settings
from sightline.configfile import load
from sightline.engines import EngineInfo, EngineState
from sightline.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    EngineFailed,
    EngineUnavailable,
    ImageUnreadable,
    InvalidRequest,
    ModelNotFound,
    Overloaded,
    SightlineError,
    UnsupportedFeature,
)
from sightline.images.budget import CellBudget
from sightline.items import ChoiceEvent, Item, Prepared
from sightline.metrics import REGISTRY
from sightline.routing import Breaker
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
    Usage,
)

pytestmark = pytest.mark.anyio

VISION = CellBudget(cell=28, min_pixels=16 * 784, max_pixels=64 * 784)


class Engine:
    """Says its name, or fails as it is told to."""

    def __init__(self, name: str, **info: Any) -> None:
        self.name = name
        self.info = EngineInfo(**{"engine": name, "context_length": 100, "vision": VISION, **info})
        self.failure: BaseException | None = None
        self.after = 0
        """Deltas before the failure."""
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[EngineRequest] = []
        self.starts = self.closes = 0
        self.state: EngineState = "ready"
        self.restarts = 0

    async def start(self) -> None:
        self.starts += 1
        if isinstance(self.failure, EngineUnavailable):
            raise self.failure

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        tokens = tuple(VISION.tokens(i.served_width, i.served_height) for i in request.images)
        return TokenCount(10 + sum(tokens), tokens)

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        self.asked.append(request)
        await self.gate.wait()
        for _ in range(self.after):
            yield TextDelta("half")
        if self.failure is not None:
            raise self.failure
        yield TextDelta(self.name)
        yield Finish("stop", Usage(10, 1))

    async def close(self) -> None:
        self.closes += 1


@asynccontextmanager
async def serving(*engines: Engine, **first: Any) -> AsyncIterator[Service]:
    """The first engine's model falls back to the others', in their order."""
    names = [engine.name for engine in engines]
    configs = [ModelConfig(name=names[0], engine="fake", **{"fallbacks": tuple(names[1:]), **first})]
    configs += [ModelConfig(name=name, engine="fake") for name in names[1:]]
    service = Service(Settings(models=tuple(configs)), engines={e.name: e for e in engines})
    await service.start()
    try:
        yield service
    finally:
        await service.close()


def request(*content: Text | ImageRef, **fields: Any) -> ChatRequest:
    message = Message[ImageRef]("user", content or (Text("hi"),))
    return replace(ChatRequest(request_id="r", model="local", messages=(message,)), **fields)


def picture() -> ImageRef:
    file = io.BytesIO()
    PILImage.new("RGB", (60, 40), "red").save(file, "PNG")
    return ImageRef("data:image/png;base64," + base64.b64encode(file.getvalue()).decode(), param="messages[0]")


async def ask(service: Service, wanted: ChatRequest, **kwargs: float) -> tuple[Prepared, str]:
    """What was said of the way, and the answer's text."""
    items: list[Item] = [item async for item in service.generate(wanted, **kwargs)]
    assert isinstance(items[0], Prepared)
    events = [item.event for item in items if isinstance(item, ChoiceEvent)]
    return items[0], "".join(event.text for event in events if isinstance(event, TextDelta))


async def test_a_model_that_fails_is_tried_once_more_and_then_the_next_one() -> None:
    local, remote = Engine("local"), Engine("remote", context_length=90)
    local.failure = EngineFailed("broke")
    async with serving(local, remote) as service:
        prepared, text = await ask(service, request(picture()))
    assert text == "remote"
    assert prepared.path == ("local@0", "local@0", "remote@0")
    assert prepared.engine == "remote"
    assert len(local.asked) == 2
    assert remote.asked[0].images[0].pixels[0, 0].tolist() == [255, 0, 0]


async def test_a_full_model_hands_over_at_once() -> None:
    local, remote = Engine("local"), Engine("remote")
    local.gate.clear()
    async with serving(local, remote, max_concurrent=1, max_queue=0) as service:
        busy = asyncio.create_task(ask(service, request()))
        while not local.asked:
            await asyncio.sleep(0.001)
        prepared, text = await ask(service, request())
        assert (prepared.path, text) == (("local@0", "remote@0"), "remote")
        local.gate.set()
        assert (await busy)[1] == "local"


async def test_nothing_is_tried_again_once_something_was_sent() -> None:
    local, remote = Engine("local"), Engine("remote")
    local.failure, local.after = EngineFailed("broke"), 1
    async with serving(local, remote) as service:
        with pytest.raises(EngineFailed):
            await ask(service, request())
    assert (len(local.asked), len(remote.asked)) == (1, 0)


@pytest.mark.parametrize("error", [InvalidRequest("wrong"), ZeroDivisionError()])
async def test_what_is_the_requests_own_fault_or_a_bug_goes_nowhere(error: Exception) -> None:
    local, remote = Engine("local"), Engine("remote")
    local.failure = error
    async with serving(local, remote) as service:
        with pytest.raises(type(error)):
            await ask(service, request())
    assert remote.asked == []


async def test_a_deadline_holds_for_the_whole_way() -> None:
    local, remote = Engine("local"), Engine("remote")
    local.failure = EngineFailed("broke")
    remote.gate.clear()
    async with serving(local, remote) as service:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await ask(service, request(), timeout_s=0.3)
    assert time.monotonic() - began < 0.3 + 0.5
    assert len(remote.asked) == 1


@pytest.mark.parametrize(
    ("wanted", "lacks"),
    [
        (request(picture()), {"vision": None, "features": frozenset({"seed"})}),
        (request(sampling=SamplingParams(seed=1)), {}),
        (request(sampling=SamplingParams(max_tokens=50)), {"context_length": 20}),
    ],
    ids=["blind", "no seed", "short"],
)
async def test_models_that_cannot_do_what_is_asked_are_passed_over(wanted: ChatRequest, lacks: dict[str, Any]) -> None:
    class Counting(Engine):
        async def count_tokens(self, request: EngineRequest) -> TokenCount:
            count = await super().count_tokens(request)
            if count.prompt_tokens + (request.sampling.max_tokens or 1) > self.info.context_length:
                raise ContextLengthExceeded("too long")
            return count

    seed = frozenset({"seed"})
    local, unable, able = Engine("local", features=seed), Counting("unable", **lacks), Engine("able", features=seed)
    local.failure = EngineFailed("broke")
    async with serving(local, unable, able) as service:
        prepared, text = await ask(service, wanted)
        assert (text, prepared.path[-2:]) == ("able", ("unable@0", "able@0"))
    assert unable.asked == []


async def test_when_none_can_the_first_ones_error_is_told() -> None:
    local, blind = Engine("local"), Engine("blind", vision=None)
    local.failure = EngineFailed("local broke")
    async with serving(local, blind) as service:
        with pytest.raises(EngineFailed, match="local broke"):
            await ask(service, request(picture()))
    local, other = Engine("local", vision=None), Engine("other")
    async with serving(local, other) as service:
        with pytest.raises(UnsupportedFeature, match="cannot see"):  # who asks a blind model is told so
            await ask(service, request(picture()))
    assert other.asked == []


async def test_an_open_breaker_answers_at_once_and_asks_nobody() -> None:
    local = Engine("local")
    local.failure = EngineFailed("broke")
    async with serving(local) as service:
        for _ in range(5):
            with pytest.raises(EngineFailed):
                await ask(service, request())
        assert len(local.asked) == 9  # each twice, but for the one that opened it
        assert REGISTRY.get_sample_value("sightline_breaker_open", {"model": "local"}) == 1
        began = time.perf_counter()
        for _ in range(20):
            with pytest.raises(EngineUnavailable, match="left alone"):
                await ask(service, request())
        assert (time.perf_counter() - began) / 20 < 0.010
        assert len(local.asked) == 9


async def test_a_request_that_breaks_the_engine_closes_nobody_elses_way() -> None:
    class Fragile(Engine):
        async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
            if request.messages[0].content == (Text("bad"),):
                raise EngineFailed("broke")
            async for event in super().generate(request):
                yield event

    async with serving(Fragile("local")) as service:
        for _ in range(20):
            with pytest.raises(EngineFailed):
                await ask(service, request(Text("bad"), n=4))
            assert (await ask(service, request(Text("good"))))[1] == "local"


async def test_counting_is_tried_once_more_at_the_same_price() -> None:
    class Miscounting(Engine):
        counted = 0

        async def count_tokens(self, request: EngineRequest) -> TokenCount:
            self.counted += 1
            if self.failure is not None:
                raise self.failure
            return await super().count_tokens(request)

    local = Miscounting("local")
    local.failure = EngineFailed("broke")
    async with serving(local) as service:
        service._models["local"].breaker = Breaker(failures=1_000)
        for _ in range(50):
            with pytest.raises(EngineFailed):
                await ask(service, request())
        assert local.counted <= 1.2 * 50 + 10
        local.failure = None
        assert (await ask(service, request()))[1] == "local"


async def test_an_engine_is_told_what_is_left_of_the_time_at_each_try() -> None:
    local, remote = Engine("local"), Engine("remote")
    local.failure = EngineFailed("broke")
    async with serving(local, remote) as service:
        await ask(service, request(), timeout_s=5.0)
    left = [asked.timeout_s for asked in (*local.asked, *remote.asked)]
    assert len(left) == 3
    assert 5.0 >= left[0] > left[1] > left[2] > 4.0  # type: ignore[operator]


async def test_a_client_cannot_ask_for_more_time_than_the_operator_gives() -> None:
    local = Engine("local")
    local.gate.clear()
    async with serving(local) as service:
        service._settings = msgspec.structs.replace(service._settings, request_timeout_s=0.05)
        with pytest.raises(DeadlineExceeded, match=r"0\.05 s"):
            await ask(service, request(), timeout_s=60.0)


async def test_a_model_that_failed_to_load_is_passed_over() -> None:
    local, remote = Engine("local"), Engine("remote")
    local.failure = EngineUnavailable("no files")
    async with serving(local, remote) as service:
        assert (await ask(service, request()))[1] == "remote"
    assert local.asked == []


async def test_an_engine_that_has_been_given_up_is_not_tried_again() -> None:
    local, remote = Engine("local"), Engine("remote")
    local.failure = EngineUnavailable("The engine is not running.")
    async with serving(local, remote, load="demand") as service:
        local.start = remote.start  # type: ignore[method-assign]
        local.state = "failed"
        prepared, text = await ask(service, request())
    assert (prepared.path, text) == (("local@0", "remote@0"), "remote")
    assert len(local.asked) == 1


async def test_an_engines_own_time_limit_leads_to_the_next_model_and_the_requests_does_not() -> None:
    local, remote = Engine("local"), Engine("remote")
    local.failure = DeadlineExceeded("longer than its server may take")
    async with serving(local, remote) as service:
        prepared, text = await ask(service, request())
        assert (prepared.path, text) == (("local@0", "remote@0"), "remote")
        for _ in range(10):
            with pytest.raises(DeadlineExceeded):
                await ask(service, request(), timeout_s=0.15)
        assert service._models["local"].breaker.state == "closed"  # clients in a hurry close nobody's way
        local.after = 1
        with pytest.raises(DeadlineExceeded):
            await ask(service, request())
    assert len(remote.asked) == 1


async def test_who_gets_a_slot_when_his_time_is_over_never_starts() -> None:
    local = Engine("local")
    local.gate.clear()
    async with serving(local, max_concurrent=1) as service:
        holder = asyncio.create_task(ask(service, request()))
        while not local.asked:
            await asyncio.sleep(0.001)
        late = asyncio.create_task(ask(service, request(), timeout_s=0.05))
        while service._models["local"].admission.waiting == 0:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)  # it is in line
        local.gate.set()
        time.sleep(0.1)  # noqa: ASYNC251  # the event loop is held up: when it goes on, slot and deadline are there at once
        with pytest.raises(DeadlineExceeded):
            await late
        assert (await holder)[1] == "local"
    assert len(local.asked) == 1


async def test_in_an_outage_of_all_models_each_gets_at_most_a_fifth_more_tries_than_requests() -> None:
    local, remote = Engine("local"), Engine("remote")
    local.failure = remote.failure = EngineFailed("broke")
    async with serving(local, remote) as service:
        for model in service._models.values():
            model.breaker = Breaker(failures=1_000)
        for _ in range(5):
            ends = await asyncio.gather(*(ask(service, request()) for _ in range(30)), return_exceptions=True)
            assert {type(end) for end in ends} == {EngineFailed}
        for engine in (local, remote):
            assert 150 < len(engine.asked) <= 1.2 * 150 + 10


@pytest.fixture
def reloads_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sightline.models.reload_after_s", lambda failures: 0.05)


@pytest.mark.usefixtures("reloads_soon")
async def test_a_model_that_failed_to_load_is_loaded_later_and_nobody_waits_for_that() -> None:
    local, remote = Engine("local"), Engine("remote")
    local.failure = EngineUnavailable("its server is away")
    async with serving(local, remote) as service:
        assert service.models()[0].state == "failed"
        async with asyncio.timeout(2):
            while local.starts < 3:  # by itself, again and again
                assert (await ask(service, request()))[1] == "remote"
                await asyncio.sleep(0.005)
        assert not service.ready()
        local.failure = None
        async with asyncio.timeout(2):
            while service.models()[0].state != "ready":
                await asyncio.sleep(0.005)
        assert (await ask(service, request()))[1] == "local"
        assert service.ready()
        starts = local.starts
        await asyncio.sleep(0.15)
        assert local.starts == starts


@pytest.mark.usefixtures("reloads_soon")
async def test_a_model_that_is_being_loaded_again_is_passed_over() -> None:
    class Slow(Engine):
        async def start(self) -> None:
            await super().start()
            await self.gate.wait()

    local, remote = Slow("local"), Engine("remote")
    local.failure = EngineUnavailable("its server is away")
    async with serving(local, remote) as service:
        local.failure = None
        local.gate.clear()
        async with asyncio.timeout(2):
            while service.models()[0].state != "loading":
                await asyncio.sleep(0.005)
        assert (await ask(service, request()))[1] == "remote"
        local.gate.set()
        async with asyncio.timeout(2):
            while service.models()[0].state != "ready":
                await asyncio.sleep(0.005)
        assert (await ask(service, request()))[1] == "local"


@pytest.mark.usefixtures("reloads_soon")
async def test_a_model_on_demand_that_failed_to_load_is_tried_by_a_later_request() -> None:
    local = Engine("local")
    local.failure = EngineUnavailable("no files")
    async with serving(local, load="demand") as service:
        for _ in range(3):  # the first tries, the others come too soon
            with pytest.raises(EngineUnavailable, match="failed to load"):
                await ask(service, request())
        assert local.starts == 1
        assert not service.ready()
        await asyncio.sleep(0.1)
        assert local.starts == 1  # not by itself
        assert service.ready()
        local.failure = None
        assert (await ask(service, request()))[1] == "local"
        assert local.starts == 2


async def test_an_idle_model_gives_its_process_back_and_gets_a_new_one() -> None:
    settings = Settings(models=(ModelConfig(name="local", engine="fake", idle_unload_s=0.3, start_timeout_s=20.0),))
    service = Service(settings)
    await service.start()
    pids = []
    try:
        for _ in range(2):
            assert (await ask(service, request(Text("hello"))))[1].endswith("hello")
            pid = service._models["local"].engine.pid  # type: ignore[attr-defined]
            assert psutil.pid_exists(pid)
            pids.append(pid)
            async with asyncio.timeout(10):
                while psutil.pid_exists(pid):
                    await asyncio.sleep(0.02)
            assert (service.models()[0].state, service.ready()) == ("unloaded", True)
        assert pids[0] != pids[1]
    finally:
        await service.close()


async def test_a_picture_that_was_there_when_two_processes_died_is_refused() -> None:
    class Mortal(Engine):
        async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
            self.asked.append(request)
            if request.images:
                self.state = "loading"
                error = EngineUnavailable("died")
                error.died = len(self.asked)
                raise error
            yield Finish("stop", Usage(10, 1))

    local = Mortal("local")
    async with serving(local) as service:
        with pytest.raises(EngineUnavailable):
            await ask(service, request(picture()))  # tried once more: two deaths
        local.state = "ready"
        asked = len(local.asked)
        with pytest.raises(ImageUnreadable, match="sha256:") as refused:
            await ask(service, request(picture()))
        assert refused.value.param == "messages[0]"
        await ask(service, request())
    assert len(local.asked) == asked + 1


async def test_a_picture_under_which_real_processes_die_is_refused_and_the_next_one_lives() -> None:
    deadly, harmless = Text("[[fake: crash 0]]"), Text("hello")
    settings = Settings(models=(ModelConfig(name="local", engine="fake", start_timeout_s=20.0),))
    service = Service(settings)
    await service.start()
    try:
        with pytest.raises((EngineFailed, EngineUnavailable)):
            await ask(service, request(deadly))  # has no picture that could be to blame
        assert (await ask(service, request(picture(), harmless)))[1].endswith("hello")
        with pytest.raises((EngineFailed, EngineUnavailable)):
            await ask(service, request(picture(), deadly))
        with pytest.raises(ImageUnreadable, match="broke down twice"):
            await ask(service, request(picture(), harmless))
        assert (await ask(service, request(harmless)))[1].endswith("hello")
    finally:
        await service.close()


async def test_an_alias_answers_as_the_model_and_is_listed() -> None:
    async with serving(Engine("local"), aliases=("gpt-4o",)) as service:
        assert (await ask(service, request(model="gpt-4o")))[1] == "local"
        assert [status.name for status in service.models()] == ["local", "gpt-4o"]
        with pytest.raises(ModelNotFound):
            await ask(service, request(model="gpt-5"))


async def test_a_model_on_demand_is_loaded_by_its_first_request_and_unloaded_when_idle() -> None:
    local = Engine("local")
    async with serving(local, load="demand", idle_unload_s=0.05) as service:
        assert (local.starts, service.models()[0].state, service.ready()) == (0, "unloaded", True)
        local.gate.clear()
        async with aclosing(service.generate(request())) as items:
            first = asyncio.ensure_future(anext(items))
            await asyncio.sleep(0.15)  # longer than it may be idle: but it is in use
            assert (local.starts, local.closes) == (1, 0)
            local.gate.set()
            await first
        async with asyncio.timeout(2):
            while not local.closes:
                await asyncio.sleep(0.01)
        assert service.models()[0].state == "unloaded"
        assert (await ask(service, request()))[1] == "local"
        assert local.starts == 2


async def test_a_model_on_demand_is_unloaded_when_that_is_wanted_and_nobody_uses_it() -> None:
    local = Engine("local")
    async with serving(local, load="demand") as service:
        assert service.unload("local"), "it is not loaded, and need not be"
        local.gate.clear()
        async with aclosing(service.generate(request())) as items:
            first = asyncio.ensure_future(anext(items))
            async with asyncio.timeout(2):
                while service.models()[0].state != "ready":
                    await asyncio.sleep(0.001)
            assert service.unload("local")
            await asyncio.sleep(0.02)
            assert (service.models()[0].state, local.closes) == ("ready", 0), "it is in use"
            local.gate.set()
            await first
        async with asyncio.timeout(2):
            while not local.closes:
                await asyncio.sleep(0.001)
        assert (await ask(service, request()))[1] == "local"
        await asyncio.sleep(0.02)
        assert (local.starts, service.models()[0].state) == (2, "ready"), "once it is loaded again it stays"
        with pytest.raises(ModelNotFound):
            service.unload("other")
    async with serving(Engine("local")) as service:
        assert not service.unload("local")
        assert service.models()[0].state == "ready"


async def test_who_waits_for_a_model_to_load_has_a_deadline() -> None:
    class Slow(Engine):
        async def start(self) -> None:
            await asyncio.Event().wait()

    async with serving(Slow("local"), load="demand") as service:
        with pytest.raises(DeadlineExceeded):
            await ask(service, request(), timeout_s=0.05)
        assert service.models()[0].state == "loading"  # for the next one


async def test_overload_without_a_fallback_is_told_as_it_is() -> None:
    local = Engine("local")
    local.failure = Overloaded("full", retry_after_s=7)
    async with serving(local) as service:
        for _ in range(10):
            with pytest.raises(SightlineError) as refused:
                await ask(service, request())
            assert isinstance(refused.value, Overloaded)  # a full engine is no broken one: the breaker stays closed
    assert len(local.asked) == 10


def test_a_fallback_that_does_not_exist_is_named() -> None:
    with pytest.raises(InvalidRequest, match="'peek' falls back to 'nowhere'"):
        Service(Settings(models=(ModelConfig(name="peek", engine="fake", fallbacks=("nowhere",)),)))


def test_the_pages_configuration_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "fallback.md").read_text()
    file = tmp_path / "sightline.yaml"
    file.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    monkeypatch.setenv("SIGHTLINE_PROVIDER_KEY", "sk-none")
    settings = load(file)
    assert [model.name for model in settings.models] == ["assistant", "rack", "provider"]
    assert settings.models[0].fallbacks == ("rack", "provider")
    Service(settings)  # which makes every engine, and so checks their options


async def test_a_whole_answer_that_broke_half_way_is_tried_again_and_a_streamed_one_is_not() -> None:
    local, remote = Engine("local"), Engine("remote")
    local.failure, local.after = EngineFailed("broke"), 3
    async with serving(local, remote) as service:
        with pytest.raises(EngineFailed):
            await ask(service, request())
        assert (len(local.asked), len(remote.asked)) == (1, 0)
        prepared, text = await ask(service, request(whole=True))
        assert text == "remote", "and nothing of the half answers"
        assert prepared.path == ("local@0", "local@0", "remote@0")


async def test_a_whole_answer_comes_with_all_its_choices() -> None:
    async with serving(Engine("local")) as service:
        items = [item async for item in service.generate(request(whole=True, n=3))]
    assert isinstance(items[0], Prepared)
    events = [(item.index, type(item.event).__name__) for item in items if isinstance(item, ChoiceEvent)]
    assert sorted(events) == [(i, kind) for i in range(3) for kind in ("Finish", "TextDelta")]


async def test_all_requests_of_a_process_that_died_are_tried_again_whatever_the_budget() -> None:
    class Dying(Engine):
        async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
            if request.request_id not in {before.request_id for before in self.asked}:
                self.asked.append(request)
                error = EngineUnavailable("died")
                error.died = 4711
                raise error
            async for event in super().generate(request):
                yield event

    local = Dying("local")
    async with serving(local, max_concurrent=40) as service:
        asked = [asyncio.create_task(ask(service, request(request_id=f"r{i}"))) for i in range(30)]
        assert [text for _, text in await asyncio.gather(*asked)] == ["local"] * 30
    assert len(local.asked) == 60
