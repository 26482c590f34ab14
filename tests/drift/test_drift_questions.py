"""What is asked: drawn questions are the same everywhere and show what they ask about; files are read as they are."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from sightline.drift.drawing import COLOURS, SHAPES, drawn
from sightline.drift.questions import Picture, each_of_each, read_pictures, read_texts
from sightline.errors import InvalidRequest
from sightline.types import ImageRef, Text


def opened(picture: Picture) -> Image.Image:
    assert isinstance(picture.source, bytes)
    return Image.open(BytesIO(picture.source))


def test_drawn_questions_are_the_same_every_time_and_more_only_add() -> None:
    assert drawn(12) == drawn(30)[:12]
    assert drawn(12, seed=1) != drawn(12)


def test_drawn_questions_differ_in_what_tells_engines_apart() -> None:
    questions = drawn(60)
    pictures = [picture for question in questions for picture in question.pictures]
    assert len({question.id for question in questions}) == 60
    assert len({opened(picture).size for picture in pictures}) > 60
    assert {opened(picture).format for picture in pictures} == {"JPEG", "PNG"}
    assert {len(question.pictures) for question in questions} == {1, 2}
    assert {question.text_first for question in questions} == {True, False}
    assert len({question.text for question in questions}) > 25


def test_what_a_drawn_question_names_is_in_its_pictures() -> None:
    for question in drawn(40):
        words = question.text.rstrip("?.").split()
        for colour in set(words) & set(COLOURS):
            shown = [opened(p).convert("RGB").getcolors(2**18) for p in question.pictures]
            nearest = min(sum(map(abs, map(int.__sub__, rgb, COLOURS[colour]))) for s in shown for _, rgb in s or ())
            assert nearest < 30, question
        assert all("{" not in word for word in words)
        assert len(set(words) & set(SHAPES)) <= 1


def test_a_request_is_greedy_and_keeps_the_order() -> None:
    question = next(q for q in drawn(20) if q.text_first)
    request = question.to_request("peek", max_tokens=7, logprobs=True)
    assert [type(part) for part in request.messages[0].content] == [Text, ImageRef]
    assert (request.sampling.temperature, request.sampling.max_tokens) == (0.0, 7)
    assert request.sampling.logprobs is not None
    assert question.to_request("peek", max_tokens=7, logprobs=False).sampling.logprobs is None


def test_pictures_of_a_directory(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", ".hidden"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "more").mkdir()
    pictures = read_pictures(tmp_path)
    assert [(p.name, p.to_ref().source) for p in pictures] == [("a.jpg", b"a.jpg"), ("b.png", b"b.png")]
    questions = each_of_each(pictures, ["What?", "Where?"])
    assert [(q.pictures[0].name, q.text) for q in questions] == [
        ("a.jpg", "What?"), ("a.jpg", "Where?"), ("b.png", "What?"), ("b.png", "Where?"),
    ]  # fmt: skip
    assert len({q.id for q in questions}) == 4


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no pictures in"):
        read_pictures(tmp_path)
    with pytest.raises(InvalidRequest, match="Cannot read the pictures"):
        read_pictures(tmp_path / "none")
    with pytest.raises(InvalidRequest, match=r"Cannot read the picture 'gone\.png'"):
        Picture("gone.png", tmp_path / "gone.png").to_ref()


def test_questions_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "questions.txt"
    file.write_text("What is this?\n\n  Où est le chat ?  \n", encoding="utf-8")
    assert read_texts(file) == ["What is this?", "Où est le chat ?"]
    file.write_text("\n \n")
    with pytest.raises(InvalidRequest, match="no questions"):
        read_texts(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidRequest, match="Cannot read the questions"):
        read_texts(file)
