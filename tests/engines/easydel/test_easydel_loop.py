"""The step loop of the engine `easydel`, on a stand-in of eSurge's scheduler and runner: their signatures, no model."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines.answer import Vocabulary
from sightline.engines.openvino.checkpoint import read_facts
from sightline.engines.openvino.prompt import PromptBuilder
from sightline.engines.openvino.vision import read_preprocessor
from sightline.engines.steps import generated
from sightline.errors import EngineFailed, EngineUnavailable
from sightline.testing import ask
from sightline.types import EngineRequest, Event, Finish, Image, TextDelta

MODEL = ModelConfig(name=PEEK).path
FACTS = read_facts(MODEL)
PREPROCESSOR = read_preprocessor(MODEL, FACTS.vision)
PROMPTS = PromptBuilder(MODEL, PREPROCESSOR, FACTS.image_token_id)
VOCABULARY = Vocabulary(MODEL, FACTS.language.vocab_size, FACTS.eos_token_ids)
END = min(FACTS.eos_token_ids)


@dataclass
class SurgeRequest:
    request_id: str
    prompt_token_ids: list[int]
    sampling_params: SimpleNamespace
    eos_token_id: int | None
    pixel_values: Any = None
    image_grid_thw: Any = None


def surge_sampling(**params: Any) -> SimpleNamespace:
    if params["top_p"] == 0.123:
        raise ValueError("EasyDeL would rather not")
    return SimpleNamespace(**params)


class Positions(NamedTuple):
    prompt: Any
    offset: int


@dataclass
class Surge:
    """Both halves: every request gets the token of the script that is next for it, then the same one for ever."""

    script: list[int]
    requests: dict[str, SurgeRequest] = field(default_factory=dict)
    seen: list[SurgeRequest] = field(default_factory=list)
    given: dict[str, int] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    positions: dict[str, Positions] = field(default_factory=dict)
    is_blind: bool = False
    is_broken: bool = False
    aborted: list[str] = field(default_factory=list)

    @property
    def scheduler(self) -> Surge:
        return self

    @property
    def runner(self) -> Surge:
        return self

    def add_request(self, request: SurgeRequest) -> None:
        self.requests[request.request_id] = request
        self.seen.append(request)

    def finish_requests(self, names: set[str], status: str) -> None:
        self.aborted += [name for name in names if self.requests.pop(name, None) and status == "aborted"]

    def schedule(self) -> list[str]:
        return list(self.requests)

    def execute_model(self, planned: list[str]) -> list[str]:
        if self.is_broken:
            raise RuntimeError("XLA is unhappy")
        if self.is_blind:
            self.unseen.update(name for name in planned if self.requests[name].pixel_values is not None)
        return planned

    def update_from_output(self, planned: list[str], computed: list[str]) -> dict[int, Any]:
        outputs = []
        for name in computed:
            number = self.given[name] = self.given.get(name, -1) + 1
            outputs.append(
                SimpleNamespace(request_id=name, new_token_ids=[self.script[min(number, len(self.script) - 1)]])
            )
            if number + 1 >= self.requests[name].sampling_params.max_tokens:
                del self.requests[name]
        return {0: SimpleNamespace(outputs=outputs)}


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module under test, with the stand-in in EasyDeL's place."""
    stand_ins: dict[str, dict[str, Any]] = {
        "easydel": {},
        "easydel.inference": {},
        "easydel.inference.esurge": {},
        "easydel.inference.esurge.request": {
            "EngineRequest": SurgeRequest,
            "EngineRequestStatus": SimpleNamespace(FINISHED_ABORTED="aborted"),
        },
        "easydel.inference.sampling_params": {"SamplingParams": surge_sampling},
        "sightline.engines.easydel.loading": {"Surge": Surge, "Positions": Positions},
    }
    for name, members in stand_ins.items():
        module = ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "sightline.engines.easydel.loop", raising=False)
    from sightline.engines.easydel import loop

    yield loop
    sys.modules.pop("sightline.engines.easydel.loop", None)


def events(loops: Any, loop: Any, request: EngineRequest, max_tokens: int = 8) -> AsyncGenerator[Event, None]:
    prompt = PROMPTS.build(request)
    return generated(loop, lambda deliver: loops.Generation(request, prompt, max_tokens, deliver, VOCABULARY))


def running(loops: Any, surge: Surge) -> Any:
    loop = loops.StepLoop(surge, PREPROCESSOR)
    loop.warm_up([])
    return loop


RED = Image(np.full((56, 84, 3), (255, 0, 0), np.uint8), "sha256:red", 84, 56, "image/png", 1)
WORD = 571


@pytest.mark.anyio
async def test_tokens_become_text_until_the_model_ends(loops: Any) -> None:
    loop = running(loops, surge := Surge([WORD, END]))
    try:
        *deltas, finish = [event async for event in events(loops, loop, ask("hello"))]
    finally:
        loop.close()
    assert [delta.text for delta in deltas if isinstance(delta, TextDelta)] == [VOCABULARY.text_bytes(WORD).decode()]
    assert isinstance(finish, Finish)
    assert (finish.reason, finish.usage.completion_tokens) == ("stop", 2)
    assert surge.seen[0].eos_token_id is None, "eSurge does not know where answers end"
    assert len(surge.aborted) == 1


@pytest.mark.anyio
async def test_a_picture_goes_as_patches_with_its_positions(loops: Any) -> None:
    request = ask(RED, "and", RED, "?")
    loop = running(loops, surge := Surge([END]))
    try:
        [_ async for _ in events(loops, loop, request)]
    finally:
        loop.close()
    (sent,) = surge.seen
    assert sent.pixel_values.shape == (2 * 4 * 6, 1176)
    assert sent.image_grid_thw.tolist() == [[1, 4, 6], [1, 4, 6]]
    assert sent.prompt_token_ids == PROMPTS.build(request).tokens
    assert surge.positions == {}, "nothing is kept of what has ended"


@pytest.mark.anyio
async def test_who_has_not_seen_does_not_answer(loops: Any) -> None:
    loop = running(loops, Surge([WORD], is_blind=True))
    try:
        with pytest.raises(EngineFailed, match="failed to look at a picture"):
            [_ async for _ in events(loops, loop, ask(RED, "?"))]
        assert [e async for e in events(loops, loop, ask("and now?"))][-1].reason == "length"  # type: ignore[union-attr]
    finally:
        loop.close()


@pytest.mark.anyio
async def test_a_request_that_easydel_does_not_take_ends_alone(loops: Any) -> None:
    loop = running(loops, Surge([WORD]))
    try:
        async with aclosing(events(loops, loop, ask("go on"), 10_000)) as other:
            await anext(other)
            with pytest.raises(EngineFailed, match="could not take"):
                [_ async for _ in events(loops, loop, ask("odd", temperature=1.0, top_p=0.123))]
            assert isinstance(await anext(other), TextDelta)
    finally:
        loop.close()


@pytest.mark.anyio
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that is how a thread ends
async def test_a_step_that_fails_ends_the_engine(loops: Any) -> None:
    loop = running(loops, surge := Surge([WORD]))
    surge.is_broken = True
    with pytest.raises(EngineFailed, match="failed while it ran"):
        [_ async for _ in events(loops, loop, ask("hello"))]
    await asyncio.to_thread(loop.close)
    with pytest.raises(EngineUnavailable):
        [_ async for _ in events(loops, loop, ask("hello"))]


def test_a_model_whose_pictures_cannot_be_seen_is_not_ready(loops: Any) -> None:
    loop = loops.StepLoop(Surge([WORD], is_blind=True), PREPROCESSOR)
    with pytest.raises(RuntimeError, match="cannot look at pictures"):
        loop.warm_up([PROMPTS.build(ask(RED, "?"))])


@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        ({"temperature": 0.0, "top_p": 0.5, "min_p": 0.1}, (1.0, 1.0, 1, 0.0)),
        ({"temperature": 1e-9}, (1.0, 1.0, 1, 0.0)),
        ({"temperature": 0.7, "top_p": 0.0}, (1.0, 1.0, 1, 0.0)),
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1}, (0.7, 0.9, 5, 0.1)),
    ],
)
def test_greedy_is_the_likeliest_one(loops: Any, asked: dict[str, Any], sent: tuple[float, ...]) -> None:
    params = loops._sampling(ask("?", **asked).sampling, 0)
    assert (params.temperature, params.top_p, params.top_k, params.min_p) == sent
    assert (params.max_tokens, params.ignore_eos) == (1, True)
