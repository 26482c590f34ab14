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
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import TypeVar

from sightline import metrics, tracing
from sightline.access import permit as permits
from sightline.access.permit import Spending
from sightline.attempts import Way, before_retry, in_turn
from sightline.audio.decoder import AudioDecoder
from sightline.choices import Run, Stream, run_choices
from sightline.config import ModelConfig, Settings
from sightline.draining import Draining
from sightline.engine_request import (
    refuse_work,
    to_engine_request,
)
from sightline.engines import Embeds, Engine, EngineInfo, open_engine
from sightline.errors import (
    EngineError,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
)
from sightline.images.intake import Intake, ReadKept
from sightline.items import Call, Called, Item, Prepared, ServedImage, to_served
from sightline.models import ModelStatus, ServedModel
from sightline.routing import BACKGROUND, Deadline, Pass, Quarantine
from sightline.speech import SpeechItem, written_down
from sightline.telling import Tell, pulled
from sightline.types import (
    AudioRef,
    ChatRequest,
    EmbeddingRequest,
    Embeddings,
    Samples,
    SpeechRequest,
    TokenCount,
)
from sightline.understanding import Understanding, Understood

log = logging.getLogger(__name__)

_CHARACTERS_PER_TOKEN = 4
_LAST_WORDS_S = 1.0
"""Of the time to drain, for telling those whose answers it cuts short."""


T = TypeVar("T")


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
        self._lag = metrics.watch_event_loop()
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

    def info(self, name: str) -> EngineInfo | None:
        """Of the engine of a model, by any of its names; None: it is not loaded, or not for the request's key."""
        model = self._models.get(self._names.get(name, name))
        return model.info if model is not None and self._is_allowed(model) else None

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
        return understood.token_count, to_served(understood)

    async def answer(self, request: ChatRequest, tell: Tell[Item], *, timeout_s: float | None = None) -> None:
        """What becomes of a request. The engine is asked for more when `tell` has returned. `timeout_s`: within how
        many seconds from now; never more than the server's own deadline, which is that of a request without one too.

        Tells `Prepared` when the first event of an engine is there (an error before it can still be a true status),
        then `ChoiceEvent`s interleaved by index, one `Finish` for each choice.

        Raises only `SightlineError`, unless there is a bug. Cancelling it cancels everything that the request holds:
        its place in line, its pictures' decoding, its engine sequences.
        """
        is_durable = request.priority <= BACKGROUND
        under_way = nullcontext() if is_durable else self.draining.under_way()
        with tracing.chat(request), self._observed(request.model), under_way:
            async with self._deadline(timeout_s) as deadline:
                stream = Stream(request, deadline, tell)
                line = self._line(request.model)
                await in_turn(line, stream, lambda model: self._admit_and_run(request, model, stream))

    def generate(self, request: ChatRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Item, None]:
        """As `answer`, for whoever would rather ask for the items: closing it cancels the work."""
        return pulled(lambda tell: self.answer(request, tell, timeout_s=timeout_s))

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

    async def _admit_and_run(self, request: ChatRequest, model: ServedModel, stream: Stream) -> None:
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
                    images=to_served(understood),
                    token_count=understood.token_count,
                    fetch_s=sum(r.fetch_s for r in resolved),
                    decode_s=sum(r.decode_s + r.resize_s for r in resolved),
                    queue_s=queue_s,
                )
                run = Run(model, ticket, allowed, stream, understood.token_count, admitted, spent)
                try:
                    with tracing.span("generate"):
                        await run_choices(run, choices)
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
