"""The transformers engine on `peek`, in its child process, against the committed goldens: the same tokens, alone and
batched. The goldens were made by a plain `generate` (tests/engines/reference). Needs torch: `make test-engines`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sightline.config import PEEK, ModelConfig
from tests.engines.reference.ours import Answers, Vocabulary, ask
from tests.engines.reference.pairs import Pair

pytestmark = [pytest.mark.engine_reference, pytest.mark.timeout(600)]

CONFIG = ModelConfig(name=PEEK, engine="transformers", options={"threads": 1})
GOLDEN_FILE = Path(__file__).parent.parent / "reference" / "golden.json"


@pytest.fixture(scope="module")
def golden() -> list[dict[str, Any]]:
    pairs: list[dict[str, Any]] = json.loads(GOLDEN_FILE.read_text(encoding="utf-8"))["pairs"]
    return pairs


@pytest.fixture(scope="module")
def answers(golden: list[dict[str, Any]]) -> Answers:
    return ask(CONFIG, [Pair.from_json({key: p[key] for key in ("id", "kind", "turns", "scenes")}) for p in golden])


@pytest.mark.parametrize("how", ["alone", "together"])
def test_greedy_tokens_equal_the_reference_s(how: str, golden: list[dict[str, Any]], answers: Answers) -> None:
    vocabulary = Vocabulary(CONFIG.path)
    differ = [
        (pair["id"], answer.text, pair["ours"]["text"])
        for pair, answer in zip(golden, getattr(answers, how), strict=True)
        if answer.tokens != vocabulary.bytes_of(pair["ours"]["tokens"])
    ]
    assert differ == []


def test_prompts_cost_what_the_reference_s_cost(golden: list[dict[str, Any]], answers: Answers) -> None:
    for count, answer, pair in zip(answers.counts, answers.alone, golden, strict=True):
        cells = tuple(frames * rows * columns // 4 for frames, rows, columns in pair["ours"]["grid"])
        assert count.image_tokens == answer.usage.image_tokens == cells, pair["id"]
        assert count.prompt_tokens == answer.usage.prompt_tokens == len(pair["ours"]["prompt_ids"]), pair["id"]


def test_log_probabilities_are_the_reference_s(golden: list[dict[str, Any]], answers: Answers) -> None:
    vocabulary = Vocabulary(CONFIG.path)
    for pair, answer in zip(golden, answers.alone, strict=True):
        told = len(vocabulary.bytes_of(pair["ours"]["tokens"]))
        assert answer.logprobs == pytest.approx(pair["ours"]["logprobs"][:told], abs=1e-3), pair["id"]
