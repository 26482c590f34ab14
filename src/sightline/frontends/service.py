"""The front end's side: the `Service` that its dialects ask, which is the core's.

Nothing here knows how frames travel (`link.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, nullcontext
from typing import Any

from sightline import metrics, tracing
from sightline.access import permit as permits
from sightline.access.limits import Standing
from sightline.access.permit import Permit
from sightline.config import Settings
from sightline.draining import Draining
from sightline.engines import EngineInfo
from sightline.engines.worker.pictures import share
from sightline.errors import (
    EngineError,
    EngineFailed,
    EngineUnavailable,
    Forbidden,
    InvalidRequest,
    ModelNotFound,
    SightlineError,
)
from sightline.frontends import frames, requests
from sightline.frontends.link import Carrier
from sightline.frontends.totals import to_families
from sightline.images.intake import Intake, ReadKept, ResolvedImage
from sightline.interprocess import laid_out
from sightline.items import Called, ChoiceEvent, Item, ServedImage
from sightline.metrics import watch_event_loop
from sightline.models import ModelStatus
from sightline.routing import BACKGROUND
from sightline.speech import SpeechItem
from sightline.telling import Tell, told
from sightline.types import ChatRequest, EmbeddingRequest, Embeddings, SpeechRequest, TokenCount

log = logging.getLogger(__name__)

_COUNTS_EVERY_S = 1.0
_FIRST_WORD_S = 30.0
"""Within which the core answers a front end that joins."""
_LAST_WORDS_S = 0.5
_GONE = "The part of the server that runs models has ended. It is being started again."


class FrontService:
    """As `Service`, whose public methods it has (a test compares the two), but that models are run by the core. This
    front end looks at its clients' pictures itself.

    When the core is lost, what is under way fails, and so does what comes later.
    """

    def __init__(self, settings: Settings, link: Carrier[frames.ToFrontEnd], *, lost: Callable[[], None]) -> None:
        """`lost` is called when the core is no more."""
        self.draining = Draining()
        self._settings = settings
        self._link = link
        self._on_lost = lost
        self._intake = Intake(settings.images, settings.fetch)
        self._names = {alias: model.name for model in settings.models for alias in model.aliases}
        self._status = frames.Status((), False)
        self._greeted = asyncio.Event()
        self._is_lost = False
        self._numbers = itertools.count(1)
        self._streams: dict[int, _Stream] = {}
        self._resolving: dict[int, asyncio.Task[None]] = {}
        self._beside: list[asyncio.Task[None]] = []

    # --- life ----------------------------------------------------------------------------------------------------

    def keep_files(self, read: ReadKept) -> None:
        self._intake.read_kept = read

    async def start(self, *, wait: bool = True) -> None:
        """As `Service.start`, but that models are started by the core and not waited for. Raises `EngineUnavailable`
        where there is no core."""
        await self._intake.start()
        self._link.open(self._receive, self._lose)
        try:
            async with asyncio.timeout(_FIRST_WORD_S):
                await self._greeted.wait()
        except TimeoutError:
            raise EngineUnavailable(_GONE) from None
        self._beside = [asyncio.create_task(self._tell_counts()), watch_event_loop()]

    async def drain(self) -> None:
        """As `Service.drain`, of what this front end has taken."""
        self.draining.begin()
        try:
            async with asyncio.timeout(max(0.0, self._settings.drain_s - _LAST_WORDS_S)):
                await self.draining.idle()
        except TimeoutError:
            log.warning("answers under way are cut short: draining has taken %g s", self._settings.drain_s)
            self._end_all()

    async def close(self) -> None:
        for task in self._beside:
            task.cancel()
        if not self._is_lost:
            self._tell(0)
            await self._link.flushed(_LAST_WORDS_S)
        self._link.close()
        self._end_all()
        for task in list(self._resolving.values()):
            task.cancel()
        await self._intake.close()

    # --- what is known of models ---------------------------------------------------------------------------------

    def models(self) -> tuple[ModelStatus, ...]:
        return tuple(status for status in self._status.models if self._is_allowed(status.name))

    def info(self, name: str) -> EngineInfo | None:
        return next((status.info for status in self.models() if status.name == name), None)

    def refuse_foreign(self, name: str) -> None:
        if any(status.name == name for status in self._status.models) and not self._is_allowed(name):
            raise Forbidden(
                f"This API key may not use the model {name[:128]!r}. GET /v1/models lists those that it may.",
                param="model",
            )

    def _is_allowed(self, name: str) -> bool:
        return permits.current().allows(self._names.get(name, name), self._names)

    def ready(self) -> bool:
        return self._status.ready and not self._is_lost and not self.draining.begun

    async def load(self, name: str) -> None:
        by = _asker()
        async with aclosing(self._stream(lambda stream: frames.Load(stream, by, name))) as nothing:
            async for _ in nothing:
                pass

    def unload(self, name: str) -> bool:
        if not permits.current().is_admin:
            raise Forbidden("This API key may not unload models, which others use. An admin key may.")
        for model in self._settings.models:
            if name == model.name or name in model.aliases:
                self._link.send(frames.Unload(model.name))
                return model.load == "demand" or model.idle_unload_s is not None
        raise ModelNotFound(
            f"The model {name[:128]!r} does not exist. GET /v1/models lists what is served.", param="model"
        )

    # --- requests ------------------------------------------------------------------------------------------------

    async def measure(
        self, request: ChatRequest, *, timeout_s: float | None = None
    ) -> tuple[TokenCount, tuple[ServedImage, ...]]:
        wire, by = requests.to_wire_chat(request), _asker()
        measured = await self._ask(lambda stream: frames.Measure(stream, by, wire, timeout_s), request)
        return measured.count, measured.images

    async def generate(self, request: ChatRequest, *, timeout_s: float | None = None) -> AsyncGenerator[Item, None]:
        wire, by = requests.to_wire_chat(request), _asker()
        is_durable = request.priority <= BACKGROUND
        async with aclosing(
            self._stream(lambda stream: frames.Generate(stream, by, wire, timeout_s), request, counts=not is_durable)
        ) as came:
            async for frame in came:
                if isinstance(frame, frames.Begun):
                    _stands(frame.standing)
                    yield frame.prepared
                else:
                    yield ChoiceEvent(frame.index, frame.event)

    async def answer(self, request: ChatRequest, tell: Tell[Item], *, timeout_s: float | None = None) -> None:
        await told(self.generate(request, timeout_s=timeout_s))(tell)

    async def embed(self, request: EmbeddingRequest, *, timeout_s: float | None = None) -> Called[Embeddings]:
        by = _asker()
        embedded = await self._ask(lambda stream: frames.Embed(stream, by, request, timeout_s))
        _stands(embedded.standing)
        return frames.from_embedded(embedded)

    async def transcribe(
        self, request: SpeechRequest, *, timeout_s: float | None = None
    ) -> AsyncGenerator[SpeechItem, None]:
        wire, by = requests.to_wire_speech(request), _asker()
        file = memoryview(request.audio.file)
        fd = await asyncio.to_thread(_share, [file], [0]) if file.nbytes else None

        def frame(stream: int) -> frames.Transcribe:
            return frames.Transcribe(stream, by, wire, timeout_s, file.nbytes)

        async with aclosing(self._stream(frame, fd=fd)) as came:
            async for heard in came:
                yield heard.item

    # --- what else the core is asked for -------------------------------------------------------------------------

    async def call(self, method: str, arguments: bytes) -> bytes:
        """As `calls.CallFar`."""
        answered = await self._ask(lambda stream: frames.Call(stream, method, arguments))
        value: bytes = answered.value
        return value

    def settle(self, frame: frames.Settle) -> None:
        self._link.send(frame)

    async def forward(self, frame: Callable[[int, frames.Asker], frames.ToCore]) -> AsyncGenerator[Any, None]:
        """As `forward.Ask`."""
        by = _asker()
        async with aclosing(self._stream(lambda stream: frame(stream, by))) as replies:
            async for reply in replies:
                yield reply

    async def page(self, frame: Callable[[int], frames.Page]) -> AsyncGenerator[Any, None]:
        """The page's answer to a request. It keeps no server from ending: an open page asks for as long as it is."""
        async with aclosing(self._stream(frame, counts=False)) as replies:
            async for reply in replies:
                yield reply

    # --- streams -------------------------------------------------------------------------------------------------

    async def _ask(self, frame: Callable[[int], frames.ToCore], request: ChatRequest | None = None) -> Any:
        """The one frame that comes back."""
        async with aclosing(self._stream(frame, request)) as came:
            answers = [answer async for answer in came]
        return answers[0]

    async def _stream(
        self,
        frame: Callable[[int], frames.ToCore],
        request: ChatRequest | None = None,
        *,
        fd: int | None = None,
        counts: bool = True,
    ) -> AsyncGenerator[Any, None]:
        """The frames that come back for one of this number. Closing it ends the work in the core."""
        if self._is_lost:
            raise EngineUnavailable(_GONE)
        number = next(self._numbers)
        stream = self._streams[number] = _Stream(request, self._intake)
        try:
            with self.draining.under_way() if counts else nullcontext():
                self._send(frame(number), fd)
                for taken in itertools.count(1):
                    came = await stream.take()
                    if came is None:
                        return
                    if taken % (frames.WINDOW // 2) == 0:
                        self._send(frames.Credit(number, frames.WINDOW // 2))
                    yield came
        finally:
            del self._streams[number]
            if not stream.ended:
                self._send(frames.Cancel(number))

    def _send(self, frame: frames.ToCore, fd: int | None = None) -> None:
        try:
            self._link.send(frame, fd)
        except (ValueError, TypeError, OverflowError):  # e.g. an integer over 64 bits, somewhere in a tool's schema
            raise InvalidRequest("The request holds a value that cannot be passed to the engine.") from None

    def _receive(self, frame: frames.ToFrontEnd, fd: int | None) -> None:
        """What is for a stream that is no more is dropped: it was cancelled, and its last frames crossed the word."""
        match frame:
            case frames.Status():
                self._status = frame
                self._greeted.set()
            case frames.Resolve(number):
                task = self._resolving[number] = asyncio.create_task(self._resolve(frame))
                task.add_done_callback(lambda _: self._resolving.pop(number))
            case frames.GiveUp(number):
                if (resolving := self._resolving.get(number)) is not None:
                    resolving.cancel()
            case frames.Count(number):
                self._tell(number)
            case frames.Ended(number):
                if (stream := self._streams.get(number)) is not None:
                    stream.end(None)
            case frames.Failed(number, error):
                if (stream := self._streams.get(number)) is not None:
                    stream.end(_BUG if error is None else frames.from_wire_error(error))
            case _:
                if (stream := self._streams.get(frame.stream)) is not None:
                    stream.put(frame)

    def _lose(self) -> None:
        self._is_lost = True
        self._status = frames.Status(self._status.models, False)
        self._end_all()
        self._on_lost()

    def _end_all(self) -> None:
        for stream in self._streams.values():
            stream.break_off()

    # --- what the core asks for ----------------------------------------------------------------------------------

    async def _resolve(self, frame: frames.Resolve) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None or stream.request is None:
            return  # the client has left, and the core is about to hear of it
        request = stream.request
        try:
            with tracing.continued(frame.trace):
                resolved = await self._intake.resolve(
                    request.images, frame.budgets, tenant=request.tenant, room=frame.room
                )
            arrays = [r.image.pixels for r in resolved]
            offsets, size = laid_out(arrays)
            fd = await asyncio.to_thread(_share, arrays, offsets)
            self._link.send(frames.Pictures(frame.number, tuple(map(_to_wire, resolved, offsets)), size), fd)
        except SightlineError as error:
            self._link.send(frames.NoPictures(frame.number, frames.to_wire_error(error)))
        except Exception:
            log.exception("request %s: its pictures met a bug", request.request_id)
            self._link.send(frames.NoPictures(frame.number, None))

    def _tell(self, number: int) -> None:
        self._link.send(frames.Counted(number, to_families(metrics.REGISTRY)))

    async def _tell_counts(self) -> None:
        while True:
            await asyncio.sleep(_COUNTS_EVERY_S)
            self._tell(0)


def _asker() -> frames.Asker:
    """On whose behalf the request that is being answered asks."""
    permit = permits.current()
    return frames.Asker(permit.key_id, permit.patient, tracing.outgoing())


def _stands(standing: Standing) -> None:
    """The headers of the answer will tell."""
    permit = permits.current()
    if isinstance(permit, Permit):
        permit.standing = standing


def _to_wire(resolved: ResolvedImage, offset: int) -> frames.Resolved:
    image = resolved.image
    picture = frames.Picture(
        offset, image.served_height, image.served_width, image.digest, image.width, image.height, image.media_type,
        image.num_bytes,
    )  # fmt: skip
    return frames.Resolved(
        picture, resolved.fetch_s, resolved.decode_s, resolved.resize_s, resolved.scaled_to_fit
    )  # fmt: skip


def _share(arrays: Sequence[Any], offsets: Sequence[int]) -> int:
    """As `share`. Raises `EngineUnavailable`."""
    try:
        return share(arrays, offsets)
    except (OSError, MemoryError):
        log.error("no shared memory for a request's pictures or sound")
        raise EngineUnavailable("There is no memory for the request right now.") from None


class _Stream:
    """What came back of one piece of work, on its way to its consumer."""

    def __init__(self, request: ChatRequest | None, intake: Intake) -> None:
        self.request = request
        """Whose pictures the core may ask for."""
        self.ended = False
        """Nothing more will come from the core."""
        self._frames: asyncio.Queue[Any] = asyncio.Queue()  # bounded by frames.WINDOW
        self._begun = False

    async def take(self) -> Any:
        """The next frame; None at the end. Raises what it failed with."""
        frame = await self._frames.get()
        if isinstance(frame, Exception):
            raise frame
        self._begun = True
        return frame

    def put(self, frame: Any) -> None:
        if not self.ended:
            self._frames.put_nowait(frame)

    def end(self, error: Exception | None) -> None:
        if not self.ended:
            self.ended = True
            self._frames.put_nowait(error)

    def break_off(self) -> None:
        """The core is gone. A stream of which nothing has been taken can be run again elsewhere; another one fails
        after what it has said."""
        error: EngineError
        if self._begun:
            error = EngineFailed("The server's part that runs models ended while it answered.")
        else:
            error = EngineUnavailable(_GONE)
            while not self._frames.empty() and not self.ended:
                self._frames.get_nowait()
        self.end(error)


_BUG = RuntimeError("the core met a bug, of which its log tells")
