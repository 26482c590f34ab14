"""Greedy answers of llama.cpp are those of transformers: weights, keys and values in f32, no flash attention."""

from __future__ import annotations

import pytest

from tests.engines.llamacpp.agreement import GOLDEN, PAIRS, answers, differing
from tests.engines.reference.ours import Answers

pytestmark = [pytest.mark.engine_reference, pytest.mark.timeout(600)]

AGREE = 0.99


@pytest.fixture(scope="module")
def told() -> Answers:
    return answers("f32", kv_cache_type="f32", flash_attention=False)


@pytest.mark.parametrize("how", ["alone", "together"])
def test_greedy_tokens_are_the_reference_s(told: Answers, how: str) -> None:
    differ = differing(getattr(told, how))
    print(f"\n{len(PAIRS) - len(differ)}/{len(PAIRS)} equal, {how}", *differ, sep="\n")
    assert len(differ) <= (1 - AGREE) * len(PAIRS), differ


def test_prompts_cost_what_the_reference_s_do(told: Answers) -> None:
    for pair, answer, count in zip(GOLDEN, told.alone, told.counts, strict=True):
        assert count.prompt_tokens == len(pair["ours"]["prompt_ids"]), pair["id"]
        assert answer.usage.prompt_tokens == count.prompt_tokens, pair["id"]
        assert count.image_tokens == tuple(t * h * w // 4 for t, h, w in pair["ours"]["grid"]), pair["id"]


def test_logprobs_are_the_reference_s(told: Answers) -> None:
    apart = [
        abs(logprob - expected)
        for pair, answer in zip(GOLDEN, told.alone, strict=True)
        for logprob, expected in zip(answer.logprobs, pair["ours"]["logprobs"], strict=False)
    ]
    print(f"\n{len(apart)} log-probabilities, the furthest {max(apart):.4f} apart")
    assert max(apart) < 0.005
