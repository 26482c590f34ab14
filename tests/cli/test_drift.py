"""`sightline drift` as a user runs it, on the engine without a model and on the embedded one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sightline.cli import main


def drift(out: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """The exit status, and both reports."""
    status = main(["drift", "peek", "--out", str(out), *arguments])
    return status, json.loads((out / "drift.json").read_text()), (out / "drift.html").read_text()


def picture_directory(tmp_path: Path) -> str:
    directory = tmp_path / "pictures"
    directory.mkdir()
    Image.new("RGB", (400, 300), "red").save(directory / "a.png")
    Image.new("RGB", (90, 120), "blue").save(directory / "<b>.jpg")
    return str(directory)


def test_an_engine_agrees_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found, page = drift(tmp_path / "new" / "out", "--engines", "fake,again=fake", "--count", "6")
    assert status == 0
    assert found["passed"]
    assert found["agreements"][0] | {"causes": []} == {
        "reference": "fake", "engine": "again", "agreeing": 6, "of": 6, "share": 1.0,
        "largest_first_logprob_difference": 0.0, "causes": [],
    }  # fmt: skip
    assert "6 of 6 agree (100.0 %)" in capsys.readouterr().out
    assert 'type="checkbox" id="all" checked' in page  # nothing differs, so all is shown
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 7  # the fourth of five questions is about two pictures
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources), "the page stands alone"
    assert "<script" not in page


def test_other_pixels_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, found, page = drift(
        tmp_path, "--engines", "fake,small=fake", "--engine-option", "small.max_image_tokens=20",
        "--pictures", picture_directory(tmp_path),
    )  # fmt: skip
    assert status == 0, "the fake engine names original sizes, so the answers agree"
    assert found["agreements"][0]["causes"] == [{"cause": "pixels", "agreeing": True, "questions": 3}]
    large = found["questions"][3]
    assert large["pictures"] == ["a.png"]
    assert large["answers"]["fake"]["image_tokens"] > large["answers"]["small"]["image_tokens"]
    assert large["answers"]["fake"]["served"] != large["answers"]["small"]["served"]
    assert "3 x pixels (the answers agree)" in capsys.readouterr().out
    assert "&lt;b&gt;.jpg" in page
    assert "<b>.jpg" not in page


def test_an_answer_that_parts_on_its_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = "[[fake: say It is <i>red</i>.]]", "[[fake: say It is <i>blue</i>.]]"
    status, found, page = drift(
        tmp_path, "--engines", "a=fake,b=fake", "--count", "2",
        "--engine-option", f"a.script={script[0]}", "--engine-option", f"b.script={script[1]}",
    )  # fmt: skip
    assert status == 1
    assert not found["passed"]
    compared = found["questions"][0]["comparisons"]["b"]
    assert (compared["agrees"], compared["cause"], compared["at"]) == (False, "accumulated", 5)
    assert [found["questions"][0]["answers"][e]["tokens"][5]["text"] for e in "ab"] == ["red", "blue"]
    assert "It is &lt;i&gt;<mark>blue</mark>&lt;/i&gt;." in page
    assert "<i>" not in page
    told = capsys.readouterr().out
    assert "accumulated, token 5" in told
    assert "'blue' -0.693, margin 0.693" in told


def test_a_question_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "questions.txt").write_text("Is <this> a test?\n")
    _, found, page = drift(
        tmp_path, "--engines", "fake,again=fake", "--count", "2", "--questions", str(tmp_path / "questions.txt")
    )
    assert [q["question"] for q in found["questions"]] == ["Is <this> a test?"] * 2
    assert "Is &lt;this&gt; a test?" in page


def test_an_engine_that_fails_at_a_question_does_not_agree(tmp_path: Path) -> None:
    status, found, page = drift(
        tmp_path, "--engines", "fake,b=fake", "--count", "2", "--engine-option", "b.script=[[fake: error 2]]"
    )
    assert status == 1
    assert found["agreements"][0]["causes"] == [{"cause": "failed", "agreeing": False, "questions": 2}]
    error = found["questions"][0]["answers"]["b"]["error"]
    assert error
    assert error in page


def test_how_many_must_agree_is_the_users_to_say(tmp_path: Path) -> None:
    status, found, _ = drift(
        tmp_path, "--engines", "fake,b=fake", "--count", "1", "--engine-option", "b.script=[[fake: say no]]",
        "--at-least", "0",
    )  # fmt: skip
    assert status == 0
    assert found["agreements"][0]["agreeing"] == 0


def test_the_embedded_model_beside_the_engine_without_one(tmp_path: Path) -> None:
    status, found, _ = drift(tmp_path, "--engines", "openvino,fake", "--count", "10")
    assert status == 1
    assert [e["engine"] for e in found["engines"]] == ["openvino", "fake"]
    assert found["engines"][0]["weights_digest"].startswith("sha256:")
    causes = {q["comparisons"]["fake"]["cause"] for q in found["questions"]}
    assert causes == {"pixels", "template"}, "the fake engine's pictures may be larger, and its tokens are its own"
    for question in found["questions"]:
        ours = question["answers"]["openvino"]
        assert ours["error"] is None
        assert ours["text"] == "".join(token["text"] for token in ours["tokens"])
        assert ours["prompt_tokens"] == ours["text_tokens"] + sum(ours["image_tokens"])
        assert all(token["margin"] >= 0 for token in ours["tokens"]), "greedy: nothing was likelier"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--engines", "fake"], "two or more"),
        (["--engines", "fake,fake"], "under its own name"),
        (["--engines", "fake,nonsense"], "no engine 'nonsense'"),
        (["--engines", "fake,b=fake", "--engine-option", "c.slots=1"], "one of fake, b for NAME"),
        (["--engines", "fake,b=fake", "--engine-option", "slots=1"], "NAME.KEY=VALUE"),
        (["--engines", "fake,b=fake", "--engine-option", "b.slots"], "KEY=VALUE"),
        (["--engines", "fake,b=fake", "--count", "0"], "--count"),
        (["--engines", "fake,b=fake", "--at-least", "99"], "from 0 to 1"),
        (["--engines", "fake,b=fake", "--pictures", "/nowhere"], "/nowhere"),
        (["--engines", "fake,b=fake", "--questions", "/nowhere"], "/nowhere"),
        (["--engines", "fake,b=fake", "--engine-option", "b.startup=error", "--count", "1"], "'b' failed to load"),
    ],
)
def test_what_is_wrong_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drift", "peek", *arguments]) == 1
    assert told in capsys.readouterr().err


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["drift", "/nowhere", "--engines", "fake,b=fake"]) == 1
    assert "no model '/nowhere'" in capsys.readouterr().err


def test_a_file_that_is_no_picture_is_told_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = picture_directory(tmp_path)
    (Path(directory) / "note.txt").write_text("hello")
    assert main(["drift", "peek", "--engines", "fake,b=fake", "--pictures", directory]) == 1
    told = capsys.readouterr().err
    assert "note.txt" in told
    assert "answers" not in told
