"""The network and its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

from training.peek import batches, card, checkpoint, log, model, recipe, studio, tasks, train  # noqa: E402
from training.peek.wording import Question  # noqa: E402


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


def test_it_stays_small() -> None:
    parameters = sum(value.numel() for value in checkpoint.weights(dict(model.Peek().state_dict())).values())
    assert 5 * parameters < 38.5e6  # safetensors and fp16 IR at two bytes each, int8 IR at one, with room for the rest


def test_dense_heads_have_a_class_for_every_label(peek: model.Peek) -> None:
    rng = np.random.default_rng(0)
    for shape in ((4, 14), (14, 3), (6, 8)):
        scenes = [make(rng, *shape) for make, _ in (*tasks.DENSE.values(), *tasks.PICTURES.values())]
        labels = studio.draw_group(rng, scenes).labels._asdict()
        assert set(labels) == set(model.AUXILIARY)
        assert all(column.max() < model.AUXILIARY[name] for name, column in labels.items())


def test_an_exam_marks_an_answer_wrong_by_its_own_tokens(peek: model.Peek) -> None:
    paper = studio.make_exam(np.random.default_rng(1), 12)
    marks = train.grade(peek, [paper])
    assert {"colour", "can't see", "text first", "several"} <= set(marks)
    assert max(marks.values()) < 0.5  # untrained
    assert all(set(sheet) <= set(rows.segments[row]) for rows, sheets in zip(paper.batch.rows, paper.tasks, strict=True)
               for row, sheet in enumerate(sheets))  # fmt: skip


@pytest.mark.timeout(400)
@pytest.mark.parametrize("producers", [0, 2])
def test_a_short_run_learns_and_exports(tmp_path: Path, producers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute from nothing, in two calls: the loss falls in both stages, and the checkpoint is whole."""
    monkeypatch.setattr(train, "_EXAMS", (1, 8))
    monkeypatch.setattr(train, "_LOG_EVERY", 2)
    usual = recipe.recipe_for(1.0, "cpu")
    short = replace(usual, workers=1, producers=producers, groups=1, pictures=4, dense_share=0.4)
    short = replace(short, warm_steps=4, muon_rate=5e-3, hold_until=0.9)
    train.run(short, recipe.Span(tmp_path, False, 0.5))
    halfway = torch.load(tmp_path / train.CHECKPOINT, weights_only=True)["step"]
    train.run(short, recipe.Span(tmp_path, True, 5.0))
    lines = log.read(tmp_path)
    dense = [line["loss"] for line in lines if line.get("stage") == "dense"]
    joint = [line["answers"] for line in lines if line.get("stage") == "joint"]
    assert np.mean(dense[-2:]) < 0.97 * dense[0]
    assert np.mean(joint[-2:]) < 0.8 * joint[0]
    state = torch.load(tmp_path / train.CHECKPOINT, weights_only=True)
    assert state["step"] > halfway > 0
    checkpoint.write(state["average"], tmp_path / "model")
    assert f"seed {short.seed}" in card.card(lines)


def test_the_exported_checkpoint_answers_in_transformers_as_here(peek: model.Peek, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    checkpoint.write(dict(peek.state_dict()), tmp_path)
    reference = transformers.Qwen2VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours = model.Peek().eval()
    ours.load_state_dict(train.rounded(dict(peek.state_dict())))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 112, 168, 3), dtype=np.uint8))
    row = batches.text_first([batches.Picture(0, 4, 6)], Question("colour", "What colour is it?", "red"))
    rows = batches.Rows(*(torch.from_numpy(array) for array in batches.pad([row])))
    with torch.no_grad():
        hidden = ours.answer(ours.look([pixels]), rows.ids, rows.source, rows.positions, rows.segments)
        theirs = reference(
            input_ids=rows.ids,
            attention_mask=torch.ones_like(rows.ids),
            position_ids=rows.positions.transpose(0, 1),
            pixel_values=_patches(ours, pixels),
            image_grid_thw=torch.tensor([[1, 8, 12]]),
        ).logits
    assert torch.allclose(ours.logits(hidden), theirs, atol=2e-3)


def _patches(ours: model.Peek, pixels: torch.Tensor) -> torch.Tensor:
    """[patches, 3 * 2 * 14 * 14] in merge order, a still picture filling both temporal halves."""
    x = (pixels.float() - ours.visual.mean) / ours.visual.std
    _, height, width, _ = pixels.shape
    x = x.view(height // 28, 2, 14, width // 28, 2, 14, 3).permute(0, 3, 1, 4, 6, 2, 5)
    return x.reshape(-1, 3, 1, 14, 14).expand(-1, -1, 2, -1, -1).reshape(-1, 3 * 2 * 14 * 14)
