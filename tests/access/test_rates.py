"""Rates and budgets as clients meet them: statuses, headers, and what is kept when a server ends."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

from sightline.access import gate
from sightline.api.entrance import to_duration
from sightline.config import ModelConfig
from tests.access.keyed import Keyed, bearer, picture
from tests.api.standin import JSON_HEADERS, Call, Reply, chat, get, post

pytestmark = pytest.mark.anyio

FAKE = (ModelConfig(name="m", engine="fake"),)
SLOW = (ModelConfig(name="m", engine="fake", options={"step_s": 0.02}),)


def ask(app: ASGIApp, secret: str, path: str = "/v1/chat/completions", **fields: Any) -> Any:
    return post(app, chat(max_tokens=fields.pop("max_tokens", 5), **fields), path, **bearer(secret))


def left(reply: Reply, what: str) -> int:
    return int(reply.headers[f"x-ratelimit-remaining-{what}"])


async def test_requests_a_minute(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=FAKE)
    secret, other = keyed.key("a", requests_per_minute=3), keyed.key("b", requests_per_minute=3)
    async with keyed.running() as app:
        replies = [await ask(app, secret) for _ in range(4)]
        assert [r.status for r in replies] == [200, 200, 200, 429]
        assert [left(r, "requests") for r in replies] == [2, 1, 0, 0]
        refused = replies[-1]
        assert refused.json["error"]["type"] == "rate_limit_error"
        assert refused.json["error"]["code"] == "rate_limit_exceeded"
        assert int(refused.headers["retry-after"]) <= 20
        exact = int(refused.headers["retry-after-ms"])
        assert exact / 1000 <= int(refused.headers["retry-after"]) < exact / 1000 + 1
        assert "x-should-retry" not in refused.headers
        assert (await ask(app, other)).status == 200, "each key has its own"
        assert (await get(app, "/v1/models", **bearer(secret))).status == 200, "what only reads is no request"
        assert left(await get(app, "/v1/models", **bearer(secret)), "requests") == 0, "and tells how the key stands"


async def test_tokens_a_minute_are_foreseen_and_then_as_they_were(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=FAKE)
    secret = keyed.key(tokens_per_minute=600)
    async with keyed.running() as app:
        first = await ask(app, secret, max_tokens=500)
        used = first.json["usage"]["total_tokens"]
        assert used < 50
        assert abs(left(first, "tokens") - (600 - used)) <= 15, "what was foreseen and not used came back"
        over = await ask(app, secret, max_tokens=598)
        assert (over.status, over.headers["x-should-retry"]) == (429, "false")
        assert "more than it ever has" in over.json["error"]["message"]
        await ask(app, secret, max_tokens=100, messages=[{"role": "user", "content": "[[fake: length 100]]"}])
        soon = await ask(app, secret, max_tokens=560)
        assert (soon.status, soon.json["error"]["code"]) == (429, "rate_limit_exceeded")
        assert int(soon.headers["retry-after"]) > 1


async def test_a_stream_tells_at_its_beginning_and_pays_at_its_end(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=SLOW)
    secret = keyed.key(tokens_per_minute=1000, requests_per_minute=5)
    async with keyed.running() as app:
        stream = await ask(app, secret, stream=True, max_tokens=300)
        assert left(stream, "tokens") <= 1000 - 300, "while it runs all that it may need is reserved"
        assert stream.complete
        assert left(await get(app, "/v1/models", **bearer(secret)), "tokens") > 900


async def test_who_leaves_pays_for_what_there_was(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=SLOW)
    secret = keyed.key(tokens_per_minute=1000, concurrent=1)
    long = [{"role": "user", "content": "[[fake: length 400]]"}]
    async with keyed.running() as app:
        body = json.dumps(chat(stream=True, max_tokens=400, messages=long)).encode()
        call = Call("POST", "/v1/chat/completions", body, {**JSON_HEADERS, **bearer(secret)})
        call.on_body = lambda piece: call.left.set() if b"content" in piece else None
        await call.run(app)
        standing = await get(app, "/v1/models", **bearer(secret))
        assert 900 < left(standing, "tokens") < 1000
        assert (await ask(app, secret)).status == 200, "and its place is free"


async def test_so_many_at_once_a_response_in_the_background_among_them(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=SLOW)
    secret = keyed.key(concurrent=1)
    long = "[[fake: length 60]]"
    async with keyed.running() as app:
        first = asyncio.create_task(ask(app, secret, max_tokens=60, messages=[{"role": "user", "content": long}]))
        await asyncio.sleep(0)
        second = await ask(app, secret)
        assert (second.status, second.headers["retry-after"]) == (429, "1")
        assert "at once" in second.json["error"]["message"]
        assert (await first).status == 200
        begun = await post(app, {"model": "m", "input": long, "background": True}, "/v1/responses", **bearer(secret))
        assert begun.json["status"] in ("queued", "in_progress")
        assert (await ask(app, secret)).status == 429, "it goes on after its answer"
        async with asyncio.timeout(20):
            while (await ask(app, secret)).status == 429:
                await asyncio.sleep(0.02)
        told = await get(app, f"/v1/responses/{begun.json['id']}", **bearer(secret))
        assert told.json["status"] not in ("queued", "in_progress"), "its place was free when it had ended"


async def test_the_budget_of_the_day_outlives_the_server(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=FAKE)
    secret = keyed.key(tokens_per_day=60)
    async with keyed.running() as app:
        used = (await ask(app, secret)).json["usage"]["total_tokens"]
    async with keyed.running() as app:
        over = await ask(app, secret, max_tokens=60 - used)
        assert (over.status, over.json["error"]["code"]) == (429, "insufficient_quota")
        assert over.json["error"]["type"] == "insufficient_quota"
        assert (over.headers["x-should-retry"], "retry-after" in over.headers) == ("false", False)
        assert f"of which {60 - used} are left until midnight UTC" in over.json["error"]["message"]
        assert (await ask(app, secret)).status == 200, "what is left may be used"
        assert (await get(app, "/v1/models", **bearer(secret))).status == 200


async def test_pictures_have_a_budget(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=FAKE)
    secret = keyed.key(pictures_per_day=2)
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture()}"}}
    async with keyed.running() as app:
        for status in (200, 200, 429):
            reply = await ask(app, secret, messages=[{"role": "user", "content": [part]}])
            assert reply.status == status
        assert "2 pictures a day" in reply.json["error"]["message"]
        assert (await ask(app, secret)).status == 200, "texts are no pictures"


async def test_each_dialect_in_its_own_words(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=FAKE)
    secret = keyed.key(requests_per_minute=1, tokens_per_minute=10_000)
    messages = {"model": "m", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    async with keyed.running() as app:
        first = await post(app, messages, "/v1/messages", x_api_key=secret)
        assert first.status == 200
        assert first.headers["anthropic-ratelimit-requests-limit"] == "1"
        assert first.headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", first.headers["anthropic-ratelimit-tokens-reset"])
        refused = await post(app, messages, "/v1/messages", x_api_key=secret)
        assert (refused.status, refused.json["error"]["type"]) == (429, "rate_limit_error")
        assert "x-ratelimit-limit-requests" not in refused.headers
        ollama = await post(app, {"model": "m", "messages": messages["messages"]}, "/api/chat", **bearer(secret))
        assert ollama.status == 429
        assert "requests a minute" in ollama.json["error"]
        simple = await post(app, {}, "/analyze", **bearer(secret))
        assert simple.status == 429
        assert "requests a minute" in simple.json["detail"]
        assert left(simple, "requests") == 0


async def test_vectors_are_paid_for(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=FAKE)
    secret = keyed.key(tokens_per_day=100)
    async with keyed.running() as app:
        reply = await post(app, {"model": "m", "input": "a b c " * 10}, "/v1/embeddings", **bearer(secret))
        assert reply.status == 200
        over = await post(app, {"model": "m", "input": "a b c " * 100}, "/v1/embeddings", **bearer(secret))
        assert over.json["error"]["code"] == "insufficient_quota"


@pytest.fixture
def looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers look for new and revoked keys all the time."""
    assert gate._LOOK_S <= 1, "so that it is done within two seconds"
    monkeypatch.setattr(gate, "_LOOK_S", 0.02)


@pytest.mark.usefixtures("looking")
async def test_a_revoked_key_is_refused_by_a_running_server(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=FAKE)
    secret, _ = keyed.key("a"), keyed.key("b")
    async with keyed.running() as app:
        assert (await ask(app, secret)).status == 200
        keyed.file.revoke("a", 1.0)
        async with asyncio.timeout(20):
            while (reply := await ask(app, secret)).status == 200:
                await asyncio.sleep(0.05)
        assert (reply.status, reply.json["error"]["message"].split(".")[0]) == (401, "The API key was revoked")
        later = keyed.key("c")
        async with asyncio.timeout(20):
            while (await ask(app, later)).status == 401:
                await asyncio.sleep(0.05)


@pytest.mark.usefixtures("looking")
async def test_the_first_key_closes_a_running_server_and_taking_the_file_away_does_not_open_it(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=FAKE)
    async with keyed.running() as app:
        assert (await get(app, "/v1/models")).status == 200
        keyed.key("first")
        async with asyncio.timeout(20):
            while (await get(app, "/v1/models")).status == 200:
                await asyncio.sleep(0.05)
        keyed.file.revoke("first", 1.0)
        keyed.file.path.unlink()
        for _ in range(10):
            await asyncio.sleep(gate._LOOK_S)
            assert (await get(app, "/v1/models")).status == 401


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (0.0001, "1ms"), (0.12, "120ms"), (1, "1s"), (1.2, "2s"), (59.5, "1m0s"), (360, "6m0s"), (61, "1m1s")],
)
def test_durations_as_openai_writes_them(seconds: float, text: str) -> None:
    assert to_duration(seconds) == text
