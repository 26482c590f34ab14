"""An engine over replicas that are lost: what is asked of another, and what ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from sightline.cluster import handle_engine, parcels
from sightline.cluster.handle_engine import HandleEngine, ReplicaLost
from sightline.cluster.refit import rule_of
from sightline.config import ModelConfig, Settings
from sightline.engines import EngineInfo
from sightline.errors import EngineFailed, EngineUnavailable, InvalidRequest
from sightline.items import ChoiceEvent
from sightline.service import Service
from sightline.types import ChatRequest, EngineRequest, Finish, Message, Text, TextDelta, TokenCount, Usage

pytestmark = pytest.mark.anyio

REQUEST = EngineRequest("r", "m", (Message("user", (Text("hello"),)),))
WORDS = [TextDelta("a"), TextDelta("b"), Finish("stop", Usage(1, 2))]


class Scripted:
    """Replicas, one for each try: `lost` says after how many answers each of the first is lost."""

    def __init__(self, *lost: int, says: list[Any] = WORDS) -> None:
        self.lost = list(lost)
        self.says = says
        self.tries = 0
        self.closed = 0
        self.ended = False
        self.context_length = 9
        self.calls_are_lost = True
        self.sized_by: list[str] = []

    async def call(self, method: str, *args: Any, **kwargs: Any) -> bytes:
        self.tries += 1
        self.sized_by += [kwargs["sized_by"]] if "sized_by" in kwargs else []
        if self.lost and self.calls_are_lost:
            self.lost.pop(0)
            raise ReplicaLost("gone")
        return (
            parcels.from_info(EngineInfo("fake", self.context_length))
            if method == "info"
            else parcels.from_counted(TokenCount(3))
        )

    async def stream(self, method: str, *args: Any, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        self.tries += 1
        left = self.lost.pop(0) if self.lost else None
        try:
            for event in self.says:
                if left == 0:
                    raise ReplicaLost("gone")
                left = None if left is None else left - 1
                yield parcels.from_error(event) if isinstance(event, Exception) else parcels.from_event(event)
        finally:
            self.closed += 1

    def end(self) -> None:
        self.ended = True


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handle_engine, "backoff_s", lambda retry: 0.0)


async def test_what_has_not_begun_is_asked_of_another_replica() -> None:
    replicas = Scripted(0, 0, 0)
    assert [event async for event in HandleEngine("m", replicas).generate(REQUEST)] == WORDS
    assert replicas.tries == replicas.closed == 4


async def test_an_answer_that_has_begun_fails_and_is_not_begun_again() -> None:
    replicas, heard = Scripted(1), []
    with pytest.raises(EngineFailed, match="ended") as caught:
        async for event in HandleEngine("m", replicas).generate(REQUEST):
            heard.append(event)
    assert heard == WORDS[:1]
    assert replicas.tries == 1
    assert caught.value.died is not None, "the model's breaker would count it"


async def test_whole_answers_lose_nothing_with_a_machine_and_the_model_is_not_left_alone() -> None:
    """Nothing of a whole answer has been told before its end; and many that a machine takes along are one event."""
    config = ModelConfig(name="m", engine="fake", max_concurrent=12)
    replicas = Scripted()
    service = Service(Settings(models=(config,)), {"m": HandleEngine("m", replicas)})
    await service.start(wait=True)
    replicas.calls_are_lost, replicas.lost = False, [1] * 12

    async def said(number: int) -> list[Any]:
        asked = ChatRequest("r", "m", (Message("user", (Text(f"hello {number}"),)),), whole=True)
        return [item.event async for item in service.generate(asked) if isinstance(item, ChoiceEvent)]

    try:
        assert await asyncio.gather(*(said(number) for number in range(12))) == [WORDS] * 12
    finally:
        await service.close()


@pytest.mark.parametrize(("deaths", "answered"), [(4, True), (5, False)])
async def test_a_whole_answer_outlives_several_replicas_in_a_row_but_does_not_end_them_all(
    deaths: int, answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sightline.attempts.backoff_s", lambda retry: 0.0)
    replicas = Scripted()
    config = ModelConfig(name="m", engine="fake")
    service = Service(Settings(models=(config,)), {"m": HandleEngine("m", replicas)})
    await service.start(wait=True)
    replicas.calls_are_lost, replicas.lost = False, [1] * deaths
    asked = ChatRequest("r", "m", (Message("user", (Text("hello"),)),), whole=True)
    try:
        if answered:
            assert [item.event async for item in service.generate(asked) if isinstance(item, ChoiceEvent)] == WORDS
        else:
            with pytest.raises(EngineFailed, match="ended"):
                await anext(service.generate(asked))
    finally:
        await service.close()


async def test_where_every_replica_is_lost_the_engine_is_unavailable() -> None:
    replicas = Scripted(*[0] * 100)
    with pytest.raises(EngineUnavailable):
        await anext(HandleEngine("m", replicas).generate(REQUEST))
    assert replicas.tries == 8
    with pytest.raises(EngineUnavailable):
        await HandleEngine("m", replicas).count_tokens(REQUEST)


async def test_an_error_of_the_request_is_not_tried_again() -> None:
    replicas = Scripted(says=[InvalidRequest("no", param="top_k")])
    with pytest.raises(InvalidRequest) as caught:
        await anext(HandleEngine("m", replicas).generate(REQUEST))
    assert caught.value.param == "top_k"
    assert replicas.tries == 1


async def test_it_knows_its_model_once_a_replica_was_asked() -> None:
    engine = HandleEngine("m", Scripted(0))
    with pytest.raises(EngineUnavailable):
        _ = engine.info
    await engine.start()
    assert engine.info == EngineInfo("fake", 9)
    assert await engine.count_tokens(REQUEST) == TokenCount(3)


async def test_closing_a_stream_closes_the_replicas_and_closing_the_engine_ends_all() -> None:
    replicas = Scripted()
    engine = HandleEngine("m", replicas)
    events = engine.generate(REQUEST)
    assert await anext(events) == WORDS[0]
    await events.aclose()
    assert replicas.closed == 1
    await engine.close()
    assert replicas.ended


async def test_what_a_rollout_changed_is_learned_beside_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas = Scripted()
    engine = HandleEngine("m", replicas)
    await engine.start()
    replicas.context_length = 7
    await engine.count_tokens(REQUEST)
    await asyncio.sleep(0)
    assert engine.info.context_length == 9  # asked a moment ago
    monkeypatch.setattr(handle_engine, "_INFO_S", -1.0)
    await engine.count_tokens(REQUEST)
    while engine.info.context_length == 9:
        await asyncio.sleep(0)
    assert engine.info.context_length == 7


async def test_replicas_are_told_by_which_models_rule_pictures_were_sized() -> None:
    """But for a minute after another model has come to answer to the name: then nobody can say."""
    replicas = Scripted()
    engine = HandleEngine("m", replicas)
    await engine.start()
    await engine.count_tokens(REQUEST)
    replicas.context_length = 7
    await engine.start()
    await engine.count_tokens(REQUEST)
    assert replicas.sized_by == [rule_of(None), ""]
