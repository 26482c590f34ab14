"""Anthropic's own SDK against the real service and the fake engine, over a socket."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pydantic
import pytest
from anthropic.types import TextBlock, ThinkingBlock, ToolUseBlock
from PIL import Image as PILImage

from sightline.config import HttpLimits, ModelConfig, Settings
from tests.api.serving import server_of

MODEL = "org/fake"
SETTINGS = Settings(
    models=(
        ModelConfig(name=MODEL, engine="fake", max_concurrent=4),
        ModelConfig(name="narrow", engine="fake", max_concurrent=1, max_queue=0),
    ),
    http=HttpLimits(keepalive_s=0.1),
)
TOOL: Any = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with server_of(SETTINGS) as port:
        yield port


@pytest.fixture
def client(port: int) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=f"http://127.0.0.1:{port}", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def base64_png(width: int, height: int, colour: str) -> str:
    file = io.BytesIO()
    PILImage.new("RGB", (width, height), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def picture(width: int, height: int, colour: str, media_type: str = "image/png") -> dict[str, Any]:
    source = {"type": "base64", "media_type": media_type, "data": base64_png(width, height, colour)}
    return {"type": "image", "source": source}


def ask(*content: Any, **fields: Any) -> dict[str, Any]:
    blocks = [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]
    return {"model": MODEL, "max_tokens": 500, "messages": [{"role": "user", "content": blocks}], **fields}


def said(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if isinstance(block, TextBlock))


def test_the_model_sees_the_pictures_that_were_sent(client: anthropic.Anthropic) -> None:
    message = client.messages.create(
        **ask(picture(600, 300, "red"), "What is this?", picture(56, 56, "blue", media_type="image/jpeg"))
    )
    assert said(message) == "I see 2 pictures: 600x300 mostly red; 56x56 mostly blue. You said: What is this?"
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.output_tokens > 0
    assert message.id.startswith("msg_")
    assert message._request_id is not None


def test_a_data_url_is_a_url(client: anthropic.Anthropic) -> None:
    source = {"type": "url", "url": f"data:image/png;base64,{base64_png(64, 48, 'green')}"}
    assert "64x48 mostly green" in said(client.messages.create(**ask({"type": "image", "source": source})))


def test_counting_is_what_the_answer_then_says(client: anthropic.Anthropic) -> None:
    request = ask("hello", picture(300, 300, "red"), system="Be brief.", tools=[TOOL])
    counted = client.messages.count_tokens(**{k: v for k, v in request.items() if k != "max_tokens"})
    usage = client.messages.create(**request).usage
    assert usage.cache_read_input_tokens is not None
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens > 100


def test_a_stream_accumulates_to_the_whole_answer(client: anthropic.Anthropic) -> None:
    request = ask(picture(64, 48, "green"), "naïve 日本 👩‍👩‍👧")
    whole = client.messages.create(**request)
    with client.messages.stream(**request) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == said(whole) == said(final)
    assert final.stop_reason == whole.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens == whole.usage.input_tokens
    kinds = [event.type for event in client.messages.create(**request, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert set(kinds[2:-3]) == {"content_block_delta"}


def test_stops(client: anthropic.Anthropic) -> None:
    stopped = client.messages.create(**ask("[[fake: say one two three]]", stop_sequences=["two", "four"]))
    assert (said(stopped), stopped.stop_reason, stopped.stop_sequence) == ("one ", "stop_sequence", "two")
    cut = client.messages.create(**ask("[[fake: say one two three]]", max_tokens=2))
    assert (said(cut), cut.stop_reason) == ("one two", "max_tokens")
    full = client.messages.create(**ask("[[fake: length 3]]"))
    assert (full.stop_reason, full.usage.output_tokens) == ("model_context_window_exceeded", 3)
    refused = client.messages.create(**ask("[[fake: refuse]]"))
    assert refused.stop_reason == "refusal"
    assert said(refused)


def test_a_tool_is_called_and_its_result_comes_back_with_a_picture(client: anthropic.Anthropic) -> None:
    request = ask('[[fake: think hm]] [[fake: tool weather {"city": "Oslo"}]]', tools=[TOOL])
    called = client.messages.create(**request)
    assert called.stop_reason == "tool_use"
    (call,) = [block for block in called.content if isinstance(block, ToolUseBlock)]
    assert (call.name, call.input) == ("weather", {"city": "Oslo"})
    with client.messages.stream(**request) as stream:
        assert stream.get_final_message().content == called.content

    result = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": [{"type": "text", "text": "Look:"}, picture(90, 60, "yellow")],
    }
    turns = [*request["messages"], {"role": "assistant", "content": called.content}]
    turns.append({"role": "user", "content": [result, {"type": "text", "text": "So?"}]})
    answer = client.messages.create(**{**request, "messages": turns})
    assert said(answer) == "I see 1 picture: 90x60 mostly yellow. You said: So?"


class Seen(pydantic.BaseModel):
    colour: Literal["red"]
    sides: int


def test_an_answer_is_parsed_to_a_type(client: anthropic.Anthropic) -> None:
    message = client.messages.parse(**ask("hello"), output_format=Seen)
    assert isinstance(message.parsed_output, Seen)
    schema = {"type": "object", "properties": {"colour": {"type": "no such"}}}
    with pytest.raises(anthropic.BadRequestError, match=r"output_config\.format\.schema"):
        client.messages.create(**ask("hello", output_config={"format": {"type": "json_schema", "schema": schema}}))


@pytest.mark.parametrize(
    ("choice", "calls"),
    [({"type": "any"}, True), ({"type": "tool", "name": "weather"}, True), ({"type": "auto"}, False),
     ({"type": "none"}, False)],
)  # fmt: skip
def test_who_chooses_the_tool(client: anthropic.Anthropic, choice: Any, calls: bool) -> None:
    message = client.messages.create(**ask("hello", tools=[TOOL], tool_choice=choice))
    assert (message.stop_reason == "tool_use") is calls


def test_thoughts_come_in_blocks_of_their_own_and_may_go_back(client: anthropic.Anthropic) -> None:
    request = ask("[[fake: think so so]] [[fake: say yes]]", thinking={"type": "adaptive"})
    message = client.messages.create(**request)
    assert [block.type for block in message.content] == ["thinking", "text"]
    thought = message.content[0]
    assert isinstance(thought, ThinkingBlock)
    assert thought.thinking == "so so"
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens == 2
    with client.messages.stream(**request) as stream:
        streamed = stream.get_final_message()
    assert [(b.type, b.thinking) for b in streamed.content[:1] if b.type == "thinking"] == [("thinking", "so so")]
    assert said(streamed) == said(message) == "yes"
    turns = [*request["messages"], {"role": "assistant", "content": message.content}, {"role": "user", "content": "?"}]
    assert said(client.messages.create(**{**request, "messages": turns})).endswith("You said: ?")
    without = client.messages.create(**{**request, "thinking": {"type": "disabled"}})
    assert [block.type for block in without.content] == ["text"]


def test_models_are_listed_page_by_page(client: anthropic.Anthropic) -> None:
    assert [model.id for model in client.models.list(limit=1)] == [MODEL, "narrow"]
    model = client.models.retrieve(MODEL)
    assert (model.type, model.display_name, model.max_input_tokens) == ("model", MODEL, 8192)
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.models.retrieve("other")
    assert unknown.value.type == "not_found_error"


def test_errors_are_the_sdks_own_classes(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as unknown:
        client.messages.create(**ask("hello", model="other"))
    assert unknown.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\]\.content\[1\]\.source\.data"):
        client.messages.create(**ask("?", {"type": "image", "source": {"type": "base64", "data": "AAAA"}}))
    with pytest.raises(anthropic.BadRequestError, match="context") as long:
        client.messages.create(**ask("hello", max_tokens=100_000))
    assert long.value.type == "invalid_request_error"
    assert long.value.request_id == long.value.body["request_id"]  # type: ignore[index, call-overload]
    with pytest.raises(anthropic.InternalServerError) as broken:
        client.messages.create(**ask("[[fake: error 0]]"))
    assert (broken.value.status_code, broken.value.type) == (500, "api_error")


def test_a_fault_in_mid_stream_is_raised_after_what_was_said(client: anthropic.Anthropic) -> None:
    text = ""
    with (
        pytest.raises(anthropic.APIStatusError) as broken,
        client.messages.stream(**ask("[[fake: error 3]]")) as stream,
    ):
        for piece in stream.text_stream:
            text += piece
    assert text == "I see no"
    assert broken.value.type == "api_error"


def test_a_full_server_is_overloaded_and_says_when_to_come_back(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**ask("[[fake: slow 0.05]] hello", model="narrow")) as stream:
        next(iter(stream))
        with pytest.raises(anthropic.APIStatusError) as refused:
            client.messages.create(**ask("hello", model="narrow"))
    assert (refused.value.status_code, refused.value.type) == (529, "overloaded_error")
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 120


def test_pings_pass_unnoticed(client: anthropic.Anthropic) -> None:
    """Between two tokens that are far apart."""
    with client.messages.with_streaming_response.create(
        **ask("[[fake: slow 0.25]] [[fake: say a b]]"), stream=True
    ) as response:
        assert 'event: ping\ndata: {"type":"ping"}\n\n' in "".join(response.iter_text())
    assert said(client.messages.create(**ask("[[fake: slow 0.25]] [[fake: say a b]]"))) == "a b"


def test_the_asynchronous_client(port: int) -> None:
    async def talk() -> tuple[str, str, int]:
        async with anthropic.AsyncAnthropic(base_url=f"http://127.0.0.1:{port}", api_key="none") as client:
            request = ask(picture(64, 48, "red"), "hello")
            whole = await client.messages.create(**request)
            async with client.messages.stream(**request) as stream:
                text = "".join([piece async for piece in stream.text_stream])
            count = await client.messages.count_tokens(model=MODEL, messages=request["messages"])
            return said(whole), text, count.input_tokens

    whole, text, count = asyncio.run(talk())
    assert whole == text == "I see 1 picture: 64x48 mostly red. You said: hello"
    assert count > 0
