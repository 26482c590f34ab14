"""The network and its checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from training.peek import batches, checkpoint, model, train  # noqa: E402
from training.peek.questions import Question  # noqa: E402


@pytest.fixture(scope="module")
def peek() -> model.Peek:
    torch.manual_seed(0)
    return model.Peek().eval()


def test_mask_keeps_questions_apart() -> None:
    mask = model.block_mask(torch.tensor([[0, 0, 1, 1, 2]]))[0, 0]
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert ((mask == 0).int().tolist()) == expected


def test_a_packed_question_equals_the_same_question_alone(peek: model.Peek) -> None:
    asked = [Question("colour", "What colour is it?", "red"), Question("shape", "Which shape is it?", "ring")]
    pixels = np.random.default_rng(0).integers(0, 256, (1, 112, 168, 3), dtype=np.uint8)
    picture = batches.Picture(0, 4, 6)
    with torch.no_grad():
        features = peek.look([torch.from_numpy(pixels)])
        outputs = []
        for row in (batches.packed([picture], asked), batches.packed([picture], asked[1:])):
            rows = [torch.from_numpy(array) for array in batches.pad([row])]
            outputs.append(peek.answer(features, *rows[:4])[0])
    length = len(outputs[1]) - row.segments.count(0)
    assert torch.allclose(outputs[0][-length:], outputs[1][-length:], atol=1e-4)


def test_exported_halves_add_up_to_the_trained_patch_embedding(peek: model.Peek) -> None:
    shipped = checkpoint.weights(dict(peek.state_dict()))
    both = shipped["visual.patch_embed.proj.weight"].float()
    assert both.shape == (model.VISION_DIM, 3, 2, 14, 14)
    evaluated = train.rounded(dict(peek.state_dict()))["visual.patch_embed.proj.weight"]
    assert torch.equal(both.sum(2).flatten(1), evaluated)
    assert not any(name.startswith("auxiliary") for name in shipped)


def test_checkpoint_has_every_file(peek: model.Peek, tmp_path: Path) -> None:
    checkpoint.write(dict(peek.state_dict()), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json", "preprocessor_config.json", "tokenizer_config.json", "generation_config.json",
        "chat_template.jinja", "tokenizer.json", "model.safetensors",
    }  # fmt: skip
