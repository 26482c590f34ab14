"""What is read from where."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sightline.batch.tasks import Task, count_tasks, read_tasks, to_tasks
from sightline.errors import InvalidRequest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.PNG", "a.jpg", "notes.txt", "deep/c.webp"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return tmp_path / "pictures"


def names(sources: list[str], **more: bool) -> list[str]:
    return [Path(task.id).name for task in read_tasks(sources, "?", **more)]


def test_a_folder_is_its_pictures_in_order(folder: Path) -> None:
    assert names([str(folder)]) == ["a.jpg", "b.PNG"]
    assert names([str(folder)], recursive=True) == ["a.jpg", "b.PNG", "c.webp"]
    assert count_tasks([str(folder)], recursive=True) == 3


def test_globs_files_and_urls_in_the_order_in_which_they_are_named(folder: Path) -> None:
    sources = [f"{folder}/b*", "https://example.com/x.png", f"{folder}/a.jpg", f"{folder}/**/*.webp"]
    tasks = list(read_tasks(sources, "?"))
    assert [Path(t.id).name for t in tasks] == ["b.PNG", "x.png", "a.jpg", "c.webp"]
    assert [t.index for t in tasks] == [0, 1, 2, 3]


def test_a_csv_has_its_own_prompts_and_carries_the_rest(tmp_path: Path) -> None:
    table = tmp_path / "in.csv"
    table.write_text('\ufeffid,pictures,prompt,shelf\n7,a.png|b.png,Which?,"3,4"\n,c.png,,5\n', encoding="utf-8")
    first, second = read_tasks([str(table)], "What?")
    assert (first.id, first.prompt, first.extra) == ("7", "Which?", {"shelf": "3,4"})
    assert first.pictures == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    assert (second.id, second.prompt, second.extra) == (str(tmp_path / "c.png"), "What?", {"shelf": "5"})


def test_jsonl_too(tmp_path: Path) -> None:
    table = tmp_path / "in.jsonl"
    rows = [{"picture": "https://example.com/x.png", "id": 3}, {"prompt": "Hello", "lot": {"n": 1}}]
    table.write_text("\n\n".join(map(json.dumps, rows)))
    first, second = read_tasks([str(table)], "?")
    assert (first.id, first.pictures, first.prompt) == ("3", ("https://example.com/x.png",), "?")
    assert (second.pictures, second.prompt, second.extra) == ((), "Hello", {"lot": {"n": 1}})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("in.csv", "name\nx\n", "no column 'picture'"),
        ("in.csv", "picture,prompt\nx\n", "line 2: it has not as many columns"),
        ("in.jsonl", "{}\n{nonsense\n", "line 2: it is not JSON"),
        ("in.jsonl", "[]\n", "line 1: it is not a JSON object"),
        ("in.jsonl", '{"pictures": "x.png"}\n', "'pictures' is a list"),
        ("in.jsonl", '{"picture": "x.png", "prompt": 3}\n', "'prompt' is a text"),
        ("in.jsonl", b"\xff\n", "not UTF-8"),
        ("in.csv", "picture,pictures\na.png,b.png\n", "line 2: it has both"),
        ("in.csv", "picture,answer\nx.png,red\n", "line 2: the answers have a column 'answer' of their own"),
    ],
)
def test_what_is_wrong_in_a_table_is_told_with_its_line(
    tmp_path: Path, name: str, text: str | bytes, said: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InvalidRequest, match=said):
        list(read_tasks([str(path)], "?"))


def test_an_empty_cell_is_a_picture_that_cannot_be_read_and_no_question_without_one(tmp_path: Path) -> None:
    one, several, lines = (tmp_path / name for name in ("one.csv", "several.csv", "in.jsonl"))
    one.write_text("id,picture\n1,a.png\n2,\n")
    several.write_text("id,pictures\n1,a.png|b.png\n2,\n")
    lines.write_text('{"picture": ""}\n{"picture": null}\n{"pictures": null}\n{"pictures": []}\n{}\n')
    assert [task.pictures for task in read_tasks([str(one)], "?")] == [(str(tmp_path / "a.png"),), ("",)]
    assert [len(task.pictures) for task in read_tasks([str(several)], "?")] == [2, 1]
    read = list(read_tasks([str(lines)], "?"))
    assert [task.pictures for task in read] == [("",), ("",), ("",), (), ()]
    assert all(task.id.endswith(f"line {number}") for number, task in enumerate(read, 1))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no picture, folder or table"):
        list(read_tasks([str(tmp_path / "nothing.png")], "?"))
    with pytest.raises(InvalidRequest, match="no pictures in the folder"):
        list(read_tasks([str(tmp_path)], "?"))
    with pytest.raises(InvalidRequest, match="no prompt"):
        list(to_tasks(["a.png"], None))


def test_a_programs_own_pictures() -> None:
    own = Task(9, "mine", (), "Why?")
    pixels = np.zeros((2, 2, 3), np.uint8)
    tasks = list(to_tasks(["a.png", [b"1", pixels], own], "What?"))
    assert [t.id for t in tasks] == ["a.png", "bytes", "mine"]
    assert tasks[1].pictures == (b"1", pixels)
