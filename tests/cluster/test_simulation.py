"""The simulation runs the fake engine's steps, draws the traffic that it says, and finds what arithmetic does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.cluster.simulation import POLICIES, Pace, Traffic, Turn, draw, measured, simulate
from sightline.cluster.simulation import __main__ as report
from sightline.cluster.simulation.measured import WITHIN, Compared, Point, measure, simulated
from sightline.cluster.simulation.policy import Choice
from sightline.cluster.simulation.replica import Asked, Kept, Replica
from sightline.cluster.simulation.run import _Cluster
from sightline.cluster.simulation.traffic import catalogue, zipf
from sightline.config import ModelConfig
from sightline.engines.fake import FakeEngine
from sightline.types import EngineRequest, SamplingParams, TextDelta

THROUGH_RAY = Path(__file__).parents[2] / "docs" / "bench-cluster.json"
FORGETFUL = Pace(slots=3, step_s=0.05, prefill_chunk=64, prefill_s_per_token=0.001, prefix_tokens=0, embedding_tokens=0)
"""Keeps nothing, as the fake engine takes the same time for what it has seen before."""


def turn(prompt: int, answer: int, wait_s: float, picture: int = 0) -> Turn:
    return Turn(picture, 0, 0, prompt, answer, wait_s)


def run(conversations: Sequence[Sequence[Turn]], pace: Pace, choose: Choice | None = None) -> list[Asked]:
    """On one replica, or on two; in the order in which they arrived."""
    cluster = _Cluster(["a"] if choose is None else ["a", "b"], pace)
    told = [asked for _, asked in cluster.run(conversations, choose or (lambda turn, loads: "a"))]
    return sorted(told, key=lambda asked: asked.arrived)


# --- the engine ------------------------------------------------------------------------------------------------------


class Instant(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to whatever is due next: hours pass in no time, to the microsecond."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None) -> object:
            events = select(0 if timeout is not None else None)
            self._now += 0.0 if events or timeout is None else timeout
            return events

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


def ask_the_engine(turns: Sequence[Turn], pace: Pace, monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """When the fake engine gives the first token of each, and when it ends."""
    loop = Instant()
    monkeypatch.setattr("sightline.engines.fake.engine.time", SimpleNamespace(perf_counter=loop.time))
    options = {
        "slots": pace.slots,
        "step_s": pace.step_s,
        "prefill_chunk": pace.prefill_chunk,
        "prefill_s_per_token": pace.prefill_s_per_token,
        "script": f"[[fake: say {'so ' * 200}]]",
    }

    async def ask(engine: FakeEngine, turn: Turn) -> tuple[float, float]:
        await asyncio.sleep(turn.wait_s)
        sampling = SamplingParams(max_tokens=turn.answer_tokens)
        request = EngineRequest("r", "fake", (), sampling, prompt=(120,) * turn.text_tokens)
        told = [loop.time() async for event in engine.generate(request) if isinstance(event, TextDelta)]
        assert len(told) == turn.answer_tokens
        return told[0], told[-1]

    async def ask_all() -> list[tuple[float, float]]:
        engine = FakeEngine(ModelConfig(name="fake", source="fake", engine="fake", options=options))
        await engine.start()
        times = await asyncio.gather(*(ask(engine, turn) for turn in turns))
        await engine.close()
        return times

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(ask_all())


asked = st.lists(st.tuples(st.integers(1, 1500), st.integers(1, 300), st.integers(1, 40)), min_size=1, max_size=12)


@given(asked)
@settings(deadline=None, max_examples=40)
def test_a_replica_gives_each_token_when_the_engine_does(drawn: list[tuple[int, int, int]]) -> None:
    # Steps take whole milliseconds. Each arrives at a fraction of its own, and so never at the very end of a step,
    # where both orders are right.
    arrivals = np.cumsum([gap_ms / 1000 + 0.00003 for gap_ms, _, _ in drawn])
    turns = [turn(prompt, answer, float(at)) for at, (_, prompt, answer) in zip(arrivals, drawn, strict=True)]
    with pytest.MonkeyPatch.context() as monkeypatch:
        engine = ask_the_engine(turns, FORGETFUL, monkeypatch)
    simulated = [(one.first_token, one.finished) for one in run([[one] for one in turns], FORGETFUL)]
    assert simulated == pytest.approx(np.array(engine), abs=1e-6)


def test_more_than_the_slots_waits() -> None:
    # Three of 10 steps, from 0 on; the fourth arrives during the second step and begins when they end.
    turns = [[turn(1, 10, 0.0)], *[[turn(1, 10, 0.0001)] for _ in range(2)], [turn(1, 5, 0.07)]]
    pace = replace(FORGETFUL, prefill_s_per_token=0.0)
    assert [round(one.first_token, 6) for one in run(turns, pace)] == [0.05, 0.1, 0.1, 0.55]


@pytest.mark.parametrize("clients", [3, 12])
def test_closed_loops_come_out_as_engines_measure_them(clients: int, monkeypatch: pytest.MonkeyPatch) -> None:
    point = Point(
        replicas=2, clients=clients, requests=4, prompt_tokens=150, answer_tokens=20, slots=4, prefill_s_per_token=0.001
    )
    loop = Instant()
    monkeypatch.setattr("sightline.engines.fake.engine.time", SimpleNamespace(perf_counter=loop.time))
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        seen = runner.run(measure(point))
    # A client asks again at the very moment of a step here, which is a step sooner or later: not as exact as above.
    assert Compared(seen, simulated(point)).off <= WITHIN


def test_points_that_are_not_as_simulated_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "points.json"
    point = Point(replicas=1, clients=8, requests=2, prompt_tokens=100, answer_tokens=50)
    monkeypatch.setattr("sys.argv", ["measured", str(file)])
    for slower, status in ((1.0, 0), (0.9, 0), (0.8, 1)):
        seen = msgspec.structs.replace(
            simulated(point), tokens_per_s=simulated(point).tokens_per_s * slower, ttft_p50_s=None
        )
        file.write_bytes(msgspec.json.encode({"points": [seen]}))
        assert measured.main() == status
    assert "25.0%" in capsys.readouterr().out


@pytest.mark.parametrize("replicas", [1, 2, 4, 8])
def test_throughput_that_was_measured_through_ray_is_as_simulated(replicas: int) -> None:
    """The figures of `make bench-cluster` that are in the documentation."""
    (point,) = (point for point in measured.read(THROUGH_RAY) if point.replicas == replicas)
    point = msgspec.structs.replace(point, ttft_p50_s=None)
    assert Compared(point, simulated(point)).off <= WITHIN


# --- caches ----------------------------------------------------------------------------------------------------------


def test_what_is_seen_again_is_not_computed_again() -> None:
    first = Turn(7, 400, 0, 50, 20, 0.0)
    second = Turn(7, 400, 70, 30, 20, 1.0)
    stranger = Turn(7, 400, 0, 60, 20, 100.0)
    told = run([[first, second], [stranger]], Pace())
    assert [one.computed_tokens for one in told] == [450, 30, 60]
    assert [one.seen for one in told] == [False, True, True]


def test_a_picture_whose_prefix_is_gone_may_still_have_its_embedding() -> None:
    pace = Pace(prefix_tokens=0, prefill_chunk=10_000, encode=0.5)
    told = run([[Turn(7, 400, 0, 50, 1, 0.0)], [Turn(7, 400, 0, 50, 1, 10.0)]], pace)
    assert [one.seen for one in told] == [False, True]
    assert [one.computed_tokens for one in told] == [450, 450]
    waits = [one.first_token - one.arrived for one in told]
    assert waits == pytest.approx([0.05 + 0.0002 * (450 + 200), 0.05 + 0.0002 * 450])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40))), st.integers(0, 100))
def test_a_cache_holds_what_it_may_and_forgets_the_oldest(used: list[tuple[int, int]], room: int) -> None:
    cache = Kept(room)
    for key, tokens in used:
        cache.keep(key, tokens)
    newest: dict[int, int] = {}
    for key, tokens in reversed(used):
        if key not in newest:
            if sum(newest.values()) + tokens > room:
                break
            newest[key] = tokens
    # What was used last is there as long as it fits; an older size of a key may have pushed out more.
    assert all(cache.use(key) for key in list(newest)[:1])
    assert sum(dict(used)[key] for key in range(10) if cache.use(key)) <= room


# --- traffic ---------------------------------------------------------------------------------------------------------


def test_the_traffic_is_what_it_says() -> None:
    traffic = Traffic(conversations=20_000, per_s=50)
    conversations = draw(traffic, seed=1)
    turns = [turn for conversation in conversations for turn in conversation]
    assert len(turns) / len(conversations) == pytest.approx(2.0, rel=0.03)
    assert np.mean([turn.text_tokens for turn in turns]) == pytest.approx(69.5, rel=0.03)
    assert np.mean([turn.answer_tokens for turn in turns]) == pytest.approx(214.5, rel=0.03)
    assert np.median([turn.picture_tokens for turn in turns]) == pytest.approx(800, rel=0.1)
    pictures = len({conversation[0].picture for conversation in conversations})
    assert len(conversations) / pictures == pytest.approx(200 / 43, rel=0.03)
    assert conversations[-1][0].wait_s == pytest.approx(20_000 / 50, rel=0.05)


def test_the_history_of_a_turn_is_all_that_was_said_before() -> None:
    for conversation in draw(Traffic(conversations=200, per_s=1), seed=2):
        said = 0
        for one in conversation:
            assert one.history_tokens == said
            assert one.picture == conversation[0].picture
            said += one.text_tokens + one.answer_tokens


def test_the_same_seed_draws_the_same() -> None:
    traffic = Traffic(conversations=50, per_s=1)
    assert draw(traffic, seed=3) == draw(traffic, seed=3) != draw(traffic, seed=4)


def test_pictures_are_as_popular_as_zipf_says() -> None:
    weights = zipf(100, 0.8)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] / weights[9] == pytest.approx(10**0.8)


def test_where_every_conversation_has_its_own_picture_there_are_many() -> None:
    assert catalogue(Traffic(conversations=1000, per_s=1, per_picture=1.0)) == 1_000_000


# --- clusters --------------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(POLICIES)), st.integers(1, 6), st.integers(0, 1000))
@settings(deadline=None, max_examples=30)
def test_every_request_is_answered_in_turn_and_no_sooner_than_it_can_be(policy: str, replicas: int, seed: int) -> None:
    conversations = draw(Traffic(conversations=30, per_s=2.0 * replicas), seed)
    outcome = simulate(conversations, replicas, policy, Pace(), warm=0.0)
    assert 0.0 < outcome.computed <= 1.0
    assert 0.0 <= outcome.hit_rate <= 1.0
    assert outcome.imbalance >= 1.0 - 1e-9
    assert outcome.ttft_p99_s >= outcome.ttft_p50_s >= Pace().step_s


@given(st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_turns_follow_each_other(seed: int) -> None:
    conversations = draw(Traffic(conversations=20, per_s=5), seed)
    told = run(conversations, Pace(), lambda turn, loads: "a" if turn.picture % 2 else "b")
    assert len(told) == sum(map(len, conversations))
    for number, conversation in enumerate(conversations):
        mine = [one for one in told if one.conversation == number]
        assert [one.turn for one in mine] == list(conversation)
        for before, after in pairwise(mine):
            assert after.arrived == pytest.approx(before.finished + after.turn.wait_s)
        assert all(one.arrived < one.first_token <= one.finished for one in mine)


def test_a_replica_alone_has_the_same_outcome_whoever_chooses_it() -> None:
    conversations = draw(Traffic(conversations=60, per_s=0.2), seed=5)
    told = {policy: simulate(conversations, 1, policy, Pace()) for policy in POLICIES}
    assert told["random"] == told["least loaded"] == told["affinity"]


def test_affinity_finds_pictures_again_and_keeps_nobody_waiting_for_it() -> None:
    conversations = draw(Traffic(conversations=1500, per_s=5.0), seed=6)
    told = {policy: simulate(conversations, 20, policy, Pace()) for policy in POLICIES}
    assert told["affinity"].hit_rate > told["least loaded"].hit_rate + 0.2
    assert told["affinity"].computed < 0.5 * told["least loaded"].computed
    assert told["affinity"].ttft_p99_s < told["least loaded"].ttft_p99_s < told["random"].ttft_p99_s
    assert told["least loaded"].imbalance < told["affinity"].imbalance < told["random"].imbalance


def test_slots_that_are_all_taken_give_the_tokens_that_they_can() -> None:
    # 8 slots, a token each in 50 ms: 160 tokens a second of a replica, less what prompts take.
    turns = [[turn(1, 100, 0.001 * number)] for number in range(800)]
    told = run(turns, Pace(prefill_s_per_token=0.0))
    assert 800 * 100 / max(one.finished for one in told) == pytest.approx(160, rel=0.01)


def test_an_idle_replica_has_no_end() -> None:
    assert Replica(Pace()).ends == float("inf")


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_writes_its_table_into_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "figures.md"
    page.write_text("before\n<!-- figures: written by it -->\nold\n<!-- end of figures -->\nafter\n")
    monkeypatch.setattr(report, "SIZES", (2, 3))
    monkeypatch.setattr(report, "QUICK", 2)
    monkeypatch.setattr("sys.argv", ["simulation", "--quick", "--out", str(tmp_path / "figures")])
    report.main()
    written = page.read_text()
    assert "old" not in written
    assert written.startswith("before\n")
    assert written.endswith("<!-- end of figures -->\nafter\n")
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["replicas"] for row in rows] == [2] * len(rows)
    for row in rows:
        assert f"| {row['policy']} | {row['outcome']['hit_rate']:.1%} |" in written
    assert (tmp_path / "figures.png").exists() == (find_spec("matplotlib") is not None)


def test_the_page_has_the_figures_of_its_file() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "cluster-simulation.md").read_text()
    for row in json.loads((docs / "cluster-simulation.json").read_text())["rows"]:
        told = row["outcome"]
        assert f"| {row['what']} | {row['policy']} | {told['hit_rate']:.1%} | {told['computed']:.1%} |" in page
