"""Four architectures, random weights: the engine answers as a plain `model.generate` of transformers does, greedily, on
the same pixels, alone and batched, whatever the pictures and texts.

The reference shares nothing with the engine but the checkpoint: it renders, expands, tokenises and generates with
transformers' own processor and loop. Needs torch and transformers: `make test-engines`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import numpy as np
import pytest
from PIL import Image as PILImage

from sightline.config import ModelConfig
from sightline.engines import load_engine
from sightline.engines.answer import Vocabulary
from sightline.engines.transformers import TransformersEngine
from sightline.errors import InvalidRequest
from sightline.images.budget import VisionBudget
from sightline.types import EngineRequest, Finish, Image, Message, SamplingParams, Text, TextDelta

pytestmark = [pytest.mark.engine_reference, pytest.mark.timeout(300)]

FAMILIES = ("qwen2_vl", "llava", "llava_next", "internvl")
only_qwen = pytest.mark.parametrize("checkpoint", ["qwen2_vl"], indirect=True)
"""The family that takes pictures at the very size at which they are served; the others' processors cut tiles."""
MAX_TOKENS = 16
Parts = tuple[str | int, ...]
"""Of a user message; a number is a picture of `SIZES`."""

SIZES = ((56, 56), (140, 84), (60, 200), (333, 111))
"""Of the original pictures, in pixels."""
ASKED: tuple[Parts, ...] = (
    (0, "What is in the picture?"),
    (1, "What is in the picture?"),
    (2, "What is in the picture?"),
    (3, "Sí, 世界? the\n\nthing  in"),
    (0, 2, "Which is larger?"),
    (2, 0, "Which is larger?"),
    ("no picture at all",),
    (1, 1, 3, "a"),
)


@dataclass(frozen=True)
class Answered:
    prompt_tokens: int
    tokens: list[bytes]
    """What each token stands for, the end excepted."""
    ended: bool


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.engines.transformers.make_tiny import FAMILIES as WRITERS  # imports torch

    directory: Path = tmp_path_factory.mktemp("checkpoint") / request.param
    WRITERS[request.param](directory)
    return directory


@pytest.fixture(scope="module")
def config(checkpoint: Path) -> ModelConfig:
    return ModelConfig(name="tiny", engine="transformers", source=str(checkpoint), options={"threads": 1})


@pytest.fixture(scope="module")
def pictures(checkpoint: Path) -> list[Image]:
    from sightline.images.checkpoint import read_budget

    return [drawn(number, size, read_budget(checkpoint)) for number, size in enumerate(SIZES)]


def drawn(number: int, size: tuple[int, int], budget: VisionBudget) -> Image:
    """Coarse noise, served as the intake would serve it."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    served = budget.serve(*size)[:2]
    pixels = np.asarray(PILImage.fromarray(coarse).resize(served, PILImage.Resampling.NEAREST))
    return Image(np.ascontiguousarray(pixels), f"sha256:{number}", *size, "image/png", 9)


def to_request(parts: Parts, pictures: Sequence[Image]) -> EngineRequest:
    content = tuple(Text(part) if isinstance(part, str) else pictures[part] for part in parts)
    sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, logprobs=0)
    return EngineRequest("r", "tiny", (Message[Image]("user", content),), sampling)


@pytest.fixture(scope="module")
def reference(checkpoint: Path, pictures: list[Image]) -> list[Answered]:
    import torch
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    model.eval()
    processor = own_processor(checkpoint)
    vocabulary = Vocabulary(checkpoint, model.config.get_text_config().vocab_size, frozenset())
    answers = []
    for parts in ASKED:
        content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in parts]
        text = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        seen = [PILImage.fromarray(pictures[part].pixels) for part in parts if isinstance(part, int)]
        inputs = processor(images=seen or None, text=[text], return_tensors="pt")
        length = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            out = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
        tokens = out[0, length:].tolist()
        ended = tokens[-1] == processor.tokenizer.eos_token_id
        answers.append(
            Answered(length, [vocabulary.spelling(token) for token in tokens[: -1 if ended else None]], ended)
        )
    return answers


def own_processor(checkpoint: Path) -> Any:
    """transformers' own class, made of its parts: `AutoProcessor` wants torchvision for videos that nobody sends."""
    from transformers import AutoImageProcessor, AutoTokenizer
    from transformers.processing_utils import ProcessorMixin

    settings = json.loads((checkpoint / "processor_config.json").read_text())
    module = importlib.import_module(f"transformers.models.{checkpoint.name}.processing_{checkpoint.name}")
    processor = getattr(module, settings.pop("processor_class"))
    parts: dict[str, Any] = {
        "image_processor": AutoImageProcessor.from_pretrained(checkpoint),
        "tokenizer": AutoTokenizer.from_pretrained(checkpoint),
    }
    if "video_processor" in processor.get_attributes():
        parts["video_processor"] = None
    with mock.patch.object(ProcessorMixin, "check_argument_for_proper_class"):
        return processor(**parts, **settings)


async def ask(config: ModelConfig, requests: Sequence[EngineRequest], *, together: bool) -> list[Answered]:
    engine = load_engine(config)
    await engine.start()

    async def answer(request: EngineRequest) -> Answered:
        *deltas, finish = [event async for event in engine.generate(request)]
        assert isinstance(finish, Finish)
        assert (await engine.count_tokens(request)).prompt_tokens == finish.usage.prompt_tokens
        told = [bytes(t.bytes) for delta in deltas if isinstance(delta, TextDelta) for t in delta.logprobs]
        return Answered(finish.usage.prompt_tokens, told, finish.reason == "stop")

    try:
        if together:
            return list(await asyncio.gather(*map(answer, requests)))
        return [await answer(request) for request in requests]
    finally:
        await engine.close()


@pytest.mark.parametrize("together", [False, True], ids=["alone", "batched"])
def test_answers_are_those_of_generate(
    together: bool, config: ModelConfig, pictures: list[Image], reference: list[Answered]
) -> None:
    requests = [to_request(parts, pictures) for parts in ASKED]
    assert asyncio.run(ask(config, requests, together=together)) == reference


def test_different_pictures_get_different_answers(reference: list[Answered]) -> None:
    """Of the reference, and so by the test above of the engine: what is compared there is no constant."""
    first, second, third, *_ = (answer.tokens for answer in reference)
    assert first != second != third != first
    assert reference[4].tokens != reference[5].tokens, "the order of pictures matters"
    assert len({token for answer in reference for token in answer.tokens}) > 20


@only_qwen
def test_served_pictures_are_not_resized_again(checkpoint: Path, pictures: list[Image]) -> None:
    from sightline.engines.transformers.pictures import Pictures

    seen = Pictures(checkpoint, trust_remote_code=False)
    for picture in pictures:
        untouched = seen.processor.image_processor(
            images=[PILImage.fromarray(picture.pixels)], do_resize=False, return_tensors="pt"
        )
        given = seen.tensors([picture])
        assert given["pixel_values"].equal(untouched["pixel_values"])
        assert given["image_grid_thw"].tolist() == [[1, picture.served_height // 14, picture.served_width // 14]]


@only_qwen
def test_a_picture_that_a_request_made_smaller_than_the_checkpoint_s_least_stays_so(checkpoint: Path) -> None:
    """Processors would enlarge it again."""
    from sightline.engines.transformers.pictures import Pictures

    seen = Pictures(checkpoint, trust_remote_code=False)
    narrowed = seen.budget.narrowed(max_pixels=1)
    picture = drawn(0, (300, 100), narrowed)
    assert picture.served_width * picture.served_height < seen.budget.min_pixels, "this proves nothing"
    assert seen.expansions([picture]) == [seen.placeholder * narrowed.serve(300, 100).tokens]
    assert seen.tensors([picture])["image_grid_thw"].tolist() == [
        [1, picture.served_height // 14, picture.served_width // 14]
    ]


@pytest.mark.parametrize("tokens", [None, 40])
@pytest.mark.parametrize("max_pixels", [None, 3_000, 20_000])
def test_however_a_request_narrows_the_budget_its_pictures_are_taken(
    checkpoint: Path, max_pixels: int | None, tokens: int | None
) -> None:
    from sightline.engines.transformers.pictures import Pictures

    seen = Pictures(checkpoint, trust_remote_code=False)
    narrowed = seen.budget.narrowed(max_pixels=max_pixels)
    narrowed = narrowed if tokens is None else narrowed.at_most(tokens) or narrowed
    for size in ((30, 30), (900, 640), (640, 900), (700, 40), (57, 333)):
        served = narrowed.serve(*size)
        (expansion,) = seen.expansions([drawn(0, size, narrowed)])
        assert len(seen.processor.tokenizer.tokenize(expansion)) == served.tokens


@only_qwen
def test_a_picture_at_another_size_is_refused(config: ModelConfig) -> None:
    odd = Image(np.zeros((57, 31, 3), np.uint8), "sha256:odd", 31, 57, "image/png", 1)
    with pytest.raises(InvalidRequest, match="must reach this model at"):
        asyncio.run(ask(config, [to_request((0,), [odd])], together=False))


PLAIN = "Is 1 + 1 = 2?\n  Sí, 世界"


def test_plain_text_is_gone_on_with_as_by_transformers(checkpoint: Path, config: ModelConfig) -> None:
    """Without a template: the tokens of transformers' tokenizer, the token that begins every text included."""
    import torch
    from transformers import AutoModelForImageTextToText

    model: Any = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    model.eval()
    tokenizer = own_processor(checkpoint).tokenizer
    inputs = tokenizer(PLAIN, return_tensors="pt")
    made = model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
    prompt, tokens = inputs["input_ids"][0].tolist(), made[0, inputs["input_ids"].shape[1] :].tolist()
    vocabulary = Vocabulary(checkpoint, model.config.get_text_config().vocab_size, frozenset())

    async def run() -> tuple[list[tuple[bytes, int]], str]:
        engine = load_engine(config)
        await engine.start()
        try:
            told = []
            for given in (PLAIN, tuple(prompt)):
                request = replace(to_request((), ()), messages=(), prompt=given)
                events = [event async for event in engine.generate(request)]
                finish = events[-1]
                assert isinstance(finish, Finish)
                spelled = b"".join(bytes(p.bytes) for e in events if isinstance(e, TextDelta) for p in e.logprobs)
                told.append((spelled, finish.usage.prompt_tokens))
            special = replace(to_request((), ()), messages=(), prompt=(*prompt, min(vocabulary.added)))
            with pytest.raises(InvalidRequest) as refused:
                await engine.count_tokens(special)
            return told, str(refused.value.param)
        finally:
            await engine.close()

    told, param = asyncio.run(run())
    expected = b"".join(vocabulary.spelling(t) for t in tokens if t != tokenizer.eos_token_id)
    assert told == [(expected, len(prompt))] * 2
    assert param == "prompt"


@only_qwen
def test_loading_tells_how_far_it_is(checkpoint: Path, config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = TransformersEngine(config)
    told: list[float] = []
    monkeypatch.setattr(engine, "_count", told.append)
    asyncio.run(engine.start())
    asyncio.run(engine.close())
    assert told == sorted(told)
    assert len(told) > 10, "a step for each tensor"
    assert told[-1] == 1.0


@only_qwen
def test_a_hubs_model_is_served_from_the_copy_on_this_machine(
    checkpoint: Path, config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--org--tiny"
    for directory in ("snapshots", "refs"):
        (repository / directory).mkdir(parents=True)
    (repository / "snapshots" / "abc").symlink_to(checkpoint)
    (repository / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    named = msgspec.structs.replace(config, source="org/tiny")
    request = to_request(("no picture at all",), ())
    assert asyncio.run(ask(named, [request], together=False)) == asyncio.run(ask(config, [request], together=False))
