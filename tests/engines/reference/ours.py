"""Our engine's answers to the pairs, through the same door as the server's: a supervised child process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sightline.config import ModelConfig
from sightline.engines import Engine, EngineInfo, open_engine
from sightline.engines.openvino.checkpoint import read_facts
from sightline.engines.openvino.prompt import PromptBuilder
from sightline.engines.openvino.vision import read_preprocessor
from sightline.types import EngineRequest, FinishReason, Image, TextDelta, TokenCount, TokenLogprob, Usage
from tests.engines.reference.pairs import Pair, serve


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    tokens: tuple[bytes, ...]
    """Each token's bytes, without the end-of-sequence token: a vocabulary holds no two tokens with the same bytes."""
    logprobs: tuple[float, ...]
    reason: FinishReason
    usage: Usage


@dataclass(frozen=True, slots=True)
class Answers:
    info: EngineInfo
    images: list[tuple[Image, ...]]
    counts: list[TokenCount]
    alone: list[Answer]
    """Each pair with nothing else running."""
    together: list[Answer]
    """All pairs sent at once. No caches are shared with `alone`: they belong to another tenant."""


def ask(config: ModelConfig, pairs: Sequence[Pair]) -> Answers:
    """Starts the engine, asks every pair alone and all together, and stops it."""
    return asyncio.run(_ask(config, pairs))


async def _ask(config: ModelConfig, pairs: Sequence[Pair]) -> Answers:
    engine = open_engine(config)
    await engine.start()
    try:
        assert engine.info.vision is not None
        images = await serve(pairs, engine.info.vision)

        def requests(tenant: str) -> list[EngineRequest]:
            return [p.to_request(i, model=config.name, tenant=tenant) for p, i in zip(pairs, images, strict=True)]

        together = await asyncio.gather(*(_answer(engine, request) for request in requests("together")))
        alone = [await _answer(engine, request) for request in requests("alone")]
        counts = [await engine.count_tokens(request) for request in requests("alone")]
        return Answers(engine.info, images, counts, alone, together)
    finally:
        await engine.close()


async def _answer(engine: Engine, request: EngineRequest) -> Answer:
    text, told = "", list[TokenLogprob]()
    async with aclosing(engine.generate(request)) as events:
        async for event in events:
            if isinstance(event, TextDelta):
                text += event.text
                told += event.logprobs
            else:
                finish = event
    tokens, logprobs = tuple(bytes(t.bytes) for t in told), tuple(t.logprob for t in told)
    return Answer(text, tokens, logprobs, finish.reason, finish.usage)  # type: ignore[union-attr]  # ends with Finish


def prompt_ids(config: ModelConfig, pairs: Sequence[Pair], images: Sequence[tuple[Image, ...]]) -> list[list[int]]:
    """The prompts that the engine's child process builds: its own builder, run here, where its tokens can be seen."""
    facts = read_facts(config.path)
    builder = PromptBuilder(config.path, read_preprocessor(config.path, facts.vision), facts.image_token_id)
    requests = [pair.to_request(own, model=config.name) for pair, own in zip(pairs, images, strict=True)]
    return [builder.build(request).tokens for request in requests]


class Vocabulary:
    """Token ids to bytes, read from a byte-level BPE `tokenizer.json` (GPT-2's byte alphabet)."""

    def __init__(self, model_dir: Path) -> None:
        data: dict[str, Any] = json.loads((model_dir / "tokenizer.json").read_text(encoding="utf-8"))
        alphabet = _byte_alphabet()
        self._bytes = {i: bytes(alphabet[c] for c in token) for token, i in data["model"]["vocab"].items()}
        self.special = {token["id"] for token in data["added_tokens"] if token["special"]}

    def bytes_of(self, tokens: Sequence[int]) -> tuple[bytes, ...]:
        """Each token's bytes; special tokens are left out."""
        return tuple(self._bytes[token] for token in tokens if token not in self.special)


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte. Source: `bytes_to_unicode` in OpenAI's GPT-2 `encoder.py`."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
