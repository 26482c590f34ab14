"""LangChain and LiteLLM by Anthropic's and by Ollama's API."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.clients

HOW = ["anthropic", "ollama"]
TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}},
}


def langchain(how: str, url: str, model: str) -> Any:
    if how == "anthropic":
        client = pytest.importorskip("langchain_anthropic", reason="make test-clients installs it")
        return client.ChatAnthropic(base_url=url, api_key="none", model=model, max_tokens=64, max_retries=0)
    client = pytest.importorskip("langchain_ollama", reason="make test-clients installs it")
    return client.ChatOllama(base_url=url, model=model, temperature=0, num_ctx=4096, validate_model_on_init=True)


def question(text: str, picture: str) -> list[Any]:
    from langchain_core.messages import HumanMessage

    part = {"type": "image_url", "image_url": {"url": picture}}
    return [HumanMessage(content=[part, {"type": "text", "text": text}])]


@pytest.mark.parametrize("how", HOW)
def test_langchain_sees(url: str, red_circle: str, yellow_star: str, how: str) -> None:
    chat = langchain(how, url, "peek")
    reply = chat.invoke(question("What colour is the circle?", red_circle))
    assert reply.content == "red"
    assert reply.usage_metadata["input_tokens"] > reply.usage_metadata["output_tokens"] > 0
    pieces = list(chat.stream(question("What colour is the star?", yellow_star)))
    assert "".join(piece.text for piece in pieces) == "yellow"


@pytest.mark.parametrize("how", HOW)
def test_langchain_calls_a_tool_and_goes_on(url: str, how: str) -> None:
    from langchain_core.messages import HumanMessage, ToolMessage

    chat = langchain(how, url, "fake").bind_tools([TOOL])
    said = [HumanMessage('[[fake: tool look {"at": "left"}]]')]
    reply = chat.invoke(said)
    (call,) = reply.tool_calls
    assert (call["name"], call["args"]) == ("look", {"at": "left"})
    after = chat.invoke([*said, reply, ToolMessage("a cat", tool_call_id=call["id"]), HumanMessage("So?")])
    assert after.content == "I see no pictures. You said: So?"


def test_langchain_embeds(url: str) -> None:
    client = pytest.importorskip("langchain_ollama", reason="make test-clients installs it")
    embeddings = client.OllamaEmbeddings(base_url=url, model="fake")
    (one, other), same = (
        embeddings.embed_documents(["a red circle", "tax returns"]),
        embeddings.embed_query("a red circle"),
    )
    assert one == pytest.approx(same)
    assert one != pytest.approx(other)


@pytest.mark.parametrize("provider", ["anthropic", "ollama_chat", "ollama"])
def test_litellm_sees(url: str, red_circle: str, yellow_star: str, provider: str) -> None:
    litellm = pytest.importorskip("litellm", reason="make test-clients installs it")

    def ask(text: str, picture: str, **more: Any) -> Any:
        parts = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": text}]
        messages = [{"role": "user", "content": parts}]
        return litellm.completion(
            f"{provider}/peek", messages, api_base=url, api_key="none", max_tokens=64, temperature=0, **more
        )

    whole = ask("What colour is the circle?", red_circle)
    assert whole.choices[0].message.content == "red"
    assert whole.choices[0].finish_reason == "stop"
    pieces = ask("What colour is the star?", yellow_star, stream=True)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "yellow"
