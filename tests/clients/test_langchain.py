"""LangChain's `ChatOpenAI` as a client of ours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

langchain_openai = pytest.importorskip("langchain_openai", reason="make test-clients installs it")

pytestmark = pytest.mark.clients


def chat(url: str, model: str, **more: Any) -> Any:
    return langchain_openai.ChatOpenAI(base_url=f"{url}/v1", api_key="none", model=model, temperature=0, **more)


def question(text: str, *pictures: str) -> list[Any]:
    from langchain_core.messages import HumanMessage

    parts = [{"type": "image_url", "image_url": {"url": picture}} for picture in pictures]
    return [HumanMessage(content=[*parts, {"type": "text", "text": text}])]


def test_it_sees(url: str, red_circle: str) -> None:
    reply = chat(url, "peek").invoke(question("What colour is the circle?", red_circle))
    assert reply.content == "red"
    assert reply.usage_metadata["input_tokens"] > 0
    assert reply.response_metadata["finish_reason"] == "stop"


def test_its_own_picture_parts(url: str, red_circle: str) -> None:
    from langchain_core.messages import HumanMessage

    data = red_circle.partition(",")[2]
    part = {"type": "image", "source_type": "base64", "data": data, "mime_type": "image/png"}
    said = HumanMessage(content=[part, {"type": "text", "text": "What colour is the circle?"}])
    assert chat(url, "peek").invoke([said]).content == "red"


def test_streamed_and_asynchronous(url: str, yellow_star: str) -> None:
    asked = question("What colour is the star?", yellow_star)
    pieces = list(chat(url, "peek", stream_usage=True).stream(asked))
    assert "".join(piece.content for piece in pieces) == "yellow"
    assert any(piece.usage_metadata for piece in pieces)
    assert asyncio.run(chat(url, "peek").ainvoke(asked)).content == "yellow"


def test_tools_and_structured_output(url: str) -> None:
    from langchain_core.messages import HumanMessage

    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    reply = chat(url, "fake").bind_tools([tool]).invoke([HumanMessage('[[fake: tool look {"at": "left"}]]')])
    assert [(call["name"], call["args"]) for call in reply.tool_calls] == [("look", {"at": "left"})]
    structured = chat(url, "fake").with_structured_output(None, method="json_mode")
    assert isinstance(structured.invoke([HumanMessage("JSON, please")]), dict)


def test_batch_and_errors(url: str, red_circle: str, yellow_star: str) -> None:
    asked = [question("What shape is it?", picture) for picture in (red_circle, yellow_star)]
    assert [reply.content for reply in chat(url, "peek").batch(asked)] == ["circle", "star"]
    import openai

    with pytest.raises(openai.NotFoundError):
        chat(url, "nobody").invoke("?")
