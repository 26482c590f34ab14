"""Requests that the server puts to itself: the same answers, on whose behalf, and behind everybody who waits."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import ASGIApp

from sightline.api.inside import execute
from sightline.errors import EngineFailed, EngineUnavailable, Overloaded, QuotaExceeded, RateLimited, SightlineError
from sightline.jobs import Item, Lease
from sightline.jobs.runner import Answer
from sightline.routing import BACKGROUND
from sightline.types import ChatRequest
from tests.api.standin import HELLO, ScriptedService, app_of, chat

pytestmark = pytest.mark.anyio


async def ask(app: ASGIApp, body: dict[str, Any] | bytes, tenant: str = "") -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await execute(app, Lease(Item(0, "c-0", raw), "batch_1", tenant, "/v1/chat/completions", 1, 1))


async def test_a_line_is_answered_as_a_client_would_be_and_behind_all_of_them() -> None:
    service = ScriptedService(HELLO)
    answer = await ask(app_of(service), chat(priority=10), "tenant-1")
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "A cat"
    assert (answer.status_code, answer.retryable, answer.began) == (200, False, True)
    assert answer.request_id.startswith("req_")
    (request,) = service.requests
    assert (request.priority, request.tenant) == (BACKGROUND, "tenant-1")


async def test_a_client_cannot_say_whose_request_it_is() -> None:
    service = ScriptedService(HELLO)
    await ask(app_of(service), chat(tenant="other"), "own")
    assert service.requests[0].tenant == "own"


@pytest.mark.parametrize(
    ("error", "status", "retryable", "began"),
    [
        (EngineFailed("x"), 500, True, True),
        (EngineUnavailable("x"), 503, True, False),
        (Overloaded("x", retry_after_s=7), 503, True, False),
        (RateLimited("x", retry_after_s=7), 429, True, False),
        (QuotaExceeded("x"), 429, False, False),
        (ValueError("a bug"), 500, False, True),
    ],
)
async def test_what_may_pass(error: Exception, status: int, retryable: bool, began: bool) -> None:
    async def fail(request: ChatRequest):  # type: ignore[no-untyped-def]
        raise error
        yield

    answer = await ask(app_of(ScriptedService(fail)), chat())
    assert (answer.status_code, answer.retryable, answer.began) == (status, retryable, began)
    assert answer.retry_after_s == (getattr(error, "retry_after_s", 1.0) if status in (429, 503) and retryable else 0.0)
    assert isinstance(error, SightlineError) or b"a bug" not in answer.body


async def test_what_is_wrong_with_a_line_is_told_in_the_shape_of_its_route() -> None:
    answer = await ask(app_of(ScriptedService(HELLO)), b'{"model":"m","model":"m"}')
    assert answer.status_code == 400
    assert set(json.loads(answer.body)["error"]) == {"message", "type", "param", "code"}


async def test_cancelling_it_ends_the_work() -> None:
    async def hang(request: ChatRequest):  # type: ignore[no-untyped-def]
        await asyncio.Event().wait()
        yield

    service = ScriptedService(hang)
    asking = asyncio.create_task(ask(app_of(service), chat()))
    while not service.open:
        await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait([asking])
    assert service.open == 0
