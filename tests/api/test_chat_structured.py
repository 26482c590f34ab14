"""Structured output and tools over HTTP, with OpenAI's SDK: on the engine without a model, which keeps to schemas."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest
from PIL import Image as PILImage

from sightline.config import ModelConfig, Settings
from tests.api.serving import sdk, server_of

MODEL = "fake"
SETTINGS = Settings(models=(ModelConfig(name=MODEL, engine="fake"),))


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    with server_of(SETTINGS) as port:
        yield sdk(port)


def look(*colours: str) -> Any:
    parts: list[dict[str, Any]] = [{"type": "text", "text": "What is it?"}]
    for colour in colours:
        file = io.BytesIO()
        PILImage.new("RGB", (64, 64), colour).save(file, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    return [{"role": "user", "content": parts}]


class Seen(pydantic.BaseModel):
    colour: Literal["red", "green", "blue"]
    corners: int
    remarks: list[str]


class Paint(pydantic.BaseModel):
    """Paints it."""

    colour: Literal["red", "blue"]


def test_an_answer_is_parsed_into_the_client_s_own_class(client: openai.OpenAI) -> None:
    for colour in ("blue", "red"):
        completion = client.chat.completions.parse(model=MODEL, messages=look(colour), response_format=Seen)
        parsed = completion.choices[0].message.parsed
        assert parsed is not None
        assert parsed.colour == colour
        assert completion.choices[0].finish_reason == "stop"


def test_streamed_and_in_several_choices(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=look("blue"), response_format=Seen) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed is not None
    assert final.choices[0].message.parsed.colour == "blue"
    schema: Any = {"name": "x", "strict": True, "schema": {"enum": ["a", "b"]}}
    several = client.chat.completions.create(
        model=MODEL, messages=look(), n=3, response_format={"type": "json_schema", "json_schema": schema}
    )
    assert [choice.message.content for choice in several.choices] == ['"a"'] * 3


def test_a_tool_is_called_and_its_result_is_heard(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(Paint, name="paint")]
    completion = client.chat.completions.parse(
        model=MODEL, messages=look("blue"), tools=tools, tool_choice="required", parallel_tool_calls=False
    )
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls or ()
    assert call.function.parsed_arguments == Paint(colour="blue")
    history = [
        *look("blue"),
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "It is blue now."},
        {"role": "user", "content": "Thanks."},
    ]
    said = client.chat.completions.create(model=MODEL, messages=history, tools=tools, tool_choice="none")
    assert "You said: Thanks." in (said.choices[0].message.content or "")


def test_a_call_in_a_stream_says_what_the_whole_says(client: openai.OpenAI) -> None:
    tools = [openai.pydantic_function_tool(Paint, name="paint")]
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=look("red"), tools=tools, tool_choice="required", stream=True
        )
    )
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or ()]
    assert pieces[0].id
    assert pieces[0].type == "function"
    assert pieces[0].function is not None
    assert (pieces[0].index, pieces[0].function.name) == (0, "paint")
    assert all(piece.id is None for piece in pieces[1:])
    arguments = "".join(piece.function.arguments or "" for piece in pieces if piece.function)
    assert json.loads(arguments) == {"colour": "red"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"type": "object", "properties": {"a": {"type": "strong"}}}, "'properties.a.type'"),
    ({"$ref": "https://example.com/x.json"}, "nothing is fetched"),
    ({"type": "string", "pattern": "(?=a)"}, "look-around"),
    ({"not": {}}, "not"),
    ({"type": "array", "minItems": 10**9}, "no answer has room"),
    ({"description": "x" * 70_000}, "64 KiB"),
]


@pytest.mark.parametrize(("schema", "said"), UNUSABLE, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("stream", [False, True])
def test_a_schema_that_cannot_be_used_is_named(
    client: openai.OpenAI, schema: dict[str, Any], said: str, stream: bool
) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=look(), response_format=wanted, stream=stream)
    assert caught.value.code == "invalid_json_schema"
    assert caught.value.param == "response_format.json_schema.schema"
    assert said in caught.value.message


def test_a_tool_s_schema_is_named_by_its_place(client: openai.OpenAI) -> None:
    good = {"type": "function", "function": {"name": "good"}}
    bad = {"type": "function", "function": {"name": "bad", "parameters": {"type": "zork"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=look(), tools=[good, bad])  # type: ignore[list-item]
    assert (caught.value.code, caught.value.param) == ("invalid_json_schema", "tools[1].function.parameters")
