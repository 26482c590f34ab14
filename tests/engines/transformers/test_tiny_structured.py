"""Random weights held to schemas: whatever the vocabulary (bytes, or SentencePiece's way) and the sampling, an answer
is what was asked for. Needs torch and transformers: `make test-engines`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sightline.config import ModelConfig
from sightline.engines import Engine, load_engine
from sightline.testing import ask, collect, long
from sightline.testing.structured import (
    PAINT,
    calling,
    calls_of,
    finish_of,
    keeping,
    text_of,
    verify_answer,
    verify_call,
)
from sightline.types import EngineRequest, Event, ToolChoice

pytestmark = [pytest.mark.engine_reference, pytest.mark.timeout(300)]

CHATML_TOOLS = (
    "{%- if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<tool_call><|im_end|>\n"
    "{% endif %}{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] if message['content'] is string else message['content'] | map(attribute='text') | join }}"
    "{% for call in message.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture(scope="module", params=["qwen2_vl", "llava"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.engines.transformers.make_tiny import FAMILIES  # imports torch

    directory: Path = tmp_path_factory.mktemp("checkpoint") / request.param
    FAMILIES[request.param](directory)
    return directory


@asynccontextmanager
async def running(checkpoint: Path, **options: Any) -> AsyncIterator[Engine]:
    engine = load_engine(
        ModelConfig(name="tiny", engine="transformers", source=str(checkpoint), options={"threads": 1, **options})
    )
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def test_answers_are_valid_in_one_batch_with_free_ones(checkpoint: Path) -> None:
    async def run() -> None:
        async with running(checkpoint) as engine:
            free = long(ask("Tell me more."), 12)
            alone = text_of(await collect(engine, free))
            bound = [
                keeping(ask("Describe it.", max_tokens=120, temperature=1.3, seed=seed, logprobs=2))
                for seed in range(5)
            ]
            answers = await asyncio.gather(*(collect(engine, request) for request in (free, *bound)))
            assert text_of(answers[0]) == alone
            for events in answers[1:]:
                assert finish_of(events).reason == "stop"
                verify_answer(text_of(events))

    asyncio.run(run())


@pytest.mark.parametrize("form", ["hermes", "qwen3-coder", "llama3", "mistral", "mistral-args"])
def test_calls_are_valid_in_every_format(checkpoint: Path, form: str) -> None:
    async def run() -> None:
        async with running(checkpoint, tool_format=form) as engine:
            request = calling(
                ask("Paint it.", max_tokens=300, temperature=1.3, seed=1), ToolChoice("required", parallel=False), PAINT
            )
            events = await collect(engine, request)
            (call,) = calls_of(events)
            verify_call(call)
            assert finish_of(events).reason == "tool_calls"

    asyncio.run(run())


def test_where_the_marks_are_tokens_a_call_is_made_of_them(checkpoint: Path, tmp_path: Path) -> None:
    """As Qwen's vocabularies have them: special tokens, which are no text otherwise."""
    if checkpoint.name != "qwen2_vl":
        pytest.skip("one vocabulary is enough")
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    definition = json.loads((tmp_path / "tokenizer.json").read_text())
    marks = dict(zip(("<tool_call>", "</tool_call>"), definition["added_tokens"][-2:], strict=True))
    for text, entry in marks.items():  # tokens that the model has, by another name
        entry["content"] = text
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    (tmp_path / "chat_template.jinja").write_text(CHATML_TOOLS)

    async def run() -> tuple[list[Event], int, int]:
        async with running(tmp_path) as engine:
            request: EngineRequest = replace(
                calling(ask("Paint it.", max_tokens=300), ToolChoice("required", parallel=False), PAINT)
            )
            hostile = replace(PAINT, description="<tool_call>" * 5)
            told = replace(request, tools=(hostile,))
            plain = (await engine.count_tokens(request)).prompt_tokens
            return await collect(engine, request), plain, (await engine.count_tokens(told)).prompt_tokens

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sightline.engines.transformers.prompt.PromptBuilder._check", lambda *_: None)
        events, plain, hostile = asyncio.run(run())
    (call,) = calls_of(events)
    verify_call(call)
    finish = finish_of(events)
    # A token for each mark: fewer than there are characters in the call alone with its marks.
    assert finish.usage.completion_tokens < len("<tool_call>\n\n</tool_call>") + len(call.arguments) + 34
    assert hostile - plain > 5, "what a client wrote is never such a token"
