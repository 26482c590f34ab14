"""The core's side: one `Service`, asked by several front ends.

    Core         who has joined; what all of them share: status, counts
    _FrontEnd    one of them: its work under way, as tasks of its own

Nothing here knows how frames travel (`link.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import mmap
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.types import ASGIApp

from sightline import metrics, tracing
from sightline.access import permit as permits
from sightline.access.gate import Gate
from sightline.access.limits import Cost, Standing, Verdict
from sightline.access.metering import Metering
from sightline.access.permit import Permit, acting_by
from sightline.engines.worker.pictures import receive as receive_pixels
from sightline.errors import EngineUnavailable, SightlineError
from sightline.frontends import forward, frames, page, requests
from sightline.frontends.calls import offered
from sightline.frontends.lent import LentMeter
from sightline.frontends.link import Carrier
from sightline.frontends.totals import Totals, to_families
from sightline.images.budget import VisionBudget
from sightline.images.intake import Elsewhere, ResolvedImage
from sightline.images.plan import Room
from sightline.items import Item
from sightline.service import Service
from sightline.speech import SpeechItem
from sightline.telling import Source, told
from sightline.types import Image

log = logging.getLogger(__name__)

Calls = Mapping[str, Callable[[bytes], Awaitable[bytes]]]
Objects = Mapping[str, tuple[type, object]]
"""As `calls.offered`."""


SendReply = Callable[[forward.Reply], Awaitable[None]]


class Counts(Protocol):
    async def all(self) -> tuple[frames.Family, ...]:
        """Of all processes of the server together, as of now."""
        ...


_STATUS_EVERY_S = 0.05
"""How old a front end's word on models may be."""
_COUNT_WITHIN_S = 1.0
"""A front end that is too busy to tell its counts is taken at its last word."""


class Core:
    """Life: made -> `start` -> front ends `join` and leave -> `close`. The service is started and closed by others."""

    def __init__(
        self, service: Service, app: ASGIApp, gate: Gate, objects: Objects, page: ASGIApp | None = None
    ) -> None:
        """`app`: answers what front ends forward; `gate`: knows the keys by which they ask; `objects`: what else they
        may call; `page`: what is at `/ui`."""
        self._totals = Totals()
        self._service = service
        self._app = app
        self._gate = gate
        self._objects = objects
        self._page = page
        self._front_ends: set[_FrontEnd] = set()
        self._status = frames.Status((), False)
        self._telling: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._telling = asyncio.create_task(self._tell_status())

    async def close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
        for front_end in list(self._front_ends):
            front_end.close()
            front_end.link.close()

    def join(self, link: Carrier[frames.ToCore]) -> None:
        """From now on its frames are answered, until it is lost: then all its work is cancelled."""
        meter = LentMeter(self._gate.metering)
        calls = offered({"counts": (Counts, self), "metering": (Metering, meter), **self._objects})
        front_end = _FrontEnd(self._service, self._app, self._page, self._gate, meter, calls, self._totals, link)

        def lost() -> None:
            self._front_ends.discard(front_end)
            front_end.close()
            self._totals.retire(front_end)

        link.open(front_end.receive, lost)
        link.send(self._now())
        self._front_ends.add(front_end)

    async def all(self) -> tuple[frames.Family, ...]:
        """As `Counts`."""
        if self._front_ends:
            asking = [asyncio.create_task(front_end.count()) for front_end in self._front_ends]
            await asyncio.wait(asking, timeout=_COUNT_WITHIN_S)
            for task in asking:
                task.cancel()
        return self._totals.all(to_families(metrics.REGISTRY))

    def _now(self) -> frames.Status:
        return frames.Status(self._service.models(), self._service.ready())

    async def _tell_status(self) -> None:
        """By looking, because what changes it is in many places, and looking costs next to nothing."""
        while True:
            if (now := self._now()) != self._status:
                self._status = now
                for front_end in self._front_ends:
                    front_end.link.send(now)
            await asyncio.sleep(_STATUS_EVERY_S)


class _FrontEnd:
    """Everything runs on the event loop."""

    def __init__(
        self,
        service: Service,
        app: ASGIApp,
        page: ASGIApp | None,
        gate: Gate,
        meter: LentMeter,
        calls: Calls,
        totals: Totals,
        link: Carrier[frames.ToCore],
    ) -> None:
        self.link = link
        self._service = service
        self._app = app
        self._page = page
        self._gate = gate
        self._meter = meter
        self._calls = calls
        self._totals = totals
        self._numbers = itertools.count(1)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._credits: dict[int, asyncio.Semaphore] = {}
        self._asked: dict[int, asyncio.Future[Any]] = {}
        """Of it, by us."""

    def close(self) -> None:
        """Cancels what is under way: each frees its slot, and gives back what its key has not used."""
        self._meter.close()
        for task in self._tasks.values():
            task.cancel()
        for asked in self._asked.values():
            asked.cancel()

    def receive(self, frame: frames.ToCore, fd: int | None) -> None:
        match frame:
            case frames.Credit(stream, events):
                if (credit := self._credits.get(stream)) is not None:
                    for _ in range(events):
                        credit.release()
            case frames.Generate(stream):
                self._begin(stream, self._generate(frame), frame.by)
            case frames.Pictures(number):
                self._take_pictures(frame, fd)
            case frames.NoPictures(number, error):
                problem = _BUG if error is None else frames.from_wire_error(error)
                if (asked := self._asked.get(number)) is not None and not asked.done():
                    asked.set_exception(problem)
            case frames.Counted(number, families):
                self._totals.put(self, families)
                self._answer(number, None)
            case frames.Cancel(stream):
                if (task := self._tasks.get(stream)) is not None:
                    task.cancel()
            case frames.Measure(stream):
                self._begin(stream, self._measure(frame), frame.by)
            case frames.Embed(stream):
                self._begin(stream, self._embed(frame), frame.by)
            case frames.Transcribe(stream):
                held = ExitStack()
                if fd is not None:
                    held.callback(os.close, fd)
                self._begin(stream, self._transcribe(frame, fd, held), frame.by)
                self._tasks[stream].add_done_callback(lambda _: held.close())
            case frames.Call(stream):
                self._begin(stream, self._call(frame), frames.Asker())
            case frames.Forward(stream):
                self._begin(stream, self._forward(frame), frame.by)
            case frames.Page(stream):
                self._begin(stream, self._show(frame), frames.Asker())
            case frames.Load(stream, _, model):
                self._begin(stream, self._service.load(model), frame.by)
            case frames.Settle(key_id, day, reserved, used):
                self._meter.settle(key_id, day, reserved, used)
            case frames.Unload(model):
                with suppress(SightlineError):
                    self._service.unload(model)

    def _begin(self, stream: int, work: Coroutine[Any, Any, None], by: frames.Asker) -> None:
        task = self._tasks[stream] = asyncio.create_task(self._told(stream, work, by))
        task.add_done_callback(lambda _: self._tasks.pop(stream))

    async def _told(self, stream: int, work: Coroutine[Any, Any, None], by: frames.Asker) -> None:
        """Ends a stream's frames with what became of it."""
        try:
            with closing(work), tracing.continued(by.trace), acting_by(self._to_permit(by)):
                await work
        except SightlineError as error:
            self._send(frames.Failed(stream, frames.to_wire_error(error)))
        except Exception:
            log.exception("the core met a bug")
            self._send(frames.Failed(stream, None))
        else:
            self._send(frames.Ended(stream))

    def _to_permit(self, by: frames.Asker) -> Permit | None:
        """What the key may use and spend; that it may ask at all was decided where the request came in. Raises
        `Unauthenticated` for one that was revoked just now."""
        if not by.key_id:
            return None
        return Permit(
            self._gate.get(by.key_id), self._gate.metering, Cost(), Verdict(Standing(), 0), patient=by.patient
        )  # fmt: skip

    def _send(self, frame: frames.ToFrontEnd) -> None:
        self.link.send(frame)

    def _answer(self, number: int, value: object) -> None:
        if (asked := self._asked.get(number)) is not None and not asked.done():
            asked.set_result(value)

    # --- what front ends ask for ---------------------------------------------------------------------------------

    async def _generate(self, frame: frames.Generate) -> None:
        request = requests.from_wire_chat(frame.request, self._to_sources(frame.stream))
        await self._stream(frame.stream, lambda tell: self._service.answer(request, tell, timeout_s=frame.timeout_s))

    async def _stream(self, stream: int, source: Source[Any]) -> None:
        """As fast as they are taken."""
        credit = self._credits[stream] = asyncio.Semaphore(frames.WINDOW)

        async def tell(item: Item | SpeechItem) -> None:
            await credit.acquire()
            self._send(frames.to_frame(stream, item, _standing))

        try:
            await source(tell)
        finally:
            del self._credits[stream]

    async def _measure(self, frame: frames.Measure) -> None:
        request = requests.from_wire_chat(frame.request, self._to_sources(frame.stream))
        count, images = await self._service.measure(request, timeout_s=frame.timeout_s)
        self._send(frames.Measured(frame.stream, count, images))

    async def _embed(self, frame: frames.Embed) -> None:
        called = await self._service.embed(frame.request, timeout_s=frame.timeout_s)
        self._send(frames.to_embedded(frame.stream, called, _standing()))

    async def _transcribe(self, frame: frames.Transcribe, fd: int | None, held: ExitStack) -> None:
        """`held` closes the descriptor where this is never begun."""
        file = b""
        if fd is not None:
            held.pop_all()
            file = await asyncio.shield(asyncio.to_thread(_read, fd, frame.request.num_bytes))  # or nobody closed it
        request = requests.from_wire_speech(frame.request, file)
        await self._stream(frame.stream, told(self._service.transcribe(request, timeout_s=frame.timeout_s)))

    async def _call(self, frame: frames.Call) -> None:
        self._send(frames.Answered(frame.stream, await self._calls[frame.method](frame.arguments)))

    async def _forward(self, frame: frames.Forward) -> None:
        await self._reply(frame.stream, lambda send: forward.answer(self._app, frame, send))

    async def _show(self, frame: frames.Page) -> None:
        shown = self._page
        assert shown is not None, "the front end has the same settings"
        await self._reply(frame.stream, lambda send: page.answer(shown, frame, send))

    async def _reply(self, stream: int, answer: Callable[[SendReply], Awaitable[None]]) -> None:
        """As fast as it is taken."""
        credit = self._credits[stream] = asyncio.Semaphore(frames.WINDOW)

        async def send(reply: forward.Reply) -> None:
            await credit.acquire()
            self._send(reply)

        try:
            await answer(send)
        finally:
            del self._credits[stream]

    # --- what is asked of front ends -----------------------------------------------------------------------------

    async def ask(self, frame: Callable[[int], frames.ToFrontEnd], *, give_up: bool = False) -> Any:
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._send(frame(number))
            return await asked
        finally:
            del self._asked[number]
            if give_up and (asked.cancelled() or not asked.done()):
                self._send(frames.GiveUp(number))

    async def count(self) -> None:
        await self.ask(frames.Count)

    def _to_sources(self, stream: int) -> Callable[[int, requests.Ref], str]:
        holder = _Pictures(self, stream)

        def source(place: int, ref: requests.Ref) -> str:
            elsewhere = Elsewhere(ref.telling)
            elsewhere.holder = holder
            return elsewhere

        return source

    def _take_pictures(self, frame: frames.Pictures, fd: int | None) -> None:
        try:
            pixels = None if fd is None else receive_pixels(fd, frame.shared_bytes)
        except OSError as error:
            log.error("a front end's pictures cannot be mapped: %s", error)
            if (asked := self._asked.get(frame.number)) is not None and not asked.done():
                asked.set_exception(EngineUnavailable("There is no memory for the request right now."))
            return
        assert pixels is not None, "pixels come with every picture"
        resolved = tuple(
            ResolvedImage(
                Image(
                    pixels(r.picture),
                    r.picture.digest,
                    r.picture.width,
                    r.picture.height,
                    r.picture.media_type,
                    r.picture.num_bytes,
                ),
                r.fetch_s,
                r.decode_s,
                r.resize_s,
                r.scaled_to_fit,
            )
            for r in frame.pictures
        )
        self._answer(frame.number, resolved)


@dataclass(frozen=True, slots=True)
class _Pictures:
    """Of one request: its front end has them."""

    front_end: _FrontEnd
    stream: int

    async def resolve(self, budgets: Sequence[VisionBudget], room: Room | None) -> tuple[ResolvedImage, ...]:
        trace = tracing.outgoing()
        resolved: tuple[ResolvedImage, ...] = await self.front_end.ask(
            lambda number: frames.Resolve(number, self.stream, tuple(budgets), room, trace), give_up=True
        )
        return resolved


def _standing() -> Standing:
    """Of the key by which is being asked."""
    return permits.current().standing


_BUG = RuntimeError("a front end met a bug, of which its log tells")


def _read(fd: int, size: int) -> bytes:
    """What lies in shared memory; closes the descriptor."""
    try:
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as mapping:
            return mapping[:]
    finally:
        os.close(fd)
