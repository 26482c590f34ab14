"""LiteLLM's SDK as a client of ours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

litellm = pytest.importorskip("litellm", reason="make test-clients installs it")

pytestmark = pytest.mark.clients


def messages(question: str, *pictures: str) -> list[dict[str, Any]]:
    parts = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def asked(url: str, model: str, said: list[dict[str, Any]], **more: Any) -> Any:
    return litellm.completion(
        model=f"openai/{model}", api_base=f"{url}/v1", api_key="none", messages=said, temperature=0, **more
    )


def test_it_sees(url: str, red_circle: str, yellow_star: str) -> None:
    reply = asked(url, "peek", messages("What colour is the circle?", red_circle))
    assert reply.choices[0].message.content == "red"
    assert reply.usage.prompt_tokens_details.image_tokens > 0
    second = asked(url, "peek", messages("What colour is the shape in the second picture?", red_circle, yellow_star))
    assert second.choices[0].message.content == "yellow"


def test_streamed_and_asynchronous(url: str, yellow_star: str) -> None:
    chunks = asked(url, "peek", messages("What colour is the star?", yellow_star), stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "yellow"

    async def ask() -> str:
        reply = await litellm.acompletion(
            model="openai/peek",
            api_base=f"{url}/v1",
            api_key="none",
            messages=messages("What shape is it?", yellow_star),
            temperature=0,
        )
        return str(reply.choices[0].message.content)

    assert asyncio.run(ask()) == "star"


def test_tools(url: str) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    reply = asked(url, "fake", messages('[[fake: tool look {"at": "left"}]]'), tools=[tool])
    call = reply.choices[0].message.tool_calls[0]
    assert (call.function.name, call.function.arguments) == ("look", '{"at": "left"}')


def test_errors_keep_their_kind(url: str) -> None:
    with pytest.raises(litellm.NotFoundError, match="nobody"):
        asked(url, "nobody", messages("?"))
    with pytest.raises(litellm.BadRequestError, match="image"):
        asked(url, "peek", messages("?", "data:image/png;base64,AAAA"))


def test_through_the_dialects_of_others(url: str, red_circle: str) -> None:
    """LiteLLM's `anthropic` and `ollama_chat` providers, pointed at our dialects."""
    said = messages("What colour is the circle?", red_circle)
    anthropic = litellm.completion(
        model="anthropic/peek", api_base=url, api_key="none", messages=said, temperature=0, max_tokens=20
    )
    assert anthropic.choices[0].message.content == "red"
    ollama = litellm.completion(model="ollama_chat/peek", api_base=url, messages=said, temperature=0)
    assert ollama.choices[0].message.content == "red"
