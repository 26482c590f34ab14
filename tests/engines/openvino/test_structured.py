"""The embedded model, held to a schema: what it says is valid, and what it saw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from sightline.config import PEEK, ModelConfig
from sightline.engines import Engine, load_engine
from sightline.errors import SchemaInvalid
from sightline.testing import ask, collect, long
from sightline.testing.structured import calls_of, text_of
from sightline.types import Finish, Image, ResponseFormat, TextDelta, Tool, ToolCallDelta, ToolChoice

COLOURS = ["red", "green", "blue", "yellow"]
PICTURES = Path(__file__).parent.parent.parent.parent / "examples" / "pictures"
COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": COLOURS}},
    "required": ["colour"],
    "additionalProperties": False,
}

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not (ModelConfig(name=PEEK).path / "openvino_language_model.xml").exists(), reason="no model"),
]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[Engine]:
    engine = load_engine(ModelConfig(name=PEEK, options={"context_length": 768}))
    await engine.start()
    yield engine
    await engine.close()


def shown(engine: Engine, name: str) -> Image:
    assert engine.info.vision is not None
    with PILImage.open(PICTURES / name) as file:
        upright = file.convert("RGB")
    size = engine.info.vision.serve(*upright.size)[:2]
    pixels = np.ascontiguousarray(np.asarray(upright.resize(size, PILImage.Resampling.BICUBIC)))
    return Image(pixels, f"sha256:{name}", *upright.size, "image/png", 1000)


def schema(value: dict[str, Any]) -> ResponseFormat:
    return ResponseFormat("json_schema", value, strict=True)


async def test_the_colour_that_it_saw_stands_in_the_object(engine: Engine) -> None:
    for name, colour in (("blue-square.jpg", "blue"), ("yellow-star.png", "yellow")):
        request = ask(shown(engine, name), "What colour is the shape?", max_tokens=40)
        events = await collect(engine, replace(request, response_format=schema(COLOUR)))
        assert json.loads(text_of(events)) == {"colour": colour}
        assert isinstance(events[-1], Finish)
        assert events[-1].reason == "stop"


async def test_a_tool_is_called_by_a_model_that_has_never_heard_of_tools(engine: Engine) -> None:
    paint = Tool("paint", "", COLOUR, strict=True)
    one = ToolChoice("required", ("paint",), parallel=False)
    request = ask(shown(engine, "yellow-star.png"), "What colour is the shape?", max_tokens=90)
    events = await collect(engine, replace(request, tools=(paint,), tool_choice=one))
    (call,) = calls_of(events)
    assert json.loads(call.arguments)["colour"] in COLOURS
    assert call.id.startswith("call_")
    deltas = [event for event in events if isinstance(event, ToolCallDelta)]
    assert len(deltas) > 5, "arguments come as they are written"
    finish = events[-1]
    assert isinstance(finish, Finish)
    assert finish.reason == "tool_calls"
    assert 0 < sum(delta.num_tokens for delta in deltas) <= finish.usage.completion_tokens


async def test_a_stop_string_ends_a_bound_answer_too(engine: Engine) -> None:
    request = ask("What colour?", max_tokens=40, stop=('": "',))
    events = await collect(engine, replace(request, response_format=schema(COLOUR)))
    assert text_of(events) == '{"colour'


async def test_log_probabilities_are_one_where_nothing_else_could_come(engine: Engine) -> None:
    request = ask("What colour?", max_tokens=40, logprobs=5)
    only = schema({"const": "blue"})
    told = [
        told
        for event in await collect(engine, replace(request, response_format=only))
        if isinstance(event, TextDelta)
        for told in event.logprobs
    ]
    assert b"".join(bytes(t.bytes) for t in told).startswith(b'"blue"')
    assert all(t.logprob == 0.0 and len(t.top) == 1 for t in told)


async def test_a_schema_that_cannot_be_used_harms_nobody(engine: Engine) -> None:
    hostile = schema({"allOf": [{"type": "string", "pattern": f"a{{{i}}}"} for i in range(2, 200)]})
    free = asyncio.create_task(collect(engine, long(ask("Tell me more."), 200)))
    with pytest.raises(SchemaInvalid):
        await collect(engine, replace(ask("a"), response_format=hostile))
    assert isinstance((await free)[-1], Finish)
