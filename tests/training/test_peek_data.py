"""The data `peek` learns from: deterministic, true to its pixels, and well wrapped."""

from __future__ import annotations

import numpy as np
import pytest

from training.peek import batches, questions, tokens
from training.peek.draw import IGNORE, NOTHING, draw, label
from training.peek.world import CELLS, COLOURS, MAX_PIXELS, MIN_PIXELS, SHAPES, Scene, contrast, fit, sample_scene


def _scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, 6, 7) for _ in range(count)]


def test_same_seed_same_batch() -> None:
    one, two = (batches.joint_batch(np.random.default_rng(5), 4) for _ in range(2))
    for left, right in zip(one.pictures, two.pictures, strict=True):
        assert np.array_equal(left, right)
    for left_rows, right_rows in zip(one.rows, two.rows, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(left_rows, right_rows, strict=True))


def test_things_keep_apart_and_stand_out() -> None:
    for scene in _scenes(100):
        assert 1 <= len(scene.things) <= 4
        for index, thing in enumerate(scene.things):
            assert contrast(thing.rgb, scene.rgb) >= 80
            assert thing.colour != scene.background
            for other in scene.things[:index]:
                dx, dy = (thing.x - other.x) * scene.width, (thing.y - other.y) * scene.height
                assert np.hypot(dx, dy) > thing.radius_px + other.radius_px


def test_pixels_show_what_the_scene_says() -> None:
    """Median colours where a shape must be and where nothing is, over the wear of the drawing."""
    rng = np.random.default_rng(1)
    far = []
    for scene in _scenes(60, seed=2):
        pixels, labels = draw(scene, rng), label(scene)
        assert pixels.shape == (scene.height, scene.width, 3)
        empty = np.argwhere(labels.shape.reshape(scene.rows, scene.columns) == NOTHING)
        for row, column in empty[:3]:
            patch = pixels[row * 28 : row * 28 + 28, column * 28 : column * 28 + 28].reshape(-1, 3)
            far.append(contrast(tuple(np.median(patch, 0)), scene.rgb))
        for thing in scene.things:
            if thing.shape in ("circle", "square", "star", "cross", "diamond"):
                patch = pixels[round(thing.y * scene.height), round(thing.x * scene.width)]
                far.append(contrast(tuple(patch), thing.rgb))
    assert np.mean(np.array(far) < 45) > 0.97


def test_dense_labels_name_the_thing_on_the_token() -> None:
    for scene in _scenes(60, seed=3):
        labels = label(scene)
        assert {len(column) for column in labels} == {scene.rows * scene.columns}
        for thing in scene.things:
            if thing.shape in ("circle", "square") and thing.radius_px > 20:
                token = int(thing.y * scene.rows) * scene.columns + int(thing.x * scene.columns)
                assert SHAPES[labels.shape[token]] == thing.shape
                assert COLOURS[labels.colour[token]] == thing.colour
                assert labels.cell[token] == thing.cell
        assert all(labels.colour[labels.shape == NOTHING] == IGNORE)


@pytest.mark.parametrize("task", list(questions.TASKS))
def test_answers_follow_from_the_scene(task: str) -> None:
    rng = np.random.default_rng(4)
    allowed = {
        "colour": set(COLOURS), "background": set(COLOURS), "shape": set(SHAPES), "position": set(CELLS),
        "arrow": {"up", "down", "left", "right"}, "count": set("01234"), "exists": {"yes", "no"},
    }  # fmt: skip
    asked = [q for scene in _scenes(150, seed=5) if (q := questions.ask(rng, scene, task))]
    assert len({question.text for question in asked}) > min(60, len(asked) * 0.6)
    if task in allowed:
        assert {question.answer for question in asked} <= allowed[task]
    if task == "exists":
        assert 0.35 < np.mean([question.answer == "yes" for question in asked]) < 0.65


def test_positions_are_told_by_cells() -> None:
    for scene in _scenes(50, seed=6):
        for thing in scene.things:
            word = CELLS[thing.cell]
            assert ("top" in word) == (thing.y < 1 / 3)
            assert ("bottom" in word) == (thing.y >= 2 / 3)
            assert ("left" in word) == (thing.x < 1 / 3)
            assert ("right" in word) == (thing.x >= 2 / 3)


@pytest.mark.parametrize("size", [(56, 56), (640, 480), (480, 640), (4000, 1000), (1000, 4000), (150, 170)])
def test_every_size_fits_the_budget(size: tuple[int, int]) -> None:
    rows, columns = fit(*size)
    assert MIN_PIXELS <= rows * columns * 28 * 28 <= MAX_PIXELS


def test_capitals_and_digits_stay_single() -> None:
    tokenizer = tokens.load()
    for left, right in tokens.merges():
        piece = left + right
        assert not any(c.isdigit() for c in piece)
        assert sum(c.isupper() for c in piece.removeprefix("Ġ")) <= 1
    assert tokenizer.encode("HELLO42").tokens == list("HELLO42")


def test_every_byte_has_a_token_and_text_survives() -> None:
    tokenizer = tokens.load()
    assert tokenizer.get_vocab_size() == tokens.VOCABULARY
    for text in ("Wörld ☃ 你好 \t\n x", tokens.REFUSAL, "What colour is the star?"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_stand_where_the_config_says() -> None:
    tokenizer = tokens.load()
    ids = [tokenizer.token_to_id(name) for name in tokens.SPECIALS]
    assert ids == list(range(tokens.VOCABULARY - len(tokens.SPECIALS), tokens.VOCABULARY))
    assert tokenizer.encode("<|image_pad|>").ids == [tokens.IMAGE_PAD]


def test_packed_questions_start_where_the_picture_ends() -> None:
    asked = [questions.Question("colour", "What?", "red"), questions.Question("shape", "Which?", "ring")]
    row = batches.packed([batches.Picture(0, 4, 6)], asked)
    starts = [row.segments.index(segment) for segment in (1, 2)]
    assert row.positions[starts[0]] == row.positions[starts[1]]
    alone = batches.packed([batches.Picture(0, 4, 6)], asked[1:])
    assert row.ids[starts[1] :] == alone.ids[starts[0] :]
    assert row.positions[starts[1] :] == alone.positions[starts[0] :]


def test_targets_are_the_answer_and_its_end() -> None:
    question = questions.Question("position", "Where?", "top left")
    tokenizer = tokens.load()
    for row in (
        batches.packed([batches.Picture(0, 4, 4)], [question]),
        batches.text_first([batches.Picture(0, 4, 4)], question),
        batches.conversation(batches.Picture(0, 4, 4), [question]),
    ):
        learnt = [target for target in row.targets if target != IGNORE]
        assert learnt[-1] == tokens.IM_END
        assert tokenizer.decode(learnt) == "top left"
        assert [source for source in row.source if source >= 0] == list(range(16))
