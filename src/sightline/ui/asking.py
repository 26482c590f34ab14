"""One question: sent, and its answer turn by turn as it comes. Knows no Gradio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from time import perf_counter

from starlette.requests import HTTPConnection

from sightline.client import AsyncAnswerStream, AsyncClient, ClientError
from sightline.client.pictures import to_url
from sightline.ui.conversation import Parameters, PictureFile, Turn, pictures_of, to_failure, to_request
from sightline.ui.snippets import to_snippets

_DRAW_S = 0.05
"""A page that is drawn again for every token of a quick model has no time for the next."""

Turns = tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Server:
    """A Sightline, as one reader of the page may use it."""

    client: AsyncClient
    url: str
    """Of its `/v1`, as the reader's machine reaches it."""
    with_key: bool


Connect = Callable[[HTTPConnection], Server]
"""From a browser's request to the server as that reader may use it."""


async def answer(server: Server, turns: Turns, asked: Turn, parameters: Parameters) -> AsyncGenerator[Turns, None]:
    """The conversation with the question, then each time there is more of its answer, last with all that is known.

    Closing it ends the engine's work. What goes wrong is the last turn's `failure`.
    """
    turns = (*turns, asked)
    code = to_snippets(to_request(turns, parameters, PictureFile), server.url, with_key=server.with_key)
    turn = replace(asked, seen=pictures_of(turns), snippets=code)
    started = perf_counter()
    yield (*turns[:-1], turn)
    stream: AsyncAnswerStream | None = None
    try:
        body = await asyncio.to_thread(to_request, turns, parameters, to_url)
        stream = await server.client.send(body)
        async with aclosing(_read(stream, turn, started)) as growing:
            async for turn in growing:
                yield (*turns[:-1], turn)
    except (ClientError, OSError) as error:
        failure = to_failure(error, None if stream is None else stream.request_id)
        yield (*turns[:-1], replace(turn, failure=failure, total_s=perf_counter() - started))


async def _read(stream: AsyncAnswerStream, turn: Turn, started: float) -> AsyncGenerator[Turn, None]:
    async with stream:
        drawn = 0.0
        async for piece in stream:
            now = perf_counter()
            first_s = now - started if turn.first_token_s is None else turn.first_token_s
            turn = replace(turn, text=turn.text + piece, first_token_s=first_s, total_s=now - started)
            if now - drawn >= _DRAW_S:
                drawn = now
                yield turn
        whole = await stream.answer()
        yield replace(turn, answer=whole, total_s=perf_counter() - started)
