"""How many of the hundred pairs llama.cpp answers like transformers in fp32, by what it computes with.

    python -m tests.engines.llamacpp.agreement

Prints a line for each type of weights and of keys and values: pairs whose greedy tokens are equal, and those that are
not, with the margin that the reference itself had at the first token that differs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sightline.config import PEEK, ModelConfig
from sightline.engines.llamacpp.convert import WEIGHT_TYPES, WeightType, convert
from tests.engines.reference.ours import Answer, Answers, Vocabulary, ask
from tests.engines.reference.pairs import Pair

MODEL = ModelConfig(name=PEEK).path
GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "reference" / "golden.json").read_text(encoding="utf-8")
)["pairs"]
PAIRS = [Pair.from_json(pair) for pair in GOLDEN]
KV_CACHE = {"f32": False, "f16": None, "q8_0": True}
"""Types, and whether with flash attention: never, where llama.cpp chooses it, always because it must be."""


def answers(weights: WeightType, **options: object) -> Answers:
    """Of every pair, alone and together with the others."""
    with TemporaryDirectory() as directory:
        convert(MODEL, Path(directory), weights)
        both = {"threads": 1, "slots": 4, **options}
        return ask(ModelConfig(name=PEEK, engine="llamacpp", source=directory, options=both), PAIRS)


def differing(answers: Sequence[Answer]) -> list[str]:
    """A line for every pair whose tokens are not the reference's, on the pixels that we serve."""
    vocabulary, lines = Vocabulary(MODEL), []
    for pair, answer in zip(GOLDEN, answers, strict=True):
        expected = pair["ours"]
        tokens = vocabulary.bytes_of(expected["tokens"])
        if answer.tokens != tokens:
            common = zip(tokens, answer.tokens, strict=False)
            at = next((i for i, (a, b) in enumerate(common) if a != b), min(len(tokens), len(answer.tokens)))
            margin = expected["margins"][min(at, len(expected["margins"]) - 1)]
            lines.append(f"{pair['id']}: {answer.text!r}, not {expected['text']!r} (margin {margin:.3f})")
    return lines


def main() -> None:
    for weights, (kv_cache, flash_attention) in product(WEIGHT_TYPES, KV_CACHE.items()):
        told = answers(weights, kv_cache_type=kv_cache, flash_attention=flash_attention)
        alone, together = differing(told.alone), differing(told.together)
        equal = f"{len(PAIRS) - len(alone)} alone, {len(PAIRS) - len(together)} together"
        print(f"weights {weights}, keys and values {kv_cache}: {equal} of {len(PAIRS)} equal", *alone, sep="\n    ")


if __name__ == "__main__":
    main()
