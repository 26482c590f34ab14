"""Our engine answers like transformers in fp32, token for token, on a hundred pairs of pictures and question.

The goldens are made by `python -m tests.engines.reference.make_golden src/sightline/peek/model
tests/engines/reference/golden.json` (torch and transformers: tests/engines/reference/requirements.txt); here our
engine, in its child process, is held to them without torch.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import PIL
import pytest

from sightline.config import PEEK, ModelConfig
from tests.engines.reference.ours import Answer, Answers, Vocabulary, ask, prompt_ids
from tests.engines.reference.pairs import Pair, digest
from training.peek.evaluation.drawing import draw

CONFIG = ModelConfig(name=PEEK)
GOLDEN_FILE = Path(__file__).parent / "reference" / "golden.json"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(GOLDEN_FILE.read_text(encoding="utf-8"))
    return data


@pytest.fixture(scope="module")
def pairs(golden: dict[str, Any]) -> list[Pair]:
    return [Pair.from_json({key: p[key] for key in ("id", "kind", "turns", "scenes")}) for p in golden["pairs"]]


@pytest.fixture(scope="module")
def answers(pairs: list[Pair]) -> Answers:
    return ask(CONFIG, pairs)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(CONFIG.path)


def differences(golden: dict[str, Any], pixels: str, answers: list[Answer], vocabulary: Vocabulary) -> list[str]:
    """A line for every pair whose tokens differ: where, by how much the reference itself preferred its token, what."""
    lines = []
    for pair, answer in zip(golden["pairs"], answers, strict=True):
        expected = pair[pixels]
        tokens = vocabulary.bytes_of(expected["tokens"])
        if tokens != answer.tokens:
            common = zip(tokens, answer.tokens, strict=False)
            at = next((i for i, (a, b) in enumerate(common) if a != b), min(len(tokens), len(answer.tokens)))
            margin = expected["margins"][min(at, len(expected["margins"]) - 1)]
            lines.append(f"{pair['id']}: token {at}, margin {margin:.4f}: {answer.text!r}, not {expected['text']!r}")
    return lines


def test_the_goldens_are_of_the_shipped_weights(golden: dict[str, Any]) -> None:
    weights = (CONFIG.path / "model.safetensors").read_bytes()
    assert golden["weights"] == f"sha256:{hashlib.sha256(weights).hexdigest()}", "make the goldens anew"


def test_the_pairs_cover_what_they_should(golden: dict[str, Any]) -> None:
    pairs = golden["pairs"]
    assert len({pair["id"] for pair in pairs}) == 100
    assert sum(any(pair["resized"]) for pair in pairs) >= 30
    assert sum(bool(pair["resized"]) and not any(pair["resized"]) for pair in pairs) >= 5
    assert len({pair["ours"]["text"] for pair in pairs}) >= 20
    kinds = Counter(pair["kind"] for pair in pairs)
    assert min(kinds[k] for k in ("text-first", "two-pictures", "multi-turn", "system", "text-only")) >= 4


def test_pictures_are_drawn_as_when_the_goldens_were_made(golden: dict[str, Any], pairs: list[Pair]) -> None:
    for pair, expected in zip(pairs, golden["pairs"], strict=True):
        assert [digest(draw(scene)) for scene in pair.scenes] == expected["drawn"], pair.id


def test_pictures_are_served_as_when_the_goldens_were_made(golden: dict[str, Any], answers: Answers) -> None:
    for images, expected in zip(answers.images, golden["pairs"], strict=True):
        assert [[i.served_width, i.served_height] for i in images] == [s["size"] for s in expected["served"]]
        if PIL.__version__ == golden["made_with"]["pillow"]:  # another release may decode or resize a level apart
            assert [digest(i.pixels) for i in images] == [s["pixels"] for s in expected["served"]], expected["id"]


def test_prompts_have_the_reference_s_length_and_picture_tokens(golden: dict[str, Any], answers: Answers) -> None:
    for count, answer, pair in zip(answers.counts, answers.alone, golden["pairs"], strict=True):
        cells = tuple(frames * rows * columns // 4 for frames, rows, columns in pair["ours"]["grid"])
        assert count.image_tokens == answer.usage.image_tokens == cells, pair["id"]
        assert count.prompt_tokens == answer.usage.prompt_tokens == len(pair["ours"]["prompt_ids"]), pair["id"]


def test_prompt_ids_equal_the_reference_s(golden: dict[str, Any], pairs: list[Pair], answers: Answers) -> None:
    ours = prompt_ids(CONFIG, pairs, answers.images)
    for ids, pair in zip(ours, golden["pairs"], strict=True):
        assert ids == pair["ours"]["prompt_ids"], pair["id"]


def test_greedy_tokens_equal_the_reference_s_on_our_pixels(
    golden: dict[str, Any], answers: Answers, vocabulary: Vocabulary
) -> None:
    assert differences(golden, "ours", answers.alone, vocabulary) == []


def test_greedy_tokens_equal_the_reference_s_on_its_own_pixels(
    golden: dict[str, Any], answers: Answers, vocabulary: Vocabulary
) -> None:
    differ = differences(golden, "own", answers.alone, vocabulary)
    print(*differ, sep="\n")
    assert len(differ) <= 2, differ


def test_batched_equals_alone(golden: dict[str, Any], answers: Answers) -> None:
    together = {p["id"]: (a.tokens, a.reason) for p, a in zip(golden["pairs"], answers.together, strict=True)}
    assert together == {p["id"]: (a.tokens, a.reason) for p, a in zip(golden["pairs"], answers.alone, strict=True)}


def test_answers_end_where_the_reference_s_end(
    golden: dict[str, Any], answers: Answers, vocabulary: Vocabulary
) -> None:
    for pair, answer in zip(golden["pairs"], answers.alone, strict=True):
        ended = pair["ours"]["tokens"][-1] in vocabulary.special
        assert answer.reason == ("stop" if ended else "length"), pair["id"]
        assert answer.text.strip() == pair["ours"]["text"].strip(), pair["id"]


def test_log_probabilities_are_the_reference_s(
    golden: dict[str, Any], answers: Answers, vocabulary: Vocabulary
) -> None:
    for pair, answer in zip(golden["pairs"], answers.alone, strict=True):
        told = len(vocabulary.bytes_of(pair["ours"]["tokens"]))  # the end-of-sequence token is not told
        assert answer.logprobs == pytest.approx(pair["ours"]["logprobs"][:told], abs=1e-3), pair["id"]
