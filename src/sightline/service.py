"""The service: choose a model, admit, understand the pictures, run, try again, observe.

Every surface (HTTP dialects, the command line, batches) calls this; nothing here knows HTTP, and no engine is known by
name. One request, hop by hop:

    generate -> which model (attempts.py) -> its line (models.py) -> its pictures and what they cost (understanding.py)
             -> a slot -> engine -> observe (metrics.py)

and the same with the next model in line, where this one is full or fails before anything has been sent.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from sightline import metrics, tracing
from sightline.access import permit as permits
from sightline.access.permit import Spending
from sightline.admission import Ticket
from sightline.attempts import Way, before_retry, in_turn
from sightline.audio.decoder import AudioDecoder
from sightline.config import ModelConfig, Settings
from sightline.draining import Draining
from sightline.engine_request import (
    likeness,
    refuse_work,
    to_engine_request,
)
from sightline.engines import Embeds, Engine, EngineInfo, Work, open_engine
from sightline.errors import (
    DeadlineExceeded,
    EngineError,
    EngineFailed,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
)
from sightline.images.intake import Intake, ReadKept
from sightline.models import ModelStatus, ServedModel
from sightline.routing import BACKGROUND, Deadline, Pass, Quarantine
from sightline.speech import SpeechItem, written_down
from sightline.types import (
    AudioRef,
    ChatRequest,
    EmbeddingRequest,
    Embeddings,
    EngineRequest,
    Event,
    Finish,
    Samples,
    SpeechRequest,
    TokenCount,
)
from sightline.understanding import Understanding, Understood

log = logging.getLogger(__name__)

_LAG_SAMPLE_S = 0.05
"""How often the event loop's lateness is measured."""
_LAST_MOMENT_S = 0.2
"""Of a request's time, in which an engine that knows of it may give up a little earlier than we do."""
_CHARACTERS_PER_TOKEN = 4
_BUFFERED_EVENTS = 64
"""Events that may wait for a slow reader before its engine stream is no longer pulled."""
_LAST_WORDS_S = 1.0
"""Of the time to drain, for telling those whose answers it cuts short."""


@dataclass(frozen=True, slots=True)
class ServedImage:
    """What became of a picture: the client is told (wire contract, section 13)."""

    width: int
    height: int
    served_width: int
    served_height: int
    tokens: int
    digest: str
    num_bytes: int = 0
    """Of the file."""
    scaled_to_fit: bool = False
    """Smaller than its budget would have had it, because the context had no room for more."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """First item of every stream: the pictures are understood and the engine has begun."""

    engine: str
    path: tuple[str, ...]
    """Replicas tried, last the one that answers: `peek@0`."""
    images: tuple[ServedImage, ...]
    token_count: TokenCount
    fetch_s: float = 0.0
    decode_s: float = 0.0
    queue_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """An engine's event, and which of the request's `n` choices it belongs to."""

    index: int
    event: Event


Item = Prepared | ChoiceEvent

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """Work of an engine that ends in one value and is no answer in events: texts to embed, speech to write down."""

    request_id: str
    model: str
    work: Work
    """Engines that do not do it are not asked."""
    run: Callable[[Engine], Awaitable[T]]
    """Raises what an engine's `generate` may raise. Without effects: it may be run once more."""
    priority: int = 0
    begun: Callable[[], bool] = lambda: False
    """Whether the client has been told something of it: then nothing is tried again."""


@dataclass(frozen=True, slots=True)
class Called(Generic[T]):
    value: T
    engine: str
    path: tuple[str, ...]
    """As `Prepared.path`."""
    queue_s: float = 0.0


class Service:
    """Life: made -> `start` -> requests -> `close`. Used from one event loop."""

    def __init__(self, settings: Settings, engines: Mapping[str, Engine] | None = None) -> None:
        """`engines` replaces, by model name, the engines that `settings.models` would open (tests, embedding)."""
        self.draining = Draining()
        self._settings = settings
        self._intake = Intake(settings.images, settings.fetch)
        self._audio = AudioDecoder(settings.audio)
        self._lag: asyncio.Task[None] | None = None
        self._models = {
            config.name: ServedModel(config, _opener(config, (engines or {}).get(config.name)))
            for config in settings.models
        }
        self._names = {alias: config.name for config in settings.models for alias in config.aliases}
        self._quarantine = Quarantine()
        self._understanding = Understanding(settings, self._intake, self._quarantine)
        for config in settings.models:
            for name in config.fallbacks:
                if name not in self._models:
                    raise InvalidRequest(
                        f"The model {config.name!r} falls back to {name!r}, which is not a configured model's name.",
                        param="fallbacks",
                    )

    def keep_files(self, read: ReadKept) -> None:
        """Pictures may be named by the ids of files from now on, which `read` reads."""
        self._intake.read_kept = read

    async def start(self, *, wait: bool = True) -> None:
        """Starts the decoders and every model; with `wait`, returns when each is ready or has failed.

        A model that fails to load does not stop the others: its requests get `EngineUnavailable`.
        """
        self._lag = watch_event_loop()
        await self._intake.start()
        for model in self._models.values():
            model.start()
        if wait:
            await asyncio.gather(*(model.started() for model in self._models.values()), return_exceptions=True)

    async def drain(self) -> None:
        """Takes nothing new, and returns when what was taken is done. What is not when `Settings.drain_s` is over is
        ended: its streams raise `EngineUnavailable`."""
        self.draining.begin()
        try:
            async with asyncio.timeout(max(0.0, self._settings.drain_s - _LAST_WORDS_S)):
                await self.draining.idle()
        except TimeoutError:
            log.warning("answers under way are cut short: draining has taken %g s", self._settings.drain_s)
            ending = [asyncio.create_task(model.close()) for model in self._models.values()]
            telling = asyncio.create_task(self.draining.idle())
            await asyncio.wait([telling], timeout=_LAST_WORDS_S)
            telling.cancel()
            await asyncio.wait(ending)

    async def close(self) -> None:
        """Ends what runs (streams raise `EngineUnavailable`) and stops every process that was started."""
        await asyncio.gather(*(model.close() for model in self._models.values()))
        await self._intake.close()
        await self._audio.close()
        if self._lag is not None:
            self._lag.cancel()

    def models(self) -> tuple[ModelStatus, ...]:
        """Every name that the request's key may use, aliases included."""
        own = [model.status() for model in self._models.values() if self._is_allowed(model)]
        aliases = [
            replace(model.status(), name=alias)
            for alias, name in self._names.items()
            if self._is_allowed(model := self._models[name])
        ]
        return (*own, *aliases)

    def refuse_foreign(self, name: str) -> None:
        """Raises `Forbidden` for a model that is there and that the request's key may not use."""
        model = self._models.get(self._names.get(name, name))
        if model is not None and not self._is_allowed(model):
            raise Forbidden(
                f"This API key may not use the model {name[:128]!r}. GET /v1/models lists those that it may.",
                param="model",
            )

    async def load(self, name: str) -> None:
        """Returns when a model is ready to be asked. Raises `ModelNotFound`, `EngineUnavailable`."""
        async with self._model(name).used():
            pass

    def unload(self, name: str) -> bool:
        """Frees what a model holds as soon as nobody uses it, where its next request loads it again; whether that is
        so. Raises `ModelNotFound`; `Forbidden` by a key that may not control the server, whose models are everybody's.
        """
        if not permits.current().is_admin:
            raise Forbidden("This API key may not unload models, which others use. An admin key may.")
        return self._model(name).unload()

    def ready(self) -> bool:
        """Whether every configured model can take a request now."""
        return not self.draining.begun and all(model.available for model in self._models.values())

    async def measure(
        self, request: ChatRequest, *, timeout_s: float | None = None
    ) -> tuple[TokenCount, tuple[ServedImage, ...]]:
        """What the prompt would cost, and what would become of its pictures. Nothing runs on the engine.

        Raises what `generate` raises before its first item, but that nobody waits in line for this.
        """
        async with self._deadline(timeout_s):
            model = self._model(request.model)
            async with model.used() as info:
                understood = await self._understanding.of(request, model, info)
        return understood.token_count, _to_served(understood)

    async def generate(self, request: ChatRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Item, None]:
        """`timeout_s`: within how many seconds from now; never more than the server's own deadline, which is also that
        of a request without one.

        Yields `Prepared` when the first event of an engine is there (an error before it can still be a true status),
        then `ChoiceEvent`s interleaved by index, one `Finish` for each choice.

        Raises only `SightlineError`, unless there is a bug. Closing it cancels everything that the request holds: its
        place in line, its pictures' decoding, its engine sequences.

        The work runs in a task of its own, because a consumer may pull from one task and close from another, which a
        deadline scope inside a generator does not survive.
        """
        items: asyncio.Queue[Item | _End] = asyncio.Queue(_BUFFERED_EVENTS)
        work = asyncio.create_task(self._work(request, timeout_s, items))
        try:
            while not isinstance(item := await items.get(), _End):
                yield item
            if item.error is not None:
                raise item.error
        finally:
            work.cancel()
            await asyncio.wait([work])

    async def call(self, call: Call[T], *, timeout_s: float | None = None) -> Called[T]:
        """What `call.run` returns, on its model or on one that stands in for it: admitted, counted, tried again and
        ended by the deadline like an answer.

        Raises what `generate` raises, and `UnsupportedFeature` for a model that does not do such work.
        """
        with tracing.call(call.work, call.model), self._observed(call.model):
            async with self._deadline(timeout_s) as deadline:
                way = Way(call.request_id, deadline, call.request_id)
                return await in_turn(self._line(call.model), way, lambda model: self._admit_and_call(call, model, way))

    async def embed(self, request: EmbeddingRequest, *, timeout_s: float | None = None) -> Called[Embeddings]:
        """A vector for each input. Raises as `call`."""

        async def run(engine: Engine) -> Embeddings:
            assert isinstance(engine, Embeds), "an engine whose work it is has the method"
            embeddings = await engine.embed(request)
            tracing.used(embeddings.prompt_tokens)
            return embeddings

        call = Call(request.request_id, request.model, "embeddings", run, request.priority)
        async with permits.current().spending(_estimate(request.inputs)) as spent:
            called = await self.call(call, timeout_s=timeout_s)
            spent.read(called.value.prompt_tokens)
        model = called.path[-1].rpartition("@")[0]
        metrics.PROMPT_TOKENS.labels(model).inc(called.value.prompt_tokens)
        return called

    def transcribe(self, request: SpeechRequest, *, timeout_s: float | None = None) -> AsyncGenerator[SpeechItem, None]:
        """What `speech.written_down` yields. Raises an `AudioError`, and as `call`."""
        deadline = self._deadline(timeout_s)

        async def decode(ref: AudioRef) -> Samples:
            try:
                async with deadline:
                    if (info := self._model(request.model).status().info) is not None:
                        refuse_work("transcription", request.model, info)
                    return await self._audio.decode(ref)
            except BaseException:
                with self._observed(request.model):  # `call` counts those that get as far as that
                    raise

        async def call(run: Callable[[Engine], Awaitable[None]], begun: Callable[[], bool]) -> Called[None]:
            work = Call(request.request_id, request.model, "transcription", run, begun=begun)
            return await self.call(work, timeout_s=deadline.left_s())

        return written_down(request, decode, call)

    # --- one request ---------------------------------------------------------------------------------------------

    def _deadline(self, timeout_s: float | None) -> Deadline:
        ours = self._settings.request_timeout_s
        return Deadline(ours if timeout_s is None else min(timeout_s, ours))

    async def _work(self, request: ChatRequest, timeout_s: float | None, items: asyncio.Queue[Item | _End]) -> None:
        error: BaseException | None = None
        try:
            is_durable = request.priority <= BACKGROUND
            under_way = nullcontext() if is_durable else self.draining.under_way()
            with tracing.chat(request), self._observed(request.model), under_way:
                async with self._deadline(timeout_s) as deadline:
                    stream = _Stream(request, deadline, items)
                    line = self._line(request.model)
                    await in_turn(line, stream, lambda model: self._admit_and_run(request, model, stream))
        except BaseException as caught:
            error = caught
        if isinstance(error, asyncio.CancelledError):
            raise error
        await items.put(_End(error))

    @contextmanager
    def _observed(self, model: str) -> Iterator[None]:
        """Counts a request by what became of it."""
        started = time.perf_counter()
        name = self._names.get(model, model)
        label = name if name in self._models else "other"
        error: BaseException | None = None
        try:
            yield
        except BaseException as caught:
            error = caught
            raise
        finally:
            metrics.REQUESTS.labels(label, metrics.outcome(error)).inc()
            metrics.REQUEST_SECONDS.labels(label).observe(time.perf_counter() - started)

    async def _admit_and_run(self, request: ChatRequest, model: ServedModel, stream: _Stream) -> None:
        admitted = time.perf_counter()
        with model.ask() as allowed:
            async with (
                model.admission.enter(priority=request.priority, choices=request.n) as ticket,
                model.used() as info,
                AsyncExitStack() as stack,
            ):
                model.retries.earn()
                with tracing.span("prepare"):
                    understood = await self._understood(request, model, info, allowed, stream)
                resolved = understood.resolved
                spent = await stack.enter_async_context(_spending(request, understood))
                images = [r.image for r in resolved]
                choices = [to_engine_request(request, images, index) for index in range(request.n)]
                queued = time.perf_counter()
                with tracing.span("queue"):
                    await ticket.slot(understood.token_count.prompt_tokens, request.sampling.max_tokens)
                stream.deadline.check()
                if not allowed.valid:
                    raise model.left_alone()
                queue_s = time.perf_counter() - queued
                metrics.QUEUE_SECONDS.labels(model.name).observe(queue_s)
                stream.prepared = Prepared(
                    engine=info.engine,
                    path=(),
                    images=_to_served(understood),
                    token_count=understood.token_count,
                    fetch_s=sum(r.fetch_s for r in resolved),
                    decode_s=sum(r.decode_s + r.resize_s for r in resolved),
                    queue_s=queue_s,
                )
                run = _Run(model, ticket, allowed, stream, understood.token_count, admitted, spent)
                try:
                    with tracing.span("generate"):
                        await _together([self._run_choice(run, choice, i) for i, choice in enumerate(choices)])
                    self._quarantine.clear(image.digest for image in images)
                finally:
                    for process in run.dead:
                        self._quarantine.suspect((image.digest for image in images), process)

    async def _admit_and_call(self, call: Call[T], model: ServedModel, way: Way) -> Called[T]:
        with model.ask() as allowed:
            async with model.admission.enter(priority=call.priority) as ticket, model.used() as info:
                model.retries.earn()
                refuse_work(call.work, call.model, info)
                queued = time.perf_counter()
                with tracing.span("queue"):
                    await ticket.slot()
                way.deadline.check()
                if not allowed.valid:
                    raise model.left_alone()
                queue_s = time.perf_counter() - queued
                metrics.QUEUE_SECONDS.labels(model.name).observe(queue_s)
                for retry in itertools.count():
                    try:
                        value = await call.run(model.engine)
                    except EngineError as error:
                        way.begun = call.begun()
                        await before_retry(error, retry, model, allowed, way, begun=way.begun)
                    else:
                        allowed.succeeded()
                        return Called(value, info.engine, tuple(way.path), queue_s)
        raise AssertionError("it returns or raises")

    async def _run_choice(self, run: _Run, request: EngineRequest, index: int) -> None:
        """Runs one choice; once more if the engine broke before the client was told anything, the budget permitting."""
        model, stream = run.model, run.stream
        for retry in itertools.count():
            begun = False
            held: list[Event] = []
            """Of a whole answer, until it is one."""
            try:
                async with aclosing(
                    metrics.observe(
                        model.engine.generate(replace(request, timeout_s=stream.deadline.left_s())),
                        model.name,
                        started=run.started,
                    )
                ) as events:
                    async for event in events:
                        if not begun:
                            begun = True
                            run.allowed.succeeded()
                            tracing.first_event()
                        if isinstance(event, Finish):
                            tracing.finished(event, model.name)
                            _verify_count(event, run.token_count, model.name)
                            run.ticket.answered(event.usage.completion_tokens)
                        if stream.whole:
                            held.append(event)
                        else:
                            await run.tell(index, event)
                for event in held:
                    await run.tell(index, event)
                return
            except EngineError as error:
                if error.died is not None:
                    run.dead.add(error.died)
                await before_retry(error, retry, model, run.allowed, stream, begun=begun and not stream.whole)
            except DeadlineExceeded:
                if begun or stream.deadline.left_s() < _LAST_MOMENT_S:
                    raise
                # A limit of the engine's own, which is not the request's: another model has time for it.
                run.allowed.failed(stream.alike)
                raise EngineFailed(f"The model {model.name!r} took longer than it is given.") from None

    async def _understood(
        self, request: ChatRequest, model: ServedModel, info: EngineInfo, allowed: Pass, way: Way
    ) -> Understood:
        """As `Understanding.of`; once more where counting failed, at the same price as any other try."""
        for retry in itertools.count():
            try:
                return await self._understanding.of(request, model, info)
            except EngineError as error:
                await before_retry(error, retry, model, allowed, way)
        raise AssertionError("it returns or raises")

    def _line(self, name: str) -> list[ServedModel]:
        """The model, and those that stand in for it as they are written, if the request's key may use them too. Raises
        as `_model`."""
        first = self._model(name)
        fallbacks = (self._models[fallback] for fallback in first.config.fallbacks)
        return [first, *(model for model in fallbacks if self._is_allowed(model))]

    def _is_allowed(self, model: ServedModel) -> bool:
        """To the key of the request that is being answered."""
        return permits.current().allows(model.name, self._names)

    def _model(self, name: str) -> ServedModel:
        """Raises `ModelNotFound`; `Forbidden` for one that the request's key may not use."""
        self.refuse_foreign(name)
        try:
            return self._models[self._names.get(name, name)]
        except KeyError:
            raise ModelNotFound(
                f"The model {name[:128]!r} does not exist. GET /v1/models lists what is served.", param="model"
            ) from None


class _Stream(Way):
    """Puts events in line for the consumer, `Prepared` before the first."""

    def __init__(self, request: ChatRequest, deadline: Deadline, items: asyncio.Queue[Item | _End]) -> None:
        super().__init__(request.request_id, deadline, likeness(request))
        self.prepared: Prepared | None = None
        self.whole = request.whole
        self._items = items

    async def put(self, index: int, event: Event) -> None:
        if not self.begun:
            self.begun = True
            assert self.prepared is not None
            await self._items.put(replace(self.prepared, path=tuple(self.path)))
        await self._items.put(ChoiceEvent(index, event))


@dataclass(slots=True)
class _Run:
    """A request's choices on one engine."""

    model: ServedModel
    ticket: Ticket
    allowed: Pass
    stream: _Stream
    token_count: TokenCount
    started: float
    spent: Spending
    dead: set[int] = field(default_factory=set)
    """Processes of the engine that ended under it, by their ids."""

    async def tell(self, index: int, event: Event) -> None:
        self.spent.see(index, event)
        await self.stream.put(index, event)


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


async def _together(choices: Sequence[Coroutine[object, object, None]]) -> None:
    """The first that fails ends the others. One alone, as most requests have, needs no task of its own."""
    if len(choices) == 1:
        await choices[0]
        return
    async with asyncio.TaskGroup() as group:
        for choice in choices:
            group.create_task(choice)


def watch_event_loop() -> asyncio.Task[None]:
    """Has it measured, until it is cancelled."""
    loop = asyncio.get_running_loop()
    metrics.EVENT_LOOP_TASKS.set_function(lambda: len(asyncio.all_tasks(loop)))
    return loop.create_task(_measure_lag())


async def _measure_lag() -> None:
    """What every client would feel if something blocked the loop."""
    while True:
        asleep = time.perf_counter()
        await asyncio.sleep(_LAG_SAMPLE_S)
        metrics.EVENT_LOOP_LAG_SECONDS.observe(max(0.0, time.perf_counter() - asleep - _LAG_SAMPLE_S))


def _opener(config: ModelConfig, engine: Engine | None) -> Callable[[], Engine]:
    return (lambda: open_engine(config)) if engine is None else (lambda: engine)


def _spending(request: ChatRequest, understood: Understood) -> AbstractAsyncContextManager[Spending]:
    """By the key of the request that is being answered."""
    return permits.current().spending(
        understood.token_count.prompt_tokens,
        request.sampling.max_tokens,
        choices=request.n,
        pictures=len(understood.resolved),
    )


# --- pure steps ------------------------------------------------------------------------------------------------------


def _estimate(inputs: Sequence[str | tuple[int, ...]]) -> int:
    """Tokens of texts that nobody has counted yet, about."""
    return sum(len(value) if isinstance(value, tuple) else 1 + len(value) // _CHARACTERS_PER_TOKEN for value in inputs)


def _to_served(understood: Understood) -> tuple[ServedImage, ...]:
    return tuple(
        ServedImage(
            width=r.image.width,
            height=r.image.height,
            served_width=r.image.served_width,
            served_height=r.image.served_height,
            tokens=tokens,
            digest=r.image.digest,
            num_bytes=r.image.num_bytes,
            scaled_to_fit=r.scaled_to_fit,
        )
        for r, tokens in zip(understood.resolved, understood.token_count.image_tokens, strict=True)
    )


def _verify_count(finish: Finish, planned: TokenCount, model: str) -> None:
    """What a client was told of its pictures must be what the engine made of them."""
    if planned.exact and finish.usage.image_tokens != planned.image_tokens:
        metrics.IMAGE_TOKEN_MISMATCHES.labels(model).inc()
        log.error(
            "model %s: pictures of %s tokens by its budget were %s to its engine; one of them has a bug",
            model, planned.image_tokens, finish.usage.image_tokens,
        )  # fmt: skip
