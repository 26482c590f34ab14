"""Many requests at once, and what became of each."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any

import httpx
import openai
from PIL import Image

Outcome = str
"""`ok`, `error event` (an answer that had begun), `reset` (the connection), `hung`, or what else went wrong."""

Right = Callable[[str, int], bool]
"""Whether that is an answer to the request of this number."""

Kind = Callable[[httpx.AsyncClient, str, int, Right], Awaitable[Outcome]]

_PATIENCE_S = 90.0
"""Of a client, after which a request counts as hung: no model here takes a second."""


def said_again(text: str, number: int) -> bool:
    """By the fake engine."""
    return text.endswith(f" {number}")


async def run(
    url: str,
    requests: int,
    *,
    at_once: int,
    meanwhile: Callable[[], Awaitable[None]],
    model: str = "fake",
    kinds: Sequence[Kind] | None = None,
    right: Right = said_again,
) -> Counter[Outcome]:
    """Sends requests of each of `kinds` in turn (plain, streamed, with a picture, in another dialect); `meanwhile` is
    begun when a fifth has been answered, and has ended when this returns."""
    outcomes: Counter[Outcome] = Counter()
    numbers = iter(range(requests))
    each = kinds or (whole, streamed, pictured, responses)
    disturbed = asyncio.Event()

    async def disturb() -> None:
        await disturbed.wait()
        await meanwhile()

    async def client(http: httpx.AsyncClient) -> None:
        for number in numbers:
            try:
                outcome = await each[number % len(each)](http, model, number, right)
            except httpx.TimeoutException as error:
                outcome = f"hung {type(error).__name__}"
            except httpx.HTTPError as error:
                outcome = f"reset {type(error).__name__}"
            outcomes[outcome] += 1
            if outcomes.total() >= requests // 5:
                disturbed.set()

    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=url, timeout=_PATIENCE_S, limits=limits) as http,
        asyncio.TaskGroup() as group,
    ):
        group.create_task(disturb())
        for _ in range(at_once):
            group.create_task(client(http))
    return outcomes


def body(model: str, number: int) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": _words(number)}]}


def _words(number: int) -> str:
    return f"[[fake: say {'word ' * 10}{number}]]"


async def whole(http: httpx.AsyncClient, model: str, number: int, right: Right) -> Outcome:
    return _judge(await http.post("/v1/chat/completions", json=body(model, number)), number, right)


@cache
def _picture(number: int) -> dict[str, Any]:
    """One of a few, each larger than any model here is served."""
    file = io.BytesIO()
    Image.new("RGB", (900 + 10 * number, 700), ["red", "green", "blue"][number % 3]).save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


async def pictured(http: httpx.AsyncClient, model: str, number: int, right: Right) -> Outcome:
    content = [_picture(number % 8), {"type": "text", "text": _words(number)}]
    asked = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 64}
    return _judge(await http.post("/v1/chat/completions", json=asked), number, right)


def _judge(reply: httpx.Response, number: int, right: Right) -> Outcome:
    if reply.status_code != 200:
        return f"{reply.status_code} {reply.text[:300]}"
    return "ok" if right(reply.json()["choices"][0]["message"]["content"], number) else "wrong answer"


async def responses(http: httpx.AsyncClient, model: str, number: int, right: Right) -> Outcome:
    """In another dialect than all others."""
    reply = await http.post("/v1/responses", json={"model": model, "input": _words(number), "store": False})
    if reply.status_code != 200:
        return f"{reply.status_code} {reply.text[:300]}"
    text = reply.json()["output"][-1]["content"][0]["text"]
    return "ok" if right(text, number) else "wrong answer"


@cache
def _sdk(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url.rstrip('/')}/v1", api_key="none", timeout=_PATIENCE_S)


async def by_sdk(http: httpx.AsyncClient, model: str, number: int, right: Right) -> Outcome:
    """OpenAI's client, which tries twice more what failed on the server's side, or with its connection."""
    try:
        reply = await _sdk(str(http.base_url)).chat.completions.create(**body(model, number))
    except openai.APITimeoutError:
        return "hung by_sdk"
    except openai.APIError as error:
        return f"{type(error).__name__} {error}"
    return "ok" if right(reply.choices[0].message.content or "", number) else "wrong answer"


async def streamed(http: httpx.AsyncClient, model: str, number: int, right: Right) -> Outcome:
    text, failed = "", False
    async with http.stream("POST", "/v1/chat/completions", json={**body(model, number), "stream": True}) as reply:
        if reply.status_code != 200:
            return f"{reply.status_code} {(await reply.aread())[:300]!r}"
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                return "error event" if failed else "ok" if right(text, number) else "wrong answer"
            if line.startswith("data: "):
                chunk = json.loads(line[6:])
                failed = failed or "error" in chunk
                text += "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
    return "error event" if failed else "ended silently"
