"""The server in the page's own process: every message of an answer is read, by whatever reader."""

from __future__ import annotations

import asyncio
from typing import Any

import httpcore2 as http
import pytest

from sightline.ui.inside import Inside

pytestmark = pytest.mark.anyio
SCOPE = {"type": "http", "scheme": "http", "client": None, "server": None}
REQUEST = http.Request("GET", "http://localhost/v1/models", headers=[], content=b"")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def speaks(pieces: int, *, breaks: bool = False) -> Any:
    """An application that says numbers, as quickly as it is let."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
        for number in range(pieces):
            await send({"type": "http.response.body", "body": b"%d " % number, "more_body": True})
        if breaks:
            raise RuntimeError
        await send({"type": "http.response.body", "body": b""})

    return app


async def read(response: http.Response, said: list[bytes], *, slowly: bool) -> None:
    try:
        async for piece in response.stream:  # type: ignore[union-attr]
            said.append(piece)
            for _ in range(5 * slowly):  # the application is let run ahead as far as it may
                await asyncio.sleep(0)
    finally:
        await response.aclose()


@pytest.mark.parametrize("slowly", [False, True])
async def test_no_word_is_lost_however_many_come_at_once(slowly: bool) -> None:
    for pieces in range(50):
        response = await Inside(speaks(pieces), SCOPE).handle_async_request(REQUEST)
        for _ in range(100 * slowly):
            await asyncio.sleep(0)
        assert response.status == 200
        said: list[bytes] = []
        await read(response, said, slowly=slowly)
        assert said == [b"%d " % number for number in range(pieces)]


@pytest.mark.parametrize("slowly", [False, True])
async def test_an_answer_that_breaks_off_is_read_up_to_there(slowly: bool) -> None:
    for pieces in range(50):
        response = await Inside(speaks(pieces, breaks=True), SCOPE).handle_async_request(REQUEST)
        said: list[bytes] = []
        with pytest.raises(http.RemoteProtocolError, match="in the middle"):
            await read(response, said, slowly=slowly)
        assert said == [b"%d " % number for number in range(pieces)]


async def test_an_application_runs_no_further_ahead_than_a_little() -> None:
    said = 0

    async def talks(scope: Any, receive: Any, send: Any) -> None:
        nonlocal said
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            said += 1
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    response = await Inside(talks, SCOPE).handle_async_request(REQUEST)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert said < 100, "a page that does not read holds it up"
    await response.aclose()
