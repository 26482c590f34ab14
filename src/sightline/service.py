"""The service: choose a model, admit, understand the pictures, run, try again, observe.

Every surface (HTTP dialects, the command line, batches) calls this; nothing here knows HTTP, and no engine is known by
name. One request, hop by hop:

    generate -> admission (routing.py) -> how large its pictures may be (images/plan.py) -> pictures (images/intake.py)
             -> a slot -> engine -> observe (metrics.py)
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np

from sightline import metrics
from sightline.config import ModelConfig, Settings
from sightline.engines import Engine, EngineInfo, EngineState, Supervised, open_engine
from sightline.errors import (
    DeadlineExceeded,
    EngineError,
    EngineUnavailable,
    ModelNotFound,
    SightlineError,
    UnsupportedFeature,
)
from sightline.images.budget import VisionBudget
from sightline.images.intake import Intake, ResolvedImage
from sightline.images.plan import Room, picture_budget
from sightline.routing import Admission
from sightline.types import ChatRequest, EngineRequest, Event, Finish, Image, Message, Text, TokenCount

log = logging.getLogger(__name__)

_LAG_SAMPLE_S = 0.05
"""How often the event loop's lateness is measured."""
_BUFFERED_EVENTS = 64
"""Events that may wait for a slow reader before its engine stream is no longer pulled."""


@dataclass(frozen=True, slots=True)
class ServedImage:
    """What became of a picture: the client is told (wire contract, section 13)."""

    width: int
    height: int
    served_width: int
    served_height: int
    tokens: int
    digest: str
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


@dataclass(frozen=True, slots=True)
class ModelStatus:
    name: str
    state: EngineState
    engine: str
    created: int
    """Unix seconds when it was configured."""
    info: EngineInfo | None
    """None until the engine has been ready once."""


Item = Prepared | ChoiceEvent


class Service:
    """Life: made -> `start` -> requests -> `close`. Used from one event loop."""

    def __init__(self, settings: Settings, engines: Mapping[str, Engine] | None = None) -> None:
        """`engines` replaces, by model name, the engines that `settings.models` would open (tests, embedding)."""
        self._settings = settings
        self._intake = Intake(settings.images, settings.fetch)
        self._lag: asyncio.Task[None] | None = None
        self._models = {
            config.name: _Model(config, (engines or {}).get(config.name) or open_engine(config))
            for config in settings.models
        }

    async def start(self, *, wait: bool = True) -> None:
        """Starts the decoders and every model; with `wait`, returns when each is ready or has failed.

        A model that fails to load does not stop the others: its requests get `EngineUnavailable`.
        """
        self._lag = asyncio.create_task(_watch_event_loop())
        await self._intake.start()
        for model in self._models.values():
            model.start()
        if wait:
            await asyncio.gather(*(model.loaded() for model in self._models.values()), return_exceptions=True)

    async def close(self) -> None:
        """Ends what runs (streams raise `EngineUnavailable`) and stops every process that was started."""
        await asyncio.gather(*(model.close() for model in self._models.values()))
        await self._intake.close()
        if self._lag is not None:
            self._lag.cancel()

    def models(self) -> tuple[ModelStatus, ...]:
        return tuple(model.status() for model in self._models.values())

    def ready(self) -> bool:
        """Whether every configured model can take a request now."""
        return all(model.state == "ready" for model in self._models.values())

    async def measure(
        self, request: ChatRequest, *, timeout_s: float | None = None
    ) -> tuple[TokenCount, tuple[ServedImage, ...]]:
        """What the prompt would cost, and what would become of its pictures. Nothing runs on the engine.

        Raises what `generate` raises before its first item, but that nobody waits in line for this.
        """
        async with _deadline(timeout_s or self._settings.request_timeout_s):
            model = self._model(request)
            understood = await self._understand(request, model, await model.loaded())
        return understood.token_count, understood.images

    async def generate(self, request: ChatRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Item, None]:
        """Yields `Prepared` when the first event of an engine is there (an error before it can still be a true status),
        then `ChoiceEvent`s interleaved by index, one `Finish` for each choice.

        Raises only `SightlineError`, unless there is a bug. Closing it cancels everything that the request holds: its
        place in line, its pictures' decoding, its engine sequences.

        The work runs in a task of its own, because a consumer may pull from one task and close from another, which a
        deadline scope inside a generator does not survive.
        """
        items: asyncio.Queue[Item | _End] = asyncio.Queue(_BUFFERED_EVENTS)
        work = asyncio.create_task(self._work(request, timeout_s or self._settings.request_timeout_s, items))
        try:
            while not isinstance(item := await items.get(), _End):
                yield item
            if item.error is not None:
                raise item.error
        finally:
            work.cancel()
            await asyncio.wait([work])

    # --- one request ---------------------------------------------------------------------------------------------

    async def _work(self, request: ChatRequest, timeout_s: float, items: asyncio.Queue[Item | _End]) -> None:
        started = time.perf_counter()
        label = request.model if request.model in self._models else "other"
        error: BaseException | None = None
        try:
            async with _deadline(timeout_s):
                try:
                    await self._admit_and_run(request, items)
                except BaseExceptionGroup as group:
                    raise _first(group) from None
        except BaseException as caught:
            error = caught
        metrics.REQUESTS.labels(label, metrics.outcome(error)).inc()
        metrics.REQUEST_SECONDS.labels(label).observe(time.perf_counter() - started)
        if isinstance(error, asyncio.CancelledError):
            raise error
        await items.put(_End(error))

    async def _admit_and_run(self, request: ChatRequest, items: asyncio.Queue[Item | _End]) -> None:
        model = self._model(request)
        async with model.admission.enter(priority=request.priority, choices=request.n) as ticket:
            admitted = time.perf_counter()
            info = await model.loaded()
            understood = await self._understand(request, model, info)
            resolved = understood.resolved
            choices = [_to_engine_request(request, [r.image for r in resolved], index) for index in range(request.n)]
            queued = time.perf_counter()
            await ticket.slot()
            queue_s = time.perf_counter() - queued
            metrics.QUEUE_SECONDS.labels(model.name).observe(queue_s)
            prepared = Prepared(
                engine=info.engine,
                path=(model.replica,),
                images=understood.images,
                token_count=understood.token_count,
                fetch_s=sum(r.fetch_s for r in resolved),
                decode_s=sum(r.decode_s + r.resize_s for r in resolved),
                queue_s=queue_s,
            )
            stream = _Stream(prepared, items, admitted)
            async with asyncio.TaskGroup() as group:
                for index, choice in enumerate(choices):
                    group.create_task(self._run_choice(model, choice, index, stream))

    async def _run_choice(self, model: _Model, request: EngineRequest, index: int, stream: _Stream) -> None:
        """Runs one choice; once more if the engine died before it had said anything."""
        for attempt in (1, 2):
            begun = False
            try:
                async with aclosing(
                    metrics.observe(model.engine.generate(request), model.name, started=stream.started)
                ) as events:
                    async for event in events:
                        begun = True
                        if isinstance(event, Finish):
                            _verify_count(event, stream.token_count, model.name)
                        await stream.put(index, event)
                return
            except EngineError as error:
                if begun or attempt == 2 or not error.retryable:
                    raise
                log.warning("model %s: %s; request %s is tried once more", model.name, error, request.request_id)
                stream.tried_again(model.replica)

    async def _understand(self, request: ChatRequest, model: _Model, info: EngineInfo) -> _Understood:
        """The pictures at the size at which they are served, and what the prompt costs with them.

        The engine counts the text, with the smallest picture in each one's place; what pictures cost is arithmetic.
        Only where pictures of any size might not fit are their sizes looked at before they are decoded.
        """
        _refuse_unsupported(request, info)
        _refuse_too_many_pictures(request, info, model.config, self._settings.images.max_images)
        vision = info.vision
        if vision is None or not request.images:
            return _Understood(await _count_tokens(model.engine, _to_engine_request(request, (), 0)))
        configured = model.config.picture_size, self._settings.picture_size
        budgets = [picture_budget(vision, ref, *configured) for ref in request.images]
        standing_in = _to_engine_request(request, [_smallest(budget) for budget in budgets], 0)
        count = await _count_tokens(model.engine, standing_in)
        room = Room(info.context_length, count.text_tokens, request.sampling.max_tokens, count.exact)
        fit = None if room.holds_any(budgets) else lambda sizes: room.fit(sizes, budgets)
        resolved = await self._intake.resolve(request.images, budgets, tenant=request.tenant, fit=fit)
        tokens = tuple(vision.tokens(r.image.served_width, r.image.served_height) for r in resolved)
        understood = _Understood(TokenCount(room.text + sum(tokens), tokens, count.exact), resolved)
        metrics.IMAGES_SCALED_TO_FIT.labels(model.name).inc(sum(r.scaled_to_fit for r in resolved))
        _log(request, understood)
        return understood

    def _model(self, request: ChatRequest) -> _Model:
        try:
            return self._models[request.model]
        except KeyError:
            raise ModelNotFound(
                f"The model {request.model[:128]!r} does not exist. GET /v1/models lists what is served.", param="model"
            ) from None


class _Model:
    """A served model: its engine, its line of requests, its state."""

    def __init__(self, config: ModelConfig, engine: Engine) -> None:
        self.config = config
        self.name = config.name
        self.engine = engine
        self.replica = f"{config.name}@0"
        self.admission = Admission(config.max_concurrent, config.max_queue)
        self._created = int(time.time())
        self._starting: asyncio.Task[None] | None = None
        metrics.RUNNING.labels(self.name).set_function(lambda: self.admission.running)
        metrics.WAITING.labels(self.name).set_function(lambda: self.admission.waiting)
        if isinstance(engine, Supervised):
            metrics.ENGINE_RESTARTS.labels(self.name).set_function(lambda: engine.restarts)

    def start(self) -> None:
        self._starting = asyncio.create_task(self._start())

    async def _start(self) -> None:
        began = time.perf_counter()
        try:
            await self.engine.start()
        except SightlineError as error:
            log.error("model %s failed to load: %s", self.name, error)
            raise
        log.info("model %s is ready after %.2f s", self.name, time.perf_counter() - began)

    async def loaded(self) -> EngineInfo:
        """Waits until the model is there. Raises `EngineUnavailable` when it failed to load."""
        if self._starting is None:
            raise EngineUnavailable(f"The model {self.name!r} has not been started.")
        if not self._starting.done():
            await asyncio.wait([self._starting])
        if self._starting.cancelled() or self._starting.exception() is not None:
            raise EngineUnavailable(f"The model {self.name!r} failed to load. The server's log says why.")
        return self.engine.info

    async def close(self) -> None:
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        await self.engine.close()

    @property
    def state(self) -> EngineState:
        if self._starting is None:
            return "unloaded"
        if not self._starting.done():
            return "loading"
        if self._starting.cancelled() or self._starting.exception() is not None:
            return "failed"
        return self.engine.state if isinstance(self.engine, Supervised) else "ready"

    def status(self) -> ModelStatus:
        loaded = self._starting is not None and self._starting.done() and self.state != "failed"
        info = self.engine.info if loaded else None
        return ModelStatus(self.name, self.state, self.config.engine, self._created, info)


class _Stream:
    """Puts events in line for the consumer, `Prepared` before the first."""

    def __init__(self, prepared: Prepared, items: asyncio.Queue[Item | _End], started: float) -> None:
        self.started = started
        self.token_count = prepared.token_count
        self._prepared: Prepared | None = prepared
        self._items = items

    def tried_again(self, replica: str) -> None:
        if self._prepared is not None:
            self._prepared = replace(self._prepared, path=(*self._prepared.path, replica))

    async def put(self, index: int, event: Event) -> None:
        if (prepared := self._prepared) is not None:
            self._prepared = None
            await self._items.put(prepared)
        await self._items.put(ChoiceEvent(index, event))


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class _Understood:
    """A request whose pictures have been looked at."""

    token_count: TokenCount
    resolved: tuple[ResolvedImage, ...] = ()

    @property
    def images(self) -> tuple[ServedImage, ...]:
        return tuple(
            ServedImage(
                width=r.image.width,
                height=r.image.height,
                served_width=r.image.served_width,
                served_height=r.image.served_height,
                tokens=tokens,
                digest=r.image.digest,
                scaled_to_fit=r.scaled_to_fit,
            )
            for r, tokens in zip(self.resolved, self.token_count.image_tokens, strict=True)
        )


@asynccontextmanager
async def _deadline(timeout_s: float) -> AsyncIterator[None]:
    """Raises `DeadlineExceeded` in place of what is inside when its time is over."""
    try:
        async with asyncio.timeout(timeout_s) as deadline:
            yield
    except TimeoutError:
        if not deadline.expired():
            raise
        raise DeadlineExceeded(f"The request took longer than its deadline of {timeout_s:g} s.") from None


async def _watch_event_loop() -> None:
    """Measures what every client would feel if something blocked the loop."""
    while True:
        asleep = time.perf_counter()
        await asyncio.sleep(_LAG_SAMPLE_S)
        metrics.EVENT_LOOP_LAG_SECONDS.observe(max(0.0, time.perf_counter() - asleep - _LAG_SAMPLE_S))


# --- pure steps ------------------------------------------------------------------------------------------------------


def _to_engine_request(request: ChatRequest, images: Sequence[Image], index: int) -> EngineRequest:
    """One choice of a request, with pictures in place of references to them, in the same order.

    Choices differ by seed: the client's, plus the choice's index.
    """
    pictures = iter(images)

    def part(content: object) -> Text | Image:
        return content if isinstance(content, Text) else next(pictures)

    messages = tuple(
        Message[Image](m.role, tuple(part(p) for p in m.content), m.tool_calls, m.tool_call_id, m.name)
        for m in request.messages
    )
    sampling = request.sampling
    if sampling.seed is not None and index:
        sampling = replace(sampling, seed=sampling.seed + index)
    return EngineRequest(
        request_id=request.request_id if request.n == 1 else f"{request.request_id}-{index}",
        model=request.model,
        messages=messages,
        sampling=sampling,
        tools=request.tools,
        tool_choice=request.tool_choice,
        response_format=request.response_format,
        priority=request.priority,
        tenant=request.tenant,
    )


def _refuse_unsupported(request: ChatRequest, info: EngineInfo) -> None:
    """Raises `UnsupportedFeature` for what this engine would have to drop: nothing is dropped silently."""
    pictures = request.images
    if pictures and info.vision is None:
        raise UnsupportedFeature(
            f"The model {request.model!r} cannot see pictures. Send text only, or choose a model with vision.",
            param=pictures[0].param,
        )
    s = request.sampling
    wanted = {
        "seed": s.seed is not None,
        "top_k": s.top_k != 0,
        "min_p": s.min_p != 0.0,
        "presence_penalty": s.presence_penalty != 0.0,
        "frequency_penalty": s.frequency_penalty != 0.0,
        "repetition_penalty": s.repetition_penalty != 1.0,
        "logit_bias": bool(s.logit_bias),
        "logprobs": s.logprobs is not None,
        "min_tokens": s.min_tokens != 0,
        "ignore_eos": s.ignore_eos,
        "stop_token_ids": bool(s.stop_token_ids),
        "tools": bool(request.tools) and request.tool_choice.mode != "none",
        "response_format": request.response_format.kind != "text",
    }
    for param, is_wanted in wanted.items():
        feature = {"response_format": request.response_format.kind}.get(param, param)
        feature = "penalties" if feature.endswith("_penalty") else feature
        if is_wanted and feature not in info.features:
            raise UnsupportedFeature(
                f"The model {request.model!r} runs on the engine {info.engine!r}, which does not support {param}.",
                param=param,
            )


def _refuse_too_many_pictures(request: ChatRequest, info: EngineInfo, config: ModelConfig, everywhere: int) -> None:
    """Raises `UnsupportedFeature` for more pictures than the server, the model's configuration or its engine allows."""
    pictures = request.images
    most = min(limit for limit in (everywhere, config.max_images, info.max_images) if limit is not None)
    if len(pictures) > most:
        raise UnsupportedFeature(
            f"The model {request.model!r} takes at most {most} pictures in a request; {len(pictures)} were sent.",
            param=pictures[most].param,
        )


def _smallest(budget: VisionBudget) -> Image:
    """Stands in for a picture where only tokens are counted. Takes no memory: all its pixels are one."""
    served = budget.serve(1, 1)
    pixels = np.broadcast_to(np.uint8(0), (served.height, served.width, 3))
    return Image(pixels, digest="", width=1, height=1, media_type="image/png", num_bytes=0)


def _verify_count(finish: Finish, planned: TokenCount, model: str) -> None:
    """What a client was told of its pictures must be what the engine made of them."""
    if planned.exact and finish.usage.image_tokens != planned.image_tokens:
        metrics.IMAGE_TOKEN_MISMATCHES.labels(model).inc()
        log.error(
            "model %s: pictures of %s tokens by its budget were %s to its engine; one of them has a bug",
            model, planned.image_tokens, finish.usage.image_tokens,
        )  # fmt: skip


def _log(request: ChatRequest, understood: _Understood) -> None:
    """One line a request: digests, types, sizes, tokens and times; never content, and no part of a URL."""
    if not log.isEnabledFor(logging.INFO):
        return
    pictures = [
        f"{r.image.digest} {r.image.media_type} {r.image.num_bytes} B {s.width}x{s.height} as "
        f"{s.served_width}x{s.served_height}{' (to fit)' if s.scaled_to_fit else ''}, {s.tokens} tokens, "
        f"{r.fetch_s + r.decode_s + r.resize_s:.4f} s"
        for r, s in zip(understood.resolved, understood.images, strict=True)
    ]
    log.info("request %s: %s", request.request_id, "; ".join(pictures))


async def _count_tokens(engine: Engine, request: EngineRequest) -> TokenCount:
    """Counting has no effects, so an engine that dies under it is simply asked again once it is back."""
    try:
        return await engine.count_tokens(request)
    except EngineError:
        return await engine.count_tokens(request)


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a group of choices: ours before others, the first before later ones."""
    errors = list(_leaves(group))
    return next((e for e in errors if isinstance(e, SightlineError)), errors[0])
