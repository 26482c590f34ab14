"""Writes the goldens: what transformers, in fp32, answers to a hundred questions.

    python -m tests.engines.reference.make_golden MODEL_DIR OUT.json

Needs what `requirements.txt` beside this file names, and Sightline itself. For every pair the reference answers twice:
`ours` from the pixels that Sightline's own intake serves, `own` from the original file through its own processor.
`tests/engines/test_golden.py` holds our engine to the result without torch.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import transformers

from sightline.images.budget import CellBudget
from sightline.types import Image
from tests.engines.reference.pairs import MAX_TOKENS, Pair, committed_pairs, digest, serve
from tests.engines.reference.transformers_fp32 import Answer, Reference
from training.peek.evaluation.drawing import draw
from training.peek.evaluation.files import encode


def make_golden(model_dir: Path) -> dict[str, Any]:
    """The golden file's content for a checkpoint in Hugging Face format."""
    reference = Reference(model_dir)
    budget = CellBudget(*reference.budget)
    pairs = committed_pairs()
    served = asyncio.run(serve(pairs, budget))
    weights = hashlib.sha256((model_dir / "model.safetensors").read_bytes()).hexdigest()
    return {
        "made_with": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
        },
        "weights": f"sha256:{weights}",
        "max_tokens": MAX_TOKENS,
        "budget": {"cell": budget.cell, "min_pixels": budget.min_pixels, "max_pixels": budget.max_pixels},
        "pairs": [_golden(reference, pair, images) for pair, images in zip(pairs, served, strict=True)],
    }


def _golden(reference: Reference, pair: Pair, images: tuple[Image, ...]) -> dict[str, Any]:
    ours = own = None
    if images:
        ours = reference.see_pixels([image.pixels for image in images])
        own = reference.see_files([encode(scene) for scene in pair.scenes])
    return {
        **pair.to_json(),
        "drawn": [digest(draw(scene)) for scene in pair.scenes],
        "served": [{"size": [i.served_width, i.served_height], "pixels": digest(i.pixels)} for i in images],
        "resized": [
            (s.width, s.height) != (i.served_width, i.served_height) for s, i in zip(pair.scenes, images, strict=True)
        ],
        "ours": {"grid": ours.grid if ours else [], **_to_json(reference.answer(pair, ours))},
        "own": {"grid": own.grid if own else [], **_to_json(reference.answer(pair, own))},
    }


def _to_json(answer: Answer) -> dict[str, Any]:
    return {
        "prompt_ids": answer.prompt_ids,
        "tokens": answer.tokens,
        "text": answer.text,
        "logprobs": [round(value, 5) for value in answer.logprobs],
        "margins": [round(value, 5) for value in answer.margins],
    }


def write(golden: dict[str, Any], path: Path) -> None:
    """One pair a line, so that a diff shows which answers changed."""
    head = {key: value for key, value in golden.items() if key != "pairs"}
    lines = [json.dumps(pair, ensure_ascii=False) for pair in golden["pairs"]]
    text = json.dumps(head, indent=1)[:-2] + ',\n "pairs": [\n' + ",\n".join(lines) + "\n]}\n"
    assert json.loads(text) == json.loads(json.dumps(golden))
    path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engines.reference.make_golden", description=__doc__)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    golden = make_golden(options.model_dir)
    write(golden, options.out)
    pairs = golden["pairs"]
    print(f"{len(pairs)} pairs, {sum(any(p['resized']) for p in pairs)} with a resized picture")
    print(f"{len({p['ours']['text'] for p in pairs})} different answers")
    print(f"smallest margin {min(min(p['ours']['margins']) for p in pairs):.4f}")
    differ = [p["id"] for p in pairs if p["ours"]["tokens"] != p["own"]["tokens"]]
    print(f"{len(differ)} pairs where the reference's own pixels change its answer: {', '.join(differ) or 'none'}")


if __name__ == "__main__":
    main()
