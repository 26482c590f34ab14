"""An `Engine` whose model runs in the replicas of a deployment.

Knows of Ray only what `Replicas` says, so that the tests of its decisions need none.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from sightline.cluster import parcels
from sightline.cluster.affinity import affinity_key
from sightline.cluster.refit import rule_of
from sightline.engines import EngineInfo
from sightline.errors import EngineFailed, EngineUnavailable
from sightline.routing import backoff_s
from sightline.types import (
    EmbeddingRequest,
    Embeddings,
    EngineRequest,
    Event,
    TokenCount,
    TranscriptionEvent,
    TranscriptionRequest,
)

log = logging.getLogger(__name__)

T = TypeVar("T")

_TRIES = 8
"""Of what has not begun to be answered: on a lost machine there may be several replicas, which Ray finds out one by
one."""
_INFO_S = 5.0
"""For how long what replicas tell of themselves is believed."""
_CHANGING_S = 60.0
"""For how long a request may be under way whose pictures were made ready for the model before."""
_ANSWER_TOKENS = 512
"""Of an answer whose length nobody limits, as the autoscaler is told."""
_SOME_PROCESS = 0
"""The same for every replica that is lost: no picture is suspected of having ended several machines."""
_GONE = "The replica of the model ended while it had this request."


class ReplicaLost(Exception):
    """The replica that had a call is gone, or does not answer: another one may be asked."""


class Replicas(Protocol):
    """Calls of `EngineReplica`'s methods, each on a replica that is chosen for it.

    Raises `ReplicaLost`, and `SightlineError` for what another replica would not do better.
    """

    async def call(self, method: str, *args: Any, **kwargs: Any) -> bytes: ...

    def stream(self, method: str, *args: Any, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        """Closing it cancels the call."""
        ...

    def end(self) -> None:
        """Cancels what is under way, which raises `EngineUnavailable`."""
        ...


class HandleEngine:
    """Life as any engine's, but that `start` may follow on `close`: the replicas live and end without it.

    What a lost replica had not begun to answer is asked of another, up to `_TRIES` times; an answer that had begun
    ends with `EngineFailed`.
    """

    def __init__(self, name: str, replicas: Replicas) -> None:
        self._name = name
        self._replicas = replicas
        self._info: EngineInfo | None = None
        self._asked = 0.0
        """When replicas were last asked who they are, by the event loop's clock."""
        self._asking: asyncio.Task[None] | None = None
        self._changed = -_CHANGING_S
        """When it was last another model that answered to the name."""

    @property
    def info(self) -> EngineInfo:
        """Raises `EngineUnavailable` before the first start."""
        if self._info is None:
            raise EngineUnavailable("The model's replicas have not been asked yet.")
        return self._info

    async def start(self) -> None:
        """Returns when a replica runs; where there is none, because nobody needed one, this starts one."""
        self._asked = asyncio.get_running_loop().time()
        known, self._info = self._info, await self._ask(lambda: self._replicas.call("info"))
        if known is not None and known != self._info:
            self._changed = asyncio.get_running_loop().time()

    def _ask_again(self) -> None:
        """Where the answer may be out of date: while a new configuration is rolled out, an old replica may have been
        asked. Only beside a request: a model that nobody uses is not to be woken."""
        now = asyncio.get_running_loop().time()
        if now - self._asked > _INFO_S and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self.start())
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _sized_by(self) -> str:
        """The rule by which the pictures of a request were sized; empty where that may have been another."""
        changing = asyncio.get_running_loop().time() - self._changed < _CHANGING_S
        return "" if changing or self._info is None else rule_of(self._info.vision)

    async def count_tokens(self, request: EngineRequest) -> TokenCount:
        self._ask_again()
        parcel, affinity, sized_by = parcels.from_count(request), _affinity(request), self._sized_by()
        count: TokenCount = await self._ask(
            lambda: self._replicas.call("count", parcel, affinity=affinity, sized_by=sized_by)
        )
        return count

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        parcel = parcels.from_embedding(request)
        embeddings: Embeddings = await self._ask(lambda: self._replicas.call("embed", parcel))
        return embeddings

    async def generate(self, request: EngineRequest) -> AsyncGenerator[Event, None]:
        affinity, tokens, sized_by = _affinity(request), _cost(request), self._sized_by()
        parcel = await asyncio.to_thread(parcels.from_request, request) if affinity else parcels.from_request(request)

        def open_() -> AsyncGenerator[bytes, None]:
            return self._replicas.stream("generate", parcel, affinity=affinity, tokens=tokens, sized_by=sized_by)

        async with aclosing(self._stream(open_)) as events:
            async for event in events:
                yield event

    async def transcribe(self, request: TranscriptionRequest) -> AsyncGenerator[TranscriptionEvent, None]:
        parcel = await asyncio.to_thread(parcels.from_transcription, request)
        async with aclosing(self._stream(lambda: self._replicas.stream("transcribe", parcel))) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        """Ends what is under way. The replicas are not ours to end."""
        if self._asking is not None:
            self._asking.cancel()
        self._replicas.end()

    async def _ask(self, call: Callable[[], Awaitable[bytes]]) -> Any:
        for retry in range(_TRIES):
            try:
                return parcels.to_answer(await call())
            except ReplicaLost as error:
                await self._before_retry(retry, error)
        raise EngineUnavailable(_GONE)

    async def _stream(self, open_: Callable[[], AsyncGenerator[bytes, None]]) -> AsyncGenerator[Any, None]:
        begun = False
        for retry in range(_TRIES):
            try:
                async with aclosing(open_()) as answer:
                    async for parcel in answer:
                        event = parcels.to_answer(parcel)
                        begun = True
                        yield event
                return
            except ReplicaLost as error:
                if begun:
                    raise _lost() from None
                await self._before_retry(retry, error)
        raise EngineUnavailable(_GONE)

    async def _before_retry(self, retry: int, error: ReplicaLost) -> None:
        log.warning("model %s: a replica is lost (%s); its request goes to another", self._name, error)
        await asyncio.sleep(backoff_s(retry))


def _lost() -> EngineFailed:
    """A replica is a process like an engine's own: whoever has told its client nothing yet may ask again, and what it
    took along does not speak against the replicas that are left."""
    error = EngineFailed(_GONE)
    error.died = _SOME_PROCESS
    error.replaced = True
    return error


def _affinity(request: EngineRequest) -> str | None:
    return affinity_key([image.digest for image in request.images], request.tenant)


def _cost(request: EngineRequest) -> int:
    """Tokens that it may cost, about, for the autoscaler; pictures as if they were 256 each."""
    characters = sum(len(part.text) for m in request.messages for part in m.content if hasattr(part, "text"))
    answer = request.sampling.max_tokens or _ANSWER_TOKENS
    return 1 + characters // 4 + 256 * len(request.images) + answer
