"""Greedy answers of llama.cpp are those of transformers: keys and values in f32, no flash attention, weights as f32."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sightline.config import PEEK, ModelConfig
from sightline.engines.llamacpp.convert import convert
from tests.engines.reference.ours import Answer, Answers, Vocabulary, ask
from tests.engines.reference.pairs import Pair

pytestmark = [pytest.mark.engine_reference, pytest.mark.timeout(600)]

GOLDEN = json.loads((Path(__file__).parent.parent / "reference" / "golden.json").read_text(encoding="utf-8"))
PAIRS = [Pair.from_json(pair) for pair in GOLDEN["pairs"]]
MODEL = ModelConfig(name=PEEK).path
AGREE = 0.99


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    directory = tmp_path_factory.mktemp("gguf")
    convert(MODEL, directory, "f32")
    options = {"kv_cache_type": "f32", "flash_attention": False, "threads": 1, "slots": 4}
    return ask(ModelConfig(name=PEEK, engine="llamacpp", source=str(directory), options=options), PAIRS)


def differing(answers: list[Answer]) -> list[str]:
    vocabulary = Vocabulary(MODEL)
    return [
        f"{pair['id']}: {answer.text!r}, not {pair['ours']['text']!r}; margins {pair['ours']['margins']}"
        for pair, answer in zip(GOLDEN["pairs"], answers, strict=True)
        if answer.tokens != vocabulary.bytes_of(pair["ours"]["tokens"])
    ]


@pytest.mark.parametrize("how", ["alone", "together"])
def test_greedy_tokens_are_the_reference_s(answers: Answers, how: str) -> None:
    differ = differing(getattr(answers, how))
    print(f"\n{len(PAIRS) - len(differ)}/{len(PAIRS)} equal, {how}", *differ, sep="\n")
    assert len(differ) <= (1 - AGREE) * len(PAIRS), differ


def test_prompts_cost_what_the_reference_s_do(answers: Answers) -> None:
    for pair, answer, count in zip(GOLDEN["pairs"], answers.alone, answers.counts, strict=True):
        assert count.prompt_tokens == len(pair["ours"]["prompt_ids"]), pair["id"]
        assert answer.usage.prompt_tokens == count.prompt_tokens, pair["id"]
        assert count.image_tokens == tuple(t * h * w // 4 for t, h, w in pair["ours"]["grid"]), pair["id"]


def test_logprobs_are_the_reference_s(answers: Answers) -> None:
    apart = [
        abs(told - expected)
        for pair, answer in zip(GOLDEN["pairs"], answers.alone, strict=True)
        for told, expected in zip(answer.logprobs, pair["ours"]["logprobs"], strict=False)
    ]
    print(f"\n{len(apart)} log-probabilities, the furthest {max(apart):.4f} apart")
    assert max(apart) < 0.005
