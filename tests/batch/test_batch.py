"""Many pictures, one question: order, errors, retries, what goes on after an end."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sightline import Batch
from sightline.batch.ask import Answered, Failed, Question
from sightline.batch.results import Results, digest_of
from sightline.batch.tasks import Row, RowError, Task
from sightline.cli import main
from sightline.config import ModelConfig, Settings
from sightline.errors import InvalidRequest
from tests.api.serving import server_of

pytestmark = pytest.mark.anyio
COLOURS = ["red", "blue", "black", "white"]


def settings(**options: Any) -> Settings:
    return Settings(models=(ModelConfig(name="fake", engine="fake", options=options),))


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for number in range(12):
        (pictures / f"{number:02}.png").write_bytes(png(COLOURS[number % 4]))
    return pictures


class Scripted:
    """An asker that answers as it is told to, after as many turns of the loop as it is told to."""

    concurrency = 3

    def __init__(self, script: dict[str, list[Any]] | None = None, turns: dict[str, int] | None = None) -> None:
        self.script = script or {}
        self.turns = turns or {}
        self.at_once = self.most_at_once = 0
        self.asked: list[str] = []

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def ask(self, task: Task, question: Question) -> Answered:
        self.asked.append(task.id)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            for _ in range(self.turns.get(task.id, 1)):
                await asyncio.sleep(0)
            outcome = self.script.get(task.id, [])
            said = outcome.pop(0) if outcome else f"about {task.id}"
            if isinstance(said, Exception):
                raise said
            return Answered(said, "m", "stop", 1, 1, 0)
        finally:
            self.at_once -= 1


def batch_of(asker: Scripted, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Batch:
    monkeypatch.setattr("sightline.batch.batch.LocalAsker", lambda *_: asker)
    monkeypatch.setattr("sightline.batch.batch._BACKOFF_S", 0.0)
    return Batch("?", **more)


async def rows_of(batch: Batch, items: Any) -> list[Row]:
    async with batch:
        return [row async for row in batch.run(items)]


async def test_rows_come_in_the_order_of_the_input(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Scripted(turns={name: 50_000 if name == "a" else 9 for name in "abcdefgh"})
    rows = await rows_of(batch_of(asker, monkeypatch), list("abcdefgh"))
    assert [row.answer for row in rows] == [f"about {name}" for name in "abcdefgh"]
    assert [row.index for row in rows] == list(range(8))
    assert 1 < asker.most_at_once <= 3


async def test_the_input_is_read_no_further_than_it_must_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """One task that takes very long must not let a million answers pile up behind it."""
    asker = Scripted(turns={"0": 10**9})
    read = []

    def items() -> Iterator[str]:
        for number in range(10_000):
            read.append(number)
            yield str(number)

    async with batch_of(asker, monkeypatch) as batch:
        rows = batch.run(items())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(rows), 0.3)
        await rows.aclose()
    assert len(read) <= 3 * 8 + 1


async def test_what_may_pass_is_tried_again_and_what_will_not_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = Failed(RowError("engine_overloaded", "full"), retryable=True)
    wrong = Failed(RowError("image_parse_error", "truncated", "pictures[0]"), retryable=False)
    asker = Scripted({"a": [busy, busy, "at last"], "b": [wrong], "c": [busy] * 9})
    rows = await rows_of(batch_of(asker, monkeypatch, retries=2), list("abc"))
    assert rows[0].answer == "at last"
    assert (rows[1].answer, rows[1].error) == (None, wrong.error)
    assert (rows[2].error, asker.asked.count("c"), asker.asked.count("b")) == (busy.error, 3, 1)


async def test_an_answer_that_is_to_be_json(monkeypatch: pytest.MonkeyPatch) -> None:
    asker = Scripted({"a": ['{"n": 1}'], "b": ["no"]})
    rows = await rows_of(batch_of(asker, monkeypatch, schema={"type": "object"}), list("ab"))
    assert rows[0].data == {"n": 1}
    assert rows[1].error == RowError("invalid_json", "The answer is not JSON.")
    assert rows[1].answer == "no"


async def test_a_real_service_sees_each_picture(folder: Path) -> None:
    paths = [folder / f"{number:02}.png" for number in range(12)]
    (folder / "03.png").write_bytes(b"no picture")
    batch = Batch("hello", settings=settings(), model="fake")
    rows = await rows_of(batch, [*paths, [png("red"), Image.new("RGB", (32, 32), "blue")], folder / "none.png", ""])
    for number, row in enumerate(rows[:12]):
        if number == 3:
            assert row.error is not None
            assert row.error.code == "invalid_image_format"
        else:
            assert row.answer == f"I see 1 picture: 32x32 mostly {COLOURS[number % 4]}. You said: hello"
            assert row.image_tokens > 0
    assert "2 pictures: 32x32 mostly red; 32x32 mostly blue" in (rows[12].answer or "")
    assert rows[13].error == RowError("picture_unreadable", "The picture cannot be read: No such file or directory.")
    assert rows[14].error == RowError("picture_unreadable", "The picture cannot be read: its name is empty.")


async def test_the_same_of_a_server(folder: Path) -> None:
    server = settings()
    with server_of(server) as port:
        batch = Batch("hello", url=f"http://127.0.0.1:{port}/v1")
        rows = await rows_of(batch, [*(folder / f"{number:02}.png" for number in range(4)), b"no picture"])
    assert [row.answer for row in rows[:4]] == [
        f"I see 1 picture: 32x32 mostly {colour}. You said: hello" for colour in COLOURS
    ]
    assert rows[4].error is not None
    assert rows[4].error.code == "invalid_image_format"


# --- the file --------------------------------------------------------------------------------------------------------


def row_of(index: int) -> Row:
    return Row(index, f"t{index}", (f"{index}.png",), "?", answer=f"a{index}\nb", model="m", extra={"shelf": "3"})


def tasks_of(n: int) -> Iterator[Task]:
    return (Task(i, f"t{i}", (f"{i}.png",), "?", {"shelf": "3"}) for i in range(n))


@pytest.mark.parametrize("cut", [0, 1, 7, 40])
def test_a_run_goes_on_after_the_last_whole_row(tmp_path: Path, cut: int) -> None:
    out = tmp_path / "a.jsonl"
    with Results(out, {"model": "m"}) as results:
        for index in range(3):
            results.write(row_of(index))
    with results.partial.open("r+b") as file:  # as a death in the middle of a write leaves it
        file.seek(0, 2)
        file.truncate(file.tell() - cut)
    with Results(out, {"model": "m"}) as again:
        assert again.num_done == (3 if cut == 0 else 2)
        for task in again.remaining(tasks_of(5)):
            again.write(row_of(task.index))
        again.finish()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["t0", "t1", "t2", "t3", "t4"]
    assert lines[0] == {
        "shelf": "3", "id": "t0", "pictures": ["0.png"], "prompt": "?", "answer": "a0\nb", "error": None, "model": "m",
        "finish_reason": None, "prompt_tokens": 0, "completion_tokens": 0, "image_tokens": 0, "seconds": 0.0,
    }  # fmt: skip
    assert not results.partial.exists()


def test_another_question_or_another_input_is_told(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    with Results(out, {"model": "m", "seed": 1}) as results:
        results.write(row_of(0))
    with pytest.raises(InvalidRequest, match="seed was 1 and is 2 now"):
        Results(out, {"model": "m", "seed": 2})
    with Results(out, {"model": "m", "seed": 1}) as again:
        with pytest.raises(InvalidRequest, match="what was 't0' is 'other' now"):
            list(again.remaining(iter([Task(0, "other", (), "?")])))
        with pytest.raises(InvalidRequest, match="not there any more"):
            list(again.remaining(iter([])))
    with Results(out, {"model": "n"}, restart=True) as anew:
        assert anew.num_done == 0


def test_a_file_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("precious")
    with pytest.raises(InvalidRequest, match="there already"):
        Results(tmp_path / "a.csv", {})
    with pytest.raises(InvalidRequest, match="the formats are"):
        Results(tmp_path / "a.xlsx", {})
    with pytest.raises(InvalidRequest, match="no folder"):
        Results(tmp_path / "none" / "a.csv", {})


def test_names_that_are_not_utf_8_cost_no_run(tmp_path: Path) -> None:
    """Names of files are bytes; Python gives those that are no text as halves of surrogate pairs."""
    name = os.fsdecode(b"\xff.png")
    task = Task(0, name, (name,), "?")
    with Results(tmp_path / "out.jsonl", {}) as results:
        results.write(Row(0, name, (name,), "?", answer="red"))
    with Results(tmp_path / "out.jsonl", {}) as results:
        assert list(results.remaining(iter([task]))) == []
        results.finish()
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["id"], row["answer"]) == ("?.png", "red")


def test_a_row_is_known_by_what_was_asked() -> None:
    (task,) = tasks_of(1)
    assert digest_of(task) == digest_of(row_of(0))
    assert digest_of(task) != digest_of(row_of(1))


def test_csv_holds_what_was_said_as_it_was_said(tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    with Results(out, {}) as results:
        results.write(row_of(0))
        results.write(Row(1, "t1", ("1.png", "2.png"), "?", error=RowError("c", "m"), data=None))
        results.finish()
    with out.open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["answer"], first["shelf"], first["error"]) == ("a0\nb", "3", "")
    assert (second["pictures"], second["error_code"], second["error"]) == ("1.png|2.png", "c", "m")


def test_parquet_has_types(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "a.parquet"
    with Results(out, {}) as results:
        results.write(row_of(0))
        results.finish()
    table = parquet.read_table(out)
    assert table.to_pylist()[0]["answer"] == "a0\nb"
    assert str(table.schema.field("seconds").type) == "double"


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "answers.jsonl"
    (folder / "05.png").write_bytes(b"")
    command = ["batch", "run", str(folder), "--prompt", "hello", "--out", str(out), "--engine", "fake", "--limit", "10"]
    assert main(command) == 1, "one of them is an error"
    said = capsys.readouterr()
    assert "10 answers in" in said.out
    assert "1 of them errors" in said.out
    assert "10/10" in said.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == [str(folder / f"{n:02}.png") for n in range(10)]
    assert lines[5]["error"]["code"] == "empty_image_file"
    assert "mostly black" in lines[6]["answer"]
    assert main(command) == 1
    assert "there already" in capsys.readouterr().err


def test_the_command_goes_on(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "answers.csv"
    command = ["batch", "run", str(folder), "--prompt", "hello", "--out", str(out), "--engine", "fake"]
    whole, begun = tmp_path / "whole.jsonl", out.with_name("answers.csv.partial")
    assert main([*command[:-3], str(whole), *command[-2:]]) == 0
    assert main(["batch", "run", "x.png", "--prompt", "?", "--out", str(out), "--engine", "fake"]) == 1
    begun.unlink(missing_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Results, "finish", lambda self: None)
        assert main([*command, "--limit", "5"]) == 0
    assert main(command) == 0
    assert "5 of 12 were done before" in capsys.readouterr().err
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["answer"] for row in rows] == [json.loads(line)["answer"] for line in whole.read_text().splitlines()]


def test_a_server_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(png("red"))
    command = ["batch", "run", str(tmp_path), "--prompt", "?", "--out", str(tmp_path / "a.jsonl")]
    assert main([*command, "--url", "http://127.0.0.1:9/v1"]) == 1
    assert "No server answers" in capsys.readouterr().err


def test_of_a_server_the_models_name_is_chosen_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(png("red"))
    served = Settings(models=tuple(ModelConfig(name=name, engine="fake") for name in ("first", "second")))
    out = tmp_path / "a.jsonl"
    with server_of(served) as port:
        command = [
            "batch",
            "run",
            str(tmp_path),
            "--prompt",
            "?",
            "--out",
            str(out),
            "--url",
            f"http://127.0.0.1:{port}",
        ]
        assert main([*command, "--model", "second"]) == 0
        assert json.loads(out.read_text())["model"] == "second"
        assert main([*command, "--restart", "--engine", "openvino"]) == 1
    assert "--engine is about a model in this process" in capsys.readouterr().err
