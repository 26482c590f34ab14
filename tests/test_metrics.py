"""What is counted: the stream passes through unchanged, and the numbers mean what their names say."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from sightline import metrics
from sightline.errors import EngineFailed
from sightline.types import Event, Finish, TextDelta, Timing, Usage

pytestmark = pytest.mark.anyio


class Clock:
    def __init__(self, *times: float) -> None:
        self.times = list(times)

    def __call__(self) -> float:
        return self.times.pop(0)


def value(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"sightline_{name}", labels) or 0.0


USAGE = Usage(prompt_tokens=30, completion_tokens=3, image_tokens=(16, 8), images_cached=(True, False), cached_tokens=5)
FINISH = Finish("stop", USAGE, Timing(queue_s=0.5, decode_s=2.0))


async def stream(*events: Event) -> AsyncGenerator[Event, None]:
    for event in events:
        yield event


async def test_observe_passes_on_and_counts() -> None:
    events: list[Event] = [TextDelta("a"), TextDelta("bc", num_tokens=2), FINISH]
    seen = [e async for e in metrics.observe(stream(*events), "count", clock=Clock(0.0, 1.0, 1.5, 9.0))]
    assert seen == events
    assert value("ttft_seconds_sum", model="count") == 1.0
    assert value("inter_token_seconds_sum", model="count") == 0.25  # half a second for two tokens
    assert value("prompt_tokens_total", model="count") == 30
    assert value("image_tokens_total", model="count") == 24
    assert value("cached_tokens_total", model="count") == 5
    assert value("completion_tokens_total", model="count") == 3
    assert value("images_cached_total", model="count") == 1
    assert value("tokens_per_image_count", model="count") == 2
    assert value("engine_stage_seconds_sum", model="count", stage="decode") == 2.0


async def test_closing_the_observed_stream_closes_its_source() -> None:
    closed = False

    async def source() -> AsyncGenerator[Event, None]:
        nonlocal closed
        try:
            yield TextDelta("a")
            yield TextDelta("b")
        finally:
            closed = True

    events = metrics.observe(source(), "close")
    await anext(events)
    await events.aclose()
    assert closed


def test_outcomes_are_a_closed_set() -> None:
    assert metrics.outcome(None) == "ok"
    assert metrics.outcome(EngineFailed("x")) == "EngineFailed"
    assert metrics.outcome(ZeroDivisionError()) == "bug"
    assert metrics.outcome(asyncio.CancelledError()) == "cancelled"


def test_render_is_prometheus_text() -> None:
    body, media_type = metrics.render()
    assert media_type.startswith("text/plain")
    assert b"# TYPE sightline_ttft_seconds histogram" in body
