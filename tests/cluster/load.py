"""Many requests at once, and what became of each."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any

import httpx
import openai

Outcome = str
"""`ok`, `error event` (an answer that had begun), `reset` (the connection), or what else went wrong."""

Kind = Callable[[httpx.AsyncClient, str, int], Awaitable[Outcome]]


async def run(
    url: str,
    requests: int,
    *,
    at_once: int,
    meanwhile: Callable[[], Awaitable[None]],
    model: str = "fake",
    kinds: Sequence[Kind] | None = None,
) -> Counter[Outcome]:
    """Sends requests of each of `kinds` in turn (plain and streamed); `meanwhile` is begun when a fifth has been
    answered."""
    outcomes: Counter[Outcome] = Counter()
    numbers = iter(range(requests))
    each = kinds or (whole, streamed)
    disturbed = asyncio.Event()

    async def disturb() -> None:
        await disturbed.wait()
        await meanwhile()

    async def client(http: httpx.AsyncClient) -> None:
        for number in numbers:
            try:
                outcome = await each[number % len(each)](http, model, number)
            except httpx.HTTPError as error:
                outcome = f"reset {type(error).__name__}"
            outcomes[outcome] += 1
            if outcomes.total() >= requests // 5:
                disturbed.set()

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=90, limits=limits) as http, asyncio.TaskGroup() as group:
        group.create_task(disturb())
        for _ in range(at_once):
            group.create_task(client(http))
    return outcomes


def body(model: str, number: int) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": f"[[fake: say {'word ' * 10}{number}]]"}]}


async def whole(http: httpx.AsyncClient, model: str, number: int) -> Outcome:
    reply = await http.post("/v1/chat/completions", json=body(model, number))
    if reply.status_code != 200:
        return f"{reply.status_code} {reply.text[:300]}"
    return "ok" if reply.json()["choices"][0]["message"]["content"].endswith(f" {number}") else "wrong answer"


@cache
def _sdk(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{url.rstrip('/')}/v1", api_key="none")


async def by_sdk(http: httpx.AsyncClient, model: str, number: int) -> Outcome:
    """OpenAI's client, which tries twice more what failed on the server's side, or with its connection."""
    try:
        reply = await _sdk(str(http.base_url)).chat.completions.create(**body(model, number))
    except openai.APIError as error:
        return f"{type(error).__name__} {error}"
    return "ok" if reply.choices[0].message.content.endswith(f" {number}") else "wrong answer"


async def streamed(http: httpx.AsyncClient, model: str, number: int) -> Outcome:
    text, failed = "", False
    async with http.stream("POST", "/v1/chat/completions", json={**body(model, number), "stream": True}) as reply:
        if reply.status_code != 200:
            return f"{reply.status_code} {(await reply.aread())[:300]!r}"
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                return "error event" if failed else "ok" if text.endswith(f" {number}") else "wrong answer"
            if line.startswith("data: "):
                chunk = json.loads(line[6:])
                failed = failed or "error" in chunk
                text += "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))
    return "error event" if failed else "ended silently"
