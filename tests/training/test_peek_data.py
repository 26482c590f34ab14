"""The data `peek` learns from: deterministic, true to its pixels, balanced, and well wrapped."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
from fontTools.ttLib import TTFont

from training.peek import (
    album,
    batches,
    lettering,
    producers,
    questions,
    reading,
    relations,
    talk,
    tasks,
    tokens,
    unseen,
)
from training.peek.batches import Picture, Turn
from training.peek.charts import sample_chart
from training.peek.draw import BLANK, IGNORE, NOTHING, draw, label
from training.peek.lettering import FONTS, boxes, sample_text
from training.peek.shapes import sample_shapes
from training.peek.studio import Size, Studio, is_askable
from training.peek.tasks import Mixture
from training.peek.wording import ORDINALS, Question, Scope
from training.peek.world import CELLS, CHARACTERS, COLOURS, MAX_PIXELS, MIN_PIXELS, SHAPES, Scene, contrast, fit

SMALL = Size(groups=2, pictures=4, fresh=0.5, pool=4)


def _scenes(count: int, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_shapes(rng, 6, 7) for _ in range(count)]


@cache
def _asked() -> dict[str, list[tuple[Scene, Question]]]:
    """Questions by task, as the mixture asks them."""
    rng, mixture = np.random.default_rng(11), Mixture()
    found: dict[str, list[tuple[Scene, Question]]] = {}
    for _ in range(1500):
        scene = tasks.sample(rng, tasks.PICTURES, 6, 8)
        for _ in range(3):
            question = mixture.ask(rng, scene)
            found.setdefault(question.task, []).append((scene, question))
    return found


def test_same_seed_same_batch() -> None:
    one, two = (Studio(np.random.default_rng(5), SMALL, Mixture()).batch(joint=True) for _ in range(2))
    for left, right in zip(one.pictures, two.pictures, strict=True):
        assert np.array_equal(left, right)
    for left_rows, right_rows in zip(one.rows, two.rows, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(left_rows, right_rows, strict=True))


def test_things_keep_apart_and_stand_out() -> None:
    for scene in _scenes(100):
        assert 1 <= len(scene.things) <= 5
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
    assert np.mean(np.array(far) < 45) > 0.96


def test_text_is_drawn_where_its_boxes_are() -> None:
    """Ink inside every character's box, none far from all of them."""
    rng = np.random.default_rng(2)
    inked = []
    for _ in range(50):
        scene = sample_text(rng, 6, 8)
        pixels = draw(scene, rng).astype(int)
        ink = (
            np.abs(pixels - np.array(scene.rgb)).sum(-1)
            > 0.4 * np.abs(np.array(scene.lines[0].rgb) - np.array(scene.rgb)).sum()
        )
        outside = ink.copy()
        for box in (box for line in scene.lines for box in boxes(line)):
            top, bottom, left, right = (round(v) for v in (box.top, box.bottom, box.left, box.right))
            inked.append(ink[max(0, top) : bottom + 1, max(0, left) : right + 1].any())
            outside[max(0, top - 9) : bottom + 10, max(0, left - 9) : right + 10] = False
        inked.append(outside.mean() < 0.02)
    assert np.mean(inked) > 0.98


def test_text_fits_its_picture_and_is_legible() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        scene = sample_text(rng, *((4, 12), (12, 4), (6, 8), (4, 4))[rng.integers(4)])
        assert len({line.y for line in scene.lines}) == len(scene.lines)
        assert min(line.cap_px for line in scene.lines) >= lettering.SMALLEST_CAP_PX - 1e-6
        for box in (box for line in scene.lines for box in boxes(line)):
            assert box.left > -2
            assert box.right < scene.width + 2
            assert box.top > -4
            assert box.bottom < scene.height + 4


def test_bars_are_as_high_as_their_values() -> None:
    rng = np.random.default_rng(4)
    for _ in range(100):
        scene = sample_chart(rng, 6, 8)
        assert scene.chart is not None
        bars, printed = scene.chart.bars, [line.text for line in scene.lines]
        by_value, by_height = (
            sorted(bars, key=lambda bar: bar.value),
            sorted(bars, key=lambda bar: scene.chart.base - bar.top),
        )
        assert [bar.value for bar in by_value] == [bar.value for bar in by_height]
        assert Counter(printed) == Counter(text for bar in bars for text in (bar.label, str(bar.value)))
        assert len({bar.label for bar in bars}) == len(bars) == len({round(bar.left) for bar in bars})


def test_dense_labels_name_the_thing_on_the_token() -> None:
    for scene in _scenes(60, seed=3):
        labels = label(scene)
        assert {len(column) for column in labels} == {scene.rows * scene.columns}
        for thing in scene.things:
            if thing.shape in ("circle", "square") and thing.radius_px > 20:
                token = int(thing.y * scene.rows) * scene.columns + int(thing.x * scene.columns)
                assert SHAPES[labels.shape[token]] == thing.shape
                assert COLOURS[labels.colour[token]] == thing.colour
                assert labels.cell[token] == thing.cell == labels.place[token]
        assert all(labels.colour[labels.shape == NOTHING] == IGNORE)
        assert set(labels.under.tolist()) == {BLANK}


def test_dense_labels_spell_what_is_written() -> None:
    """The characters that tokens hold, read by line and from left to right, are the text."""
    rng = np.random.default_rng(8)
    checked = 0
    for _ in range(60):
        scene = sample_text(rng, 6, 8, count=1)
        if scene.lines[0].tilt:
            continue
        labels = label(scene)
        held = np.stack([labels.read_1, labels.read_2, labels.read_3, labels.read_4], -1)
        rows = held.reshape(scene.rows, scene.columns * 4)
        read = ["".join(CHARACTERS[value] for value in row if value != BLANK) for row in rows]
        assert "".join(read) == scene.lines[0].text
        checked += 1
    assert checked > 30


def test_pictures_from_outside_have_no_labels_but_their_places() -> None:
    rng = np.random.default_rng(9)
    for kind in unseen.KINDS:
        scene = Scene(5, 6, None, (0, 0, 0), unseen=kind, seed=3)
        pixels, labels = draw(scene, rng), label(scene)
        assert pixels.std() > 8
        assert np.array_equal(unseen.paint(kind, 3, 90, 60), unseen.paint(kind, 3, 90, 60))
        assert set(labels.under.tolist()) == set(labels.shape.tolist()) == {IGNORE}


@pytest.mark.parametrize("task", list(tasks.TASKS))
def test_answers_are_of_their_kind_and_worded_in_many_ways(task: str) -> None:
    asked = [question for _, question in _asked()[task]]
    allowed = {
        "colour": set(COLOURS), "background": set(COLOURS), "shape": set(SHAPES), "position": set(CELLS),
        "arrow": {"up", "down", "left", "right"}, "count": set("012345"), "exists": {"yes", "no"},
        "relation": {"left", "right", "above", "below", "yes", "no", *SHAPES}, "can't see": {talk.REFUSAL},
        "greeting": {talk.HELLO, talk.WELCOME, talk.WHO},
    }  # fmt: skip
    assert len(asked) > 25
    assert len({question.text for question in asked}) > min(60, len(asked) * 0.45)
    if task in allowed:
        assert {question.answer for question in asked} <= allowed[task]
    if task in ("arrow", "colour", "shape", "position"):
        assert max(Counter(question.answer for question in asked).values()) < 0.5 * len(asked)


@pytest.mark.parametrize("task", ["exists", "larger", "relation"])
def test_yes_and_no_are_balanced(task: str) -> None:
    answers = Counter(q.answer for _, q in _asked()[task] if q.answer in ("yes", "no"))
    assert 0.35 < answers["yes"] / answers.total() < 0.65


def test_counts_reach_from_none_to_five() -> None:
    answers = Counter(question.answer for _, question in _asked()["count"])
    assert set(answers) == set("012345")
    assert answers["1"] < 0.5 * answers.total()


def test_relations_agree_with_geometry() -> None:
    rng = np.random.default_rng(6)
    told = Counter()
    for scene in _scenes(400, seed=12):
        if len(scene.things) != 2 or scene.things[0].shape == scene.things[1].shape:
            continue
        pattern = r"the [a-z ]*?(\w+) relative to the [a-z ]*?(\w+)"
        for question in (tasks.ask(rng, scene, "relation") for _ in range(8)):
            words = re.search(pattern, question.text.lower()) if question else None
            if not (words and question and {words[1], words[2]} == {thing.shape for thing in scene.things}):
                continue
            one, two = (next(t for t in scene.things if t.shape == words[k]) for k in (1, 2))
            dx, dy = (one.x - two.x) * scene.width, (one.y - two.y) * scene.height
            expected = ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("below" if dy > 0 else "above")
            assert question.answer == expected
            assert max(abs(dx), abs(dy)) >= 1.7 * min(abs(dx), abs(dy))
            told[expected] += 1
    assert len(told) == 4


def test_the_larger_is_larger() -> None:
    checked = 0
    for scene, question in _asked()["larger"]:
        words = re.search(r"\b(larger|bigger|smaller|largest|biggest|smallest)\b", question.text.lower())
        assert words
        if question.answer in SHAPES:
            ranked = sorted(scene.things, key=relations.extent, reverse=words[1] not in ("smaller", "smallest"))
            assert question.answer == ranked[0].shape
            sizes = sorted(relations.extent(thing) for thing in ranked[:2])
            assert sizes[1] >= 1.5 * sizes[0]
            checked += 1
        elif question.answer not in ("yes", "no", *COLOURS):
            assert question.answer in question.text.lower()
    assert checked > 10


def test_words_are_read_as_they_stand() -> None:
    for scene, question in _asked()["reading"] + _asked()["two lines"]:
        texts = [line.text for line in scene.lines]
        asked = question.text.lower()
        if re.search(r"\b(first|top|upper)\b", asked):
            assert question.answer == texts[0]
        elif re.search(r"\b(second|bottom|lower)\b", asked):
            assert question.answer == texts[1]
        else:
            assert question.answer == " ".join(texts)
        assert all(1 <= len(text) <= 8 and set(text) <= set(CHARACTERS) for text in texts)


def test_charts_are_read_as_they_stand() -> None:
    for scene, question in _asked()["chart"]:
        assert scene.chart
        bars = {bar.label: bar.value for bar in scene.chart.bars}
        if re.search(r"\b(tallest|highest|longest|biggest|largest)\b", question.text.lower()):
            assert bars[question.answer] == max(bars.values())
        elif re.search(r"\b(shortest|lowest|smallest)\b", question.text.lower()):
            assert bars[question.answer] == min(bars.values())
        elif re.search(r"how many|number of|count", question.text.lower()):
            assert question.answer == str(len(bars))
        else:
            assert int(question.answer) in bars.values()


def test_what_is_outside_is_refused_and_nothing_else_is() -> None:
    outside = {re.sub(r"\{\w+\}", "", text).split()[0].lower() for text in talk.OUTSIDE}
    for scene, question in _asked()["can't see"]:
        assert (
            scene.unseen
            or question.text.lower().split()[0].strip("?") in outside | {"2+2"}
            or question.text[0].isdigit()
        )
    for task, found in _asked().items():
        if task != "can't see":
            assert all(question.answer != talk.REFUSAL for _, question in found)
            assert task == "greeting" or not any(scene.unseen for scene, _ in found)


WORDINGS = (
    r"which is larger,? .* or ", r"which shape is the largest",
    r"(what is|name) the (larger|bigger|smaller) shape", r"is .* larger than",
    r"colou?r is the (larger|largest|bigg)", r"relative to", r"left or right of", r"above or below",
    r"what is (above|below)",
    r"what does it say", r"read the text", r"which word is shown", r"what letters do you see", r"read both lines",
    r"(first|second) line", r"(top|bottom) line", r"which bar is", r"value .* bar [a-z0-9]", r"how many bars",
    r"which shape has the colou?r", r"color", r"gray", r"grey", r"^[A-Z ,?.']{20,}$", r"^what",
)  # fmt: skip


@pytest.mark.parametrize("wording", WORDINGS)
def test_wordings_of_the_contract_are_asked(wording: str) -> None:
    case = 0 if "A-Z" in wording or wording == "^what" else re.IGNORECASE
    assert any(re.search(wording, q.text, case) for found in _asked().values() for _, q in found)


def test_several_pictures_are_told_apart() -> None:
    rng, mixture = np.random.default_rng(10), Mixture()
    ordinals = Counter()
    for _ in range(400):
        scenes = [sample_shapes(rng, 5, 5) for _ in range(int(rng.integers(2, 5)))]
        which = album.ask_which(rng, scenes)
        if which:
            ordinals[which.answer] += 1
            noun = next(s for s in sorted(SHAPES, key=len) if s in which.text.lower() or s == SHAPES[-1])
            if noun in which.text.lower() and not any(colour in which.text.lower() for colour in (*COLOURS, "gray")):
                holders = [n for n, scene in enumerate(scenes) if noun in {thing.shape for thing in scene.things}]
                assert [ORDINALS[n] for n in holders] == [which.answer]
        about = album.ask_several(rng, scenes, mixture)
        assert about.answer == talk.REFUSAL or re.search(
            r"first|second|third|fourth|picture|image|photo|drawing|last|which one", about.text.lower()
        )
    assert set(ordinals) == set(ORDINALS)


def test_every_answer_survives_its_tokens() -> None:
    tokenizer = tokens.load()
    for found in _asked().values():
        for _, question in found:
            assert tokenizer.decode(tokenizer.encode(question.answer).ids) == question.answer
            assert len(tokenizer.encode(question.text).ids) < 90
    for word in tokens.ANSWERS:
        assert len(tokenizer.encode(word).ids) == len(tokenizer.encode(" " + word).ids) == 1


def test_an_exam_makes_weak_tasks_more_frequent() -> None:
    mixture = Mixture()
    mixture.adapt({"colour": 1.0, "reading": 0.5, "chart": 0.94})
    factors = dict(zip(tasks.TASKS, mixture.factors.tolist(), strict=True))
    assert factors["colour"] == 0.5
    assert factors["reading"] == 3.0
    assert 0.5 < factors["chart"] < 3.0
    assert factors["shape"] == 1.0


def test_fonts_hold_every_character_and_are_not_the_evaluations() -> None:
    assert len(FONTS) >= 12
    families = (FONTS[0].parent / "README.md").read_text().lower()
    for family in ("inter ", "cantarell", "noto", "ubuntu", "plex", "garamond", "comfortaa"):
        assert family not in families
    for path in FONTS:
        assert path.stat().st_size < 40_000
        assert {ord(c) for c in CHARACTERS} <= set(TTFont(path).getBestCmap())


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
        assert not any(c in CHARACTERS for c in left + right)
    assert tokenizer.encode("HELLO42").tokens == list("HELLO42")
    assert tokenizer.encode("RED BUS").tokens == ["R", "E", "D", "Ġ", "B", "U", "S"]


def test_every_byte_has_a_token_and_text_survives() -> None:
    tokenizer = tokens.load()
    assert tokenizer.get_vocab_size() == tokens.VOCABULARY
    for text in ("Wörld ☃ 你好 \t\n x", talk.REFUSAL, "What colour is the star?"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_stand_where_the_config_says() -> None:
    tokenizer = tokens.load()
    ids = [tokenizer.token_to_id(name) for name in tokens.SPECIALS]
    assert ids == list(range(tokens.VOCABULARY - len(tokens.SPECIALS), tokens.VOCABULARY))
    assert tokenizer.encode("<|image_pad|>").ids == [tokens.IMAGE_PAD]


def test_packed_questions_start_where_the_picture_ends() -> None:
    asked = [Question("colour", "What?", "red"), Question("shape", "Which?", "ring")]
    row = batches.packed([Picture(0, 4, 6)], asked)
    starts = [row.segments.index(segment) for segment in (1, 2)]
    assert row.positions[starts[0]] == row.positions[starts[1]]
    alone = batches.packed([Picture(0, 4, 6)], asked[1:])
    assert row.ids[starts[1] :] == alone.ids[starts[0] :]
    assert row.positions[starts[1] :] == alone.positions[starts[0] :]


def test_targets_are_the_answer_and_its_end() -> None:
    question = Question("position", "Where?", "top left")
    tokenizer = tokens.load()
    for row in (
        batches.packed([Picture(0, 4, 4)], [question]),
        batches.text_first([Picture(0, 4, 4)], question),
        batches.conversation([Turn((Picture(0, 4, 4), question.text), question.answer)]),
    ):
        learnt = [target for target in row.targets if target != IGNORE]
        assert learnt[-1] == tokens.IM_END
        assert tokenizer.decode(learnt) == "top left"
        assert [source for source in row.source if source >= 0] == list(range(16))


def test_a_picture_of_a_later_turn_stands_behind_all_before_it() -> None:
    turns = [Turn((Picture(0, 4, 4), "What?"), "red"), Turn(("Where?", Picture(16, 4, 6)), "top left")]
    row = batches.conversation(turns)
    assert [source for source in row.source if source >= 0] == list(range(40))
    second = row.source.index(16)
    assert min(row.positions[second]) > max(row.positions[second - 2])
    assert len([target for target in row.targets if target == tokens.IM_END]) == 2


def test_pictures_return_with_new_questions() -> None:
    studio = Studio(np.random.default_rng(3), Size(2, 3, 0.3, 4), Mixture())
    made = [studio.batch(joint=True) for _ in range(6)]
    pictures = [pixels.tobytes() for batch in made for pixels in batch.pictures]
    assert len(set(pictures)) < len(pictures)
    assert len({rows.ids.tobytes() for batch in made for rows in batch.rows}) == sum(len(batch.rows) for batch in made)


def test_grids_full_of_things_are_not_asked_about() -> None:
    rng = np.random.default_rng(7)
    for make, _ in tasks.PICTURES.values():
        assert all(is_askable(make(rng, 6, 7)) for _ in range(20))
    assert not all(is_askable(tasks.DENSE["characters"][0](rng, 6, 7)) for _ in range(20))


def test_a_batch_crosses_shared_memory_whole() -> None:
    batch = Studio(np.random.default_rng(4), SMALL, Mixture()).batch(joint=True)
    memory = memoryview(bytearray(2**24))
    head, spans = producers.write(batch, memory)
    again = producers.read(producers.Ready(0, 0, head, spans), memory)
    assert all(np.array_equal(a, b) for a, b in zip(batch.pictures, again.pictures, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(batch.labels, again.labels, strict=True))
    for left, right in zip(batch.rows, again.rows, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))
    assert len(head) < 20_000
    with pytest.raises(ValueError, match="make groups or pictures fewer"):
        producers.write(batch, memoryview(bytearray(1000)))


def test_questions_of_unseen_pictures_are_those_of_seen_ones() -> None:
    """Else the words alone would tell when to refuse."""
    rng = np.random.default_rng(13)
    asked = [tasks.refused(rng, Scope()).text.lower() for _ in range(400)]
    for word in ("colour|color", "where", "how many", "read|say|written", "bar", "which"):
        assert any(re.search(word, text) for text in asked)


def test_no_template_is_both_inside_and_outside() -> None:
    inside = {*questions.DESCRIBE, *questions.SHAPE_ALONE, *reading.READ, *reading.BAR_COUNT}
    assert not inside & {*talk.OUTSIDE, *talk.WHOS, *talk.GREETINGS, *talk.THANKS}


def test_a_grid_that_was_left_empty_is_not_asked_about() -> None:
    """It ended a training run: there was no colour to count."""
    from training.peek.studio import is_askable

    rng = np.random.default_rng(1)
    grids = [make(rng, 4 + i % 5, 4 + i % 4) for make, _ in tasks.DENSE.values() for i in range(300)]
    empty = [scene for scene in grids if tasks.kind_of(scene) == "shapes" and not scene.things]
    assert empty
    assert not any(map(is_askable, empty))
    assert all(is_askable(tasks.sample_unseen(rng, 5, 5)) for _ in range(20))
