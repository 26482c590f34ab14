"""What is counted: the stream passes through unchanged, and the numbers mean what their names say."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping

import pytest
from starlette.types import ASGIApp

from sightline import metrics
from sightline.config import PEEK, ModelConfig, Settings
from sightline.errors import EngineFailed
from sightline.service import Service
from sightline.types import Event, Finish, TextDelta, Timing, Usage
from tests.api.standin import JSON_HEADERS, Call, ScriptedService, app_of, chat

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


def test_events_of_a_stream_are_counted() -> None:
    events: list[Event] = [TextDelta("a"), TextDelta("bc", num_tokens=2), FINISH]
    observed = metrics.Observed("count", clock=Clock(0.0, 1.0, 1.5, 9.0))
    for number, event in enumerate(events):
        observed.see(event, is_first=number == 0)
    assert value("ttft_seconds_sum", model="count") == 1.0
    assert value("inter_token_seconds_sum", model="count") == 0.25  # half a second for two tokens
    assert value("prompt_tokens_total", model="count") == 30
    assert value("image_tokens_total", model="count") == 24
    assert value("cached_tokens_total", model="count") == 5
    assert value("completion_tokens_total", model="count") == 3
    assert value("images_cached_total", model="count") == 1
    assert value("tokens_per_image_count", model="count") == 2
    assert value("engine_stage_seconds_sum", model="count", stage="decode") == 2.0


def test_times_between_tokens_are_a_histogram() -> None:
    observed = metrics.Observed("steps", clock=Clock(0.0, 1.0, 1.015, 1.05, 9.0))
    for number in range(4):
        observed.see(TextDelta("a"), is_first=number == 0)
    edges = ("0.01", "0.02", "0.04", "+Inf")
    in_bucket = {le: value("inter_token_seconds_bucket", model="steps", le=le) for le in edges}
    assert in_bucket == {"0.01": 0, "0.02": 1, "0.04": 2, "+Inf": 3}
    assert value("inter_token_seconds_count", model="steps") == 3
    assert value("inter_token_seconds_sum", model="steps") == pytest.approx(8.0)
    body = metrics.render()[0].decode()
    assert 'sightline_inter_token_seconds_bucket{le="1.28",model="steps"} 2.0' in body
    assert "# TYPE sightline_inter_token_seconds histogram" in body


def test_outcomes_are_a_closed_set() -> None:
    assert metrics.outcome(None) == "ok"
    assert metrics.outcome(EngineFailed("x")) == "EngineFailed"
    assert metrics.outcome(ZeroDivisionError()) == "bug"
    assert metrics.outcome(asyncio.CancelledError()) == "cancelled"


def test_render_is_prometheus_text() -> None:
    body, media_type = metrics.render()
    assert media_type.startswith("text/plain")
    assert b"# TYPE sightline_ttft_seconds histogram" in body


# --- closed sets -----------------------------------------------------------------------------------------------------


def series() -> int:
    """Time series, all rows of the registry."""
    return sum(len(list(family.samples)) for family in metrics.REGISTRY.collect())


async def test_no_client_makes_new_time_series() -> None:
    """10,000 requests with models, paths, methods, keys and bodies that nobody else has sent."""
    app = app_of(ScriptedService())
    chance = random.Random(1)

    def word() -> str:
        return "".join(chance.choices("abcdefghijklmnopqrstuvwxyz0123456789{}/.%é\n", k=12))

    async def one(number: int) -> None:
        headers = {"authorization": f"Bearer {word()}", "x-request-id": word(), "user-agent": word()}
        match number % 5:
            case 0:
                await call(app, "GET", f"/{word()}")
            case 1:
                await call(app, chance.choice(["GET", "POST", "BREW", word().upper()]), f"/v1/models/{word()}", headers)
            case 2:
                await call(app, "POST", "/v1/chat/completions", headers, json.dumps(chat(model=word())).encode())
            case 3:
                await call(app, "POST", "/v1/messages", headers, json.dumps({"model": word(), word(): 1}).encode())
            case 4:
                await call(app, "DELETE", f"/v1/files/file-{word()}", headers)

    for number in range(200):  # what such requests count at all
        await one(number)
    before = series()
    for number in range(10_000):
        await one(number)
    assert series() <= before + 5


async def call(
    app: ASGIApp, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> None:
    await Call(method, path, body, JSON_HEADERS | dict(headers or {})).run(app)


def test_whatever_a_request_was_its_labels_are_known() -> None:
    assert metrics.http_ended("/r", "BREW", 418, "openai") is metrics.http_ended("/r", "X", 404, "openai")
    assert metrics.http_ended("/r", "GET", None, "openai") is metrics.http_ended("/r", "GET", 7, "openai")


async def test_http_requests_are_counted_by_route_and_api() -> None:
    app = app_of(ScriptedService())
    body = json.dumps(chat(model="m")).encode()
    labels = {"route": "/v1/chat/completions", "method": "POST", "status": "2xx", "dialect": "openai"}
    route = {"route": "/v1/chat/completions"}
    before = value("http_requests_total", **labels), value("http_request_bytes_total", **route)
    answered = value("http_response_bytes_total", **route)
    reply = await Call("POST", "/v1/chat/completions", body, dict(JSON_HEADERS)).run(app)
    assert reply.status == 200
    assert value("http_requests_total", **labels) == before[0] + 1
    assert value("http_request_bytes_total", **route) == before[1] + len(body)
    assert value("http_response_bytes_total", **route) == answered + len(reply.body)
    assert value("http_requests_in_flight") == 0


# --- what is asked when somebody reads -------------------------------------------------------------------------------


async def test_a_model_tells_of_its_engine() -> None:
    settings = Settings(models=(ModelConfig(name="told", source=PEEK, max_concurrent=3),))
    service = Service(settings)
    assert value("model_state", model="told", state="unloaded") == 1
    await service.start()
    try:
        assert value("model_state", model="told", state="ready") == 1
        assert sum(value("model_state", model="told", state=s) for s in ("unloaded", "loading", "ready", "failed")) == 1
        assert value("slots", model="told") == 3
        assert value("predicted_wait_seconds", model="told") == 0
        assert 2**20 < value("engine_process_resident_memory_bytes", model="told") < 2**36
        assert value("engine_process_cpu_seconds", model="told") > 0
        assert value("decoders") >= settings.images.decoders
        for _ in range(500):  # the first ping goes out with the word that it is ready
            if value("kv_blocks", model="told"):
                break
            await asyncio.sleep(0.01)
        assert value("kv_blocks", model="told") > value("kv_blocks_used", model="told") == 0
    finally:
        await service.close()
    assert value("engine_process_resident_memory_bytes", model="told") == 0


def test_a_process_that_is_not_there_uses_nothing() -> None:
    assert metrics.process_use(None) == metrics.process_use(2**22 + 1) == metrics.ProcessUse()
    own = metrics.process_use(os.getpid())
    assert own.rss_bytes > 2**20
    assert own.cpu_s > 0
