"""The evaluation of `peek`: what it makes of a run, and whole runs against a stub."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import runpy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.training.samples import small_cases
from training.peek.evaluation import report, sheets
from training.peek.evaluation.__main__ import main
from training.peek.evaluation.cases import CANT_SEE, Case, Turn
from training.peek.evaluation.client import Result, serve
from training.peek.evaluation.files import encode
from training.peek.evaluation.report import scores, wilson_interval
from training.peek.evaluation.tables import to_table
from training.peek.evaluation.tasks import TASKS, make_cases

ROOT = Path(__file__).parents[2]


def test_wilson_interval_matches_published_values() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)


def run_of(results: list[Result], **names: str) -> dict[str, Any]:
    names = {"model": "peek", "label": "fp16"} | names
    return report.summarise(results, seed=0, **names) | report.details(results)


def test_a_failed_request_is_a_wrong_answer_and_a_floor_can_be_missed() -> None:
    cases = make_cases("arrow", 10, seed=0)
    results = [Result(c, c.truth, error="timeout" if i < 5 else None) for i, c in enumerate(cases)]
    (row,) = scores(results)
    assert (row.n, row.right, row.passed) == (10, 5, False)
    run = run_of(results)
    assert run["failed_requests"] == 5
    assert "FAIL" in to_table(run)


def test_false_refusals_are_counted_over_all_that_it_could_answer() -> None:
    cases = [case for task in ("colour", "greeting", "cannot-picture") for case in make_cases(task, 20, seed=0)]
    every_third = [Result(c, CANT_SEE if i % 10 == 0 else c.truth) for i, c in enumerate(cases)]
    refusals = run_of(every_third)["false_refusals"]
    assert (refusals["n"], refusals["refused"], refusals["share"], refusals["passed"]) == (40, 4, 0.1, False)
    assert "false refusals" in to_table(run_of(every_third))
    assert run_of([Result(c, c.truth) for c in cases])["false_refusals"]["passed"]


def test_conditions_count_questions_about_one_picture_of_its_world() -> None:
    tasks = ("colour", "several-which", "cannot-picture", "greeting")
    cases = [case for task in tasks for case in make_cases(task, 30, seed=0)]
    # a server that forgets the flag
    results = [Result(c, c.truth if all(s.finish.orientation == 1 for s in c.scenes) else "?") for c in cases]
    conditions = report.conditions(results)
    assert {sum(row["n"] for row in rows.values()) for rows in conditions.values()} == {30}
    flags = conditions["orientation flag"]
    assert flags.pop("1")["right"] > 5
    assert sum(row["n"] for row in flags.values()) > 5
    assert {row["right"] for row in flags.values()} == {0}


def test_photographs_are_reported_apart() -> None:
    photograph = Case("photographs-0000-0", report.PHOTOGRAPHS, "zebra.jpeg", (Turn("What is this?", (), CANT_SEE),))
    cases = make_cases("colour", 10, seed=0)
    seen = [Result(c, c.truth) for c in cases]
    run = run_of([*seen, Result(photograph, "red"), Result(photograph, CANT_SEE)])
    assert [row["task"] for row in run["tasks"]] == ["colour"]
    assert run["false_refusals"]["n"] == 10
    photographs = run["photographs"]
    assert (photographs["n"], photographs["refused"], photographs["share"]) == (2, 1, 0.5)
    assert photographs["answers"][0] == {"photograph": "zebra.jpeg", "question": "What is this?", "answer": "red"}
    assert "photographs (apart): 1 of 2" in to_table(run)
    assert run_of(seen)["photographs"] is None


def test_runs_stand_side_by_side() -> None:
    cases = [case for task in ("colour", "arrow") for case in make_cases(task, 20, seed=0)]
    mine = run_of([Result(c, "?" if i < 1 else c.truth) for i, c in enumerate(cases)])
    theirs = run_of([Result(c, "?" if 1 <= i < 4 else c.truth) for i, c in enumerate(cases)], label="int8")
    beside = report.compare(mine, theirs, "int8")
    assert beside["tasks"] == [
        {"task": "colour", "accuracy": 0.85, "difference": 10.0, "only_this": 3, "only_other": 1},
        {"task": "arrow", "accuracy": 1.0, "difference": 0.0, "only_this": 0, "only_other": 0},
    ]
    table = to_table(mine | {"compared": [beside]})
    assert "+10.0   3 / 1" in table
    assert "int8" in table
    # of another seed there are no common cases, of version 0's evaluation not even all tasks
    old = {"seed": 1, "tasks": [{"task": "colour", "accuracy": 1.0}]}
    assert report.compare(mine, old, "old")["tasks"] == [{"task": "colour", "accuracy": 1.0, "difference": -5.0}]


def test_a_class_of_pictures_is_held_against_what_its_tasks_get() -> None:
    """A condition under which only the hard task was asked is not thereby a bad one."""
    cases = make_cases("colour", 40, seed=0) + make_cases("counting", 40, seed=0)
    conditions = report.conditions([Result(c, c.truth if c.task == "colour" else "?") for c in cases])
    for rows in conditions.values():
        assert all(row["right"] == pytest.approx(row["expected"], abs=0.01) for row in rows.values())
    assert next(iter(conditions["longer side"])) == "56 to 111 px"
    assert list(conditions["longer side"])[-1] == "2000 to 4000 px"


def page_of(run: dict[str, Any], file: Path) -> str:
    """The docs' page of the embedded model, made from a run."""
    file.write_text(json.dumps(run))
    page: str = runpy.run_path(str(ROOT / "docs" / "generate.py"))["peek_page"](file)
    return page


def test_the_docs_page_says_what_the_run_found(tmp_path: Path) -> None:
    cases = [case for task in ("colour", "reading-4-6", "reading-7-8") for case in make_cases(task, 20, seed=0)]
    results = [Result(c, CANT_SEE if c.id == "colour-0003" else "?" if "reading" in c.task else c.truth) for c in cases]
    run = report.summarise(results, model="peek", label="fp16", seed=0)
    run["compared"] = [report.compare(run, run | {"label": "int8"}, "int8")]
    page = page_of(run, tmp_path / "peek.json")
    assert "| colour | 95.0 % | 76.4 … 99.1 | 97 % | **missed** |" in page
    assert "| reading-7-8 | 0.0 % | 0.0 … 16.1 |  |  |" in page
    assert "Floors missed: colour, reading-4-6." in page
    assert "over all 60 questions that it could have answered: 1.7 %" in page
    assert "at most 1 % wanted: **missed**" in page
    assert re.search(r"\| format \| PNG \| \d+ \| [\d.]+ % \| [+-][\d.]+ \|", page)
    assert "Real photographs were not part of" in page
    assert "## fp16 beside int8" in page
    assert "| colour | 95.0 % | 95.0 % | +0.0 |" in page


def test_the_docs_page_of_a_perfect_run_and_its_photographs(tmp_path: Path) -> None:
    photograph = Case("photographs-0000-0", report.PHOTOGRAPHS, "a.jpeg", (Turn("What is this?", (), CANT_SEE),))
    results = [Result(c, c.truth) for c in make_cases("colour", 40, seed=0)] + [Result(photograph, CANT_SEE)] * 4
    page = page_of(report.summarise(results, model="peek", label="fp16", seed=0), tmp_path / "peek.json")
    assert "Every floor is reached." in page
    assert "missed" not in page
    assert "it refuses 100.0 % (4 of 4 answers" in page
    assert "beside" not in page.partition("## Its pictures")[0].partition("## Under")[2]


def test_the_docs_page_of_version_0_is_still_rendered(tmp_path: Path) -> None:
    row = {"task": "two-which", "n": 200, "right": 182, "accuracy": 0.91, "interval_95": [0.8622, 0.9423]}
    page = page_of({"tasks": [row | {"floor": None, "passed": True}]}, tmp_path / "peek.json")
    assert "| two-which | 91.0 % | 86.2 … 94.2 |  |  |" in page
    assert "floor of version 0" in page


def test_the_sheet_of_failures_shows_each_task_that_failed() -> None:
    cases = small_cases(3, 0, ("colour", "several-later", "greeting"))
    sheet = sheets.failures_sheet([Result(c, "no idea") for c in cases], columns=3)
    right = sheets.failures_sheet([Result(c, c.truth) for c in cases], columns=3)
    assert sheet.size == (900, 3 * right.height)
    assert len(sheet.getcolors(1 << 24) or []) > 200
    assert len(right.getcolors(1 << 24) or []) < 200


# --- the whole run, against a stub that speaks just enough OpenAI -----------------------------------------------------


@contextmanager
def stub(answer: Callable[[list[dict[str, Any]]], str]) -> Iterator[str]:
    """A server on a free port that answers each chat with `answer(messages)`; gives its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({"object": "list", "data": [{"id": "stub", "object": "model", "created": 0, "owned_by": "t"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert body["temperature"] == 0
            message = {"role": "assistant", "content": answer(body["messages"])}
            choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}
            self._reply(
                {"id": "c", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
            )

        def _reply(self, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def key(messages: list[dict[str, Any]]) -> tuple[str, ...]:
    """What a server sees of a case: the question, and each picture's bytes."""
    parts = [part for message in messages if message["role"] == "user" for part in message["content"]]
    texts = [p["text"] for p in parts if p["type"] == "text"]
    urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
    return (texts[-1], *(hashlib.sha256(base64.b64decode(url.partition(",")[2])).hexdigest() for url in urls))


def test_a_server_that_knows_the_truth_gets_everything_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {task: small_cases(3, 0, (task,)) for task in TASKS}
    monkeypatch.setattr("training.peek.evaluation.__main__.make_cases", lambda task, *_: cases[task])
    truths = {
        (c.question, *(hashlib.sha256(encode(s)).hexdigest() for s in c.scenes)): c.truth.upper() + "."
        for own in cases.values()
        for c in own
    }
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    Image.effect_noise((90, 60), 50).convert("RGB").save(photographs / "noise.jpg")
    arguments = ["--photographs", str(photographs), "--out", str(tmp_path / "out")]
    with stub(lambda messages: truths.get(key(messages), "A zebra.")) as url:
        assert main(["--url", url, *arguments]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [row["accuracy"] for row in results["tasks"]] == [1.0] * len(TASKS)
    assert summary.items() <= results.items()
    assert summary["photographs"]["refused"] == 0
    assert summary["photographs"]["n"] == 3
    assert len(results["cases"]) == 3 * len(TASKS) + 3
    printed = capsys.readouterr()
    assert "FAIL" not in printed.out
    assert printed.out.count("pass") == sum(task.floor is not None for task in TASKS.values()) + 1
    assert "model stub" in printed.out
    assert f"{len(results['cases'])} of {len(results['cases'])} questions" in printed.err


def test_a_server_that_always_says_red_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {task: small_cases(12, 0, (task,)) for task in ("colour", "yes-no")}
    monkeypatch.setattr("training.peek.evaluation.__main__.make_cases", lambda task, *_: cases[task])
    arguments = ["--tasks", "colour", "yes-no"]
    with stub(lambda _: "red") as url:
        assert main(["--url", url, *arguments, "--out", str(tmp_path)]) == 1
        beside = ["--compare", str(tmp_path / "results.json"), "--label", "again"]
        assert main(["--url", url, *arguments, *beside, "--out", str(tmp_path / "again")]) == 1
    colour, yes_no = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert colour["right"] == sum(case.truth == "red" for case in cases["colour"])
    assert yes_no["right"] == 0
    again = json.loads((tmp_path / "again" / "results.json").read_text())
    assert [row["difference"] for row in again["compared"][0]["tasks"]] == [0, 0]
    assert again["compared"][0]["name"] == "stub"
    with Image.open(tmp_path / "failures.png") as sheet:
        assert sheet.width > 1000
        assert len(sheet.getcolors(1 << 24) or []) > 20  # pictures are on it, not just paper
    assert (tmp_path / "accuracy.png").stat().st_size > 500


def test_what_cannot_be_read_is_said_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--photographs", str(tmp_path)], "holds no photographs"),
        (["--compare", str(tmp_path / "none.json")], "none.json"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, "--url", "http://127.0.0.1:9/v1", "--out", str(tmp_path / "out")])
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_it_starts_and_ends_a_server_of_its_own(tmp_path: Path) -> None:
    arguments = ["--tasks", "colour", "--per-task", "4", "--out", str(tmp_path), "--serve=--engine", "--serve=fake"]
    assert main(arguments) == 1  # the fake engine tells of the pictures it got, in sentences: never the bare word
    results = json.loads((tmp_path / "results.json").read_text())
    assert [case["error"] for case in results["cases"]] == [None] * 4
    assert all(case["answer"] for case in results["cases"])
    assert "/v1/chat/completions" in (tmp_path / "server.log").read_text()


def test_a_server_that_cannot_start_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with status"), serve(["--no-such-option"], tmp_path / "log"):
        pass
    assert "--no-such-option" in (tmp_path / "log").read_text()
