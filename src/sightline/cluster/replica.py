"""A replica of a model, as Ray runs it: hosts any engine, in its child process as ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Mapping
from contextlib import aclosing
from typing import Any

from sightline.cluster import parcels
from sightline.cluster.plan import to_settings
from sightline.cluster.post import Outbox, Unreachable
from sightline.cluster.refit import refit, rule_of
from sightline.cluster.window import Ahead
from sightline.config import ModelConfig
from sightline.engines import Embeds, Engine, Supervised, Transcribes, open_engine
from sightline.errors import EngineFailed, EngineUnavailable, SightlineError, UnsupportedFeature
from sightline.types import EngineRequest, Event, TranscriptionEvent

log = logging.getLogger(__name__)


class EngineReplica:
    """What Ray calls it with and gets back are parcels. Nothing is raised but while it starts: errors are answers, so
    that they keep their class, and none of ours is pickled."""

    async def __init__(self, values: Mapping[str, Any], name: str) -> None:  # type: ignore[misc]  # Ray awaits it
        """Returns when the model `name` of these settings is ready. Raises as `Engine.start`, and then Ray tries again.

        `values` still has `${NAME}` where this machine's environment is to fill in.
        """
        self._engine: Engine | None = None
        self._outstanding: dict[object, int] = {}
        """Tokens that each request may still cost."""
        self._outbox = Outbox()
        self._ahead: dict[str, Ahead] = {}
        """Of the answers under way, by the names that the ingress gave them."""
        config = next(model for model in to_settings(values).models if model.name == name)
        engine = self._make(config)
        await engine.start()
        self._engine = engine

    def _make(self, config: ModelConfig) -> Engine:
        return open_engine(config)

    async def check_health(self) -> None:
        """Ray replaces a replica for which this raises. An engine whose process is started again is well; one that has
        been given up is not."""
        engine = self._started()
        if isinstance(engine, Supervised) and engine.state == "failed":
            raise EngineUnavailable("The engine is not running, and has been given up.")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray's autoscaling policies are told of this replica."""
        return {"outstanding_tokens": float(sum(self._outstanding.values()))}

    async def info(self) -> bytes:
        return parcels.from_info(self._started().info)

    async def count(self, parcel: bytes, *, affinity: str | None, sized_by: str) -> bytes:
        """`affinity`: for whoever chooses the replica. `sized_by`: the `rule_of` the pictures' sizes."""

        async def count() -> bytes:
            request = self._fitting(parcels.to_count(parcel), sized_by)
            return parcels.from_counted(await self._started().count_tokens(request))

        return await _answer(count())

    async def embed(self, parcel: bytes) -> bytes:
        async def embed() -> bytes:
            engine = self._started()
            if not isinstance(engine, Embeds):
                raise UnsupportedFeature("The engine gives no embeddings.", param="model")
            return parcels.from_embeddings(await engine.embed(parcels.to_embedding(parcel)))

        return await _answer(embed())

    async def generate(
        self, parcel: bytes, *, affinity: str | None, tokens: int, sized_by: str, answer: str | None
    ) -> AsyncGenerator[bytes, None]:
        """`tokens`: that it may cost, prompt and answer. `sized_by`: as in `count`. `answer`: its name, under which
        `read` is told how far it has been read; None: nobody tells, and it waits for nobody. Closed or cancelled, it
        frees the sequence."""
        this = object()
        self._outstanding[this] = tokens
        try:
            request = parcels.to_request(parcel)
            if request.images:
                request = await asyncio.to_thread(self._fitting, request, sized_by)
            async with aclosing(self._started().generate(request)) as events:
                async for said in self._ahead_of(answer, events):
                    yield said
        except Exception as error:
            yield _to_error(error)
        finally:
            del self._outstanding[this]

    async def transcribe(self, parcel: bytes, *, answer: str | None) -> AsyncGenerator[bytes, None]:
        """`answer`: as in `generate`."""
        try:
            engine = self._started()
            if not isinstance(engine, Transcribes):
                raise UnsupportedFeature("The engine does not transcribe.", param="model")
            async with aclosing(engine.transcribe(parcels.to_transcription(parcel))) as events:
                async for said in self._ahead_of(answer, events):
                    yield said
        except Exception as error:
            yield _to_error(error)

    async def post(self, method: str, *args: Any, to: tuple[str, int, bytes, int], **kwargs: Any) -> bool:
        """`generate` or `transcribe`, whose parcels go straight to the ingress that asks: `to` is its address, and the
        number it knows the answer by. False, and nothing done, where the network lets nobody there."""
        host, port, key, number = to
        try:
            outgoing = await self._outbox.open((host, port, key), number)
        except Unreachable as error:
            log.warning("an answer goes through Ray, because its ingress cannot be reached: %s", error)
            return False
        async with aclosing(getattr(self, method)(*args, **kwargs)) as answer:
            async for parcel in answer:
                await outgoing.send(parcel)
        await outgoing.end()
        return True

    async def read(self, count: int, *, of: str) -> None:
        """So many parcels of the answer of that name have been read. One that has ended is nobody's business."""
        if (ahead := self._ahead.get(of)) is not None:
            ahead.read(count)

    async def _ahead_of(
        self, answer: str | None, events: AsyncIterable[Event | TranscriptionEvent]
    ) -> AsyncGenerator[bytes, None]:
        """As parcels, no more than a window ahead of who reads them."""
        if answer is None:
            async for event in events:
                yield parcels.from_event(event)
            return
        ahead = self._ahead[answer] = Ahead()
        try:
            async for event in events:
                await ahead.send()
                yield parcels.from_event(event)
        finally:
            del self._ahead[answer]

    async def __del__(self) -> None:
        """Ray awaits it when the replica is to end and nothing is under way in it."""
        self._outbox.close()
        if self._engine is not None:
            await self._engine.close()

    def _fitting(self, request: EngineRequest, sized_by: str) -> EngineRequest:
        vision = self._started().info.vision
        return request if sized_by == rule_of(vision) else refit(request, vision)

    def _started(self) -> Engine:
        if self._engine is None:
            raise EngineUnavailable("The engine is still being started.")
        return self._engine


async def _answer(work: Awaitable[bytes]) -> bytes:
    try:
        return await work
    except Exception as error:
        return _to_error(error)


def _to_error(error: Exception) -> bytes:
    if not isinstance(error, SightlineError):
        log.error("a bug in the engine", exc_info=error)
        error = EngineFailed("The engine failed. The log of its replica says why.")
    return parcels.from_error(error)
