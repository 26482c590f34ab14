"""A question of the page to a real server on the fake engine, over a socket and inside one process."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.types import ASGIApp

from sightline.api.app import create_app
from sightline.client import AsyncClient
from sightline.config import ModelConfig, Settings
from sightline.service import Service
from sightline.ui.asking import Server, Turns, answer
from sightline.ui.conversation import Parameters, Turn, to_shown
from sightline.ui.inside import Inside

pytestmark = pytest.mark.anyio
SCOPE = {"type": "http", "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000)}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def red(tmp_path: Path) -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (255, 0, 0)).save(file, "PNG")
    (tmp_path / "red.png").write_bytes(file.getvalue())
    return str(tmp_path / "red.png")


@asynccontextmanager
async def server(*wrapped: Callable[[ASGIApp], ASGIApp], **options: Any) -> AsyncIterator[Server]:
    settings = Settings(models=(ModelConfig(name="echo", engine="fake", options=options),))
    service = Service(settings)
    app = create_app(service, settings)
    for wrap in wrapped:
        app = wrap(app)
    await service.start(wait=True)
    url = "http://localhost:8000/v1"
    client = AsyncClient(url, api_key="none", max_retries=0, transport=Inside(app, SCOPE))
    try:
        yield Server(client, url, with_key=False)
    finally:
        await service.close()


async def ask(at: Server, turns: Turns, turn: Turn, **parameters: Any) -> list[Turns]:
    return [drawn async for drawn in answer(at, turns, turn, Parameters("echo", **parameters))]


async def test_an_answer_grows_and_ends_with_what_it_cost(red: str) -> None:
    async with server() as at:
        drawn = await ask(at, (), Turn("hello", (red,)))
        first, last = drawn[0][-1], drawn[-1][-1]
        assert (first.text, first.answer) == ("", None)
        assert last.answer is not None
        assert "64x48 mostly red" in last.text == last.answer.text
        assert last.answer.pictures[0].width == 64
        assert last.first_token_s is not None
        assert 0 < last.first_token_s <= last.total_s
        assert last.answer.request_id
        assert "./red.png" in last.snippets["curl"] if last.snippets else False
        followed = (await ask(at, drawn[-1], Turn("and now?")))[-1]
        assert len(followed) == 2
        assert "64x48 mostly red" in followed[-1].text, "the picture is still there"
        assert followed[-1].seen == (red,)


async def test_a_refused_address_is_told_in_the_servers_words_and_then_forgotten(red: str) -> None:
    async with server() as at:
        turns = (await ask(at, (), Turn("hello", ("http://10.0.0.1/x.png",))))[-1]
        failure = turns[-1].failure
        assert failure is not None
        assert (failure.status, failure.code) == (400, "invalid_image_url")
        assert failure.request_id
        assert "request `req_" in to_shown(turns)[1]["content"]
        assert "mostly red" in (await ask(at, turns, Turn("hello", (red,))))[-1][-1].text


async def test_a_file_that_is_gone_and_a_server_that_is_gone_are_told() -> None:
    async with server() as at:
        (turn,) = (await ask(at, (), Turn("hello", ("/nowhere/a.png",))))[-1]
        assert turn.failure is not None
        assert "No such file" in turn.failure.message
    away = Server(AsyncClient("http://127.0.0.1:9", max_retries=0), "http://127.0.0.1:9/v1", with_key=False)
    (turn,) = (await ask(away, (), Turn("hello")))[-1]
    assert turn.failure is not None
    assert "No server answers at http://127.0.0.1:9/v1" in turn.failure.message


async def test_leaving_an_answer_ends_the_engines_work() -> None:
    ended = asyncio.Event()

    def watched(app: ASGIApp) -> ASGIApp:
        async def watch(scope: Any, receive: Any, send: Any) -> None:
            try:
                await app(scope, receive, send)
            finally:
                ended.set()

        return watch

    async with server(watched) as at:
        async with aclosing(answer(at, (), Turn("[[fake: slow 0.1]] " + "word " * 500), Parameters("echo"))) as growing:
            async for turns in growing:
                if turns[-1].text:
                    break
        assert turns[-1].answer is None
        await asyncio.wait_for(ended.wait(), 5)


async def test_an_application_that_breaks_is_no_half_answer() -> None:
    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: {", "more_body": True})
        raise RuntimeError

    for app in (breaks, _raises):
        at = Server(AsyncClient("http://a", max_retries=0, transport=Inside(app, SCOPE)), "http://a", with_key=False)
        (turn,) = (await ask(at, (), Turn("hello")))[-1]
        assert turn.failure is not None
        assert turn.answer is None


async def _raises(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError
