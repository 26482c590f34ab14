"""The reference itself: makes the goldens anew, compares them with the committed ones, with our engine and our pixels.

Needs torch and transformers (requirements.txt beside this file); run by `make test-engines`.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sightline.config import PEEK, ModelConfig
from sightline.images.budget import CellBudget
from tests.engines.reference.ours import Vocabulary, ask, prompt_ids
from tests.engines.reference.pairs import Pair, committed_pairs, serve
from training.peek.evaluation.files import encode

pytestmark = [pytest.mark.engine_reference, pytest.mark.timeout(900)]

CONFIG = ModelConfig(name=PEEK)
COMMITTED = Path(__file__).parent / "golden.json"


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    from tests.engines.reference.make_golden import make_golden  # imports torch

    data: dict[str, Any] = json.loads(json.dumps(make_golden(CONFIG.path)))
    return data


def test_goldens_made_anew_equal_the_committed_ones(fresh: dict[str, Any]) -> None:
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert {k: fresh[k] for k in ("weights", "budget", "max_tokens")} == {
        k: committed[k] for k in ("weights", "budget", "max_tokens")
    }
    for new, old in zip(fresh["pairs"], committed["pairs"], strict=True):
        for key in ("id", "kind", "turns", "scenes", "drawn", "resized"):
            assert new[key] == old[key], (new["id"], key)
        for pixels in ("ours", "own"):
            for key in ("prompt_ids", "tokens", "text", "grid"):
                assert new[pixels][key] == old[pixels][key], (new["id"], pixels, key)
            assert new[pixels]["logprobs"] == pytest.approx(old[pixels]["logprobs"], abs=1e-3), new["id"]


def test_our_engine_equals_the_reference(fresh: dict[str, Any]) -> None:
    pairs = committed_pairs()
    answers, vocabulary = ask(CONFIG, pairs), Vocabulary(CONFIG.path)
    ids = prompt_ids(CONFIG, pairs, answers.images)
    assert ids == [expected["ours"]["prompt_ids"] for expected in fresh["pairs"]]
    for pixels, allowed in (("ours", 0), ("own", 2)):
        differ = [
            (pair.id, answer.text, expected[pixels]["text"])
            for pair, answer, expected in zip(pairs, answers.alone, fresh["pairs"], strict=True)
            if answer.tokens != vocabulary.bytes_of(expected[pixels]["tokens"])
        ]
        print(f"{len(pairs) - len(differ)}/{len(pairs)} equal on {pixels} pixels", *differ, sep="\n")
        assert len(differ) <= allowed, differ


def test_served_pixels_are_the_reference_processor_s(fresh: dict[str, Any]) -> None:
    """At most 1 level of 255 apart on 99.9 % of values, over all pictures and in each."""
    from tests.engines.reference.transformers_fp32 import Reference  # imports torch

    reference = Reference(CONFIG.path)
    pairs: list[Pair] = committed_pairs()
    served = asyncio.run(serve(pairs, CellBudget(*reference.budget)))
    apart: list[np.ndarray[Any, Any]] = []
    for pair, images in zip(pairs, served, strict=True):
        for scene, image in zip(pair.scenes, images, strict=True):
            theirs, ours = reference.resized(encode(scene)), reference.as_patches(image.pixels)
            assert theirs.shape == ours.shape, pair.id
            apart.append(np.abs(theirs.astype(np.float64) - ours).ravel())
    far = np.array([(picture > 1).mean() for picture in apart])
    pooled = np.concatenate(apart)
    print(
        f"{len(apart)} pictures, {pooled.size} values: {(pooled > 0).mean():.4%} differ, {(pooled > 1).mean():.4%} by"
    )
    print(f"more than 1 level; largest difference {pooled.max():.0f}; worst picture {far.max():.4%}")
    assert far.max() <= 0.001
