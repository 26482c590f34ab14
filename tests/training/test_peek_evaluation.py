"""The evaluation of `peek`: its truths hold, its marks are fair, and it shares nothing with the training."""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import json
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.peek.evaluation.__main__ import main
from training.peek.evaluation.answers import is_right, normalise
from training.peek.evaluation.client import Result, serve, to_message
from training.peek.evaluation.drawing import DIRECTIONS, POSITIONS, SHAPES, Figure, Scene, draw, encode
from training.peek.evaluation.questions import TASKS, Case, make_cases
from training.peek.evaluation.report import scores, to_table, wilson_interval
from training.peek.evaluation.world import COLOURS, cell_of

PEEK = Path(__file__).parents[2] / "training" / "peek"
ONE_PICTURE = [name for name in TASKS if not name.startswith("two-")]


# --- apart from training ---------------------------------------------------------------------------------------------


def imported(file: Path) -> set[str]:
    """Absolute names of the modules that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(file.relative_to(PEEK.parents[1]).parts[: -node.level]) if node.level else ""
            base = ".".join(part for part in (package, node.module) if part)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def test_evaluation_imports_nothing_from_training() -> None:
    files = list((PEEK / "evaluation").rglob("*.py"))
    assert len(files) > 5
    ours = {name for file in files for name in imported(file) if name.startswith("training")}
    assert ours
    assert {n for n in ours if not n.startswith("training.peek.evaluation")} == set()


def test_training_imports_nothing_from_the_evaluation() -> None:
    files = list(PEEK.glob("*.py"))
    assert files
    assert {f.name: n for f in files for n in imported(f) if "evaluation" in n} == {}
    # the package's own file runs before the evaluation does
    assert not [name for name in imported(PEEK / "__init__.py") if name.startswith("training")]


def test_no_picture_is_shared_with_training() -> None:
    from training.peek.draw import draw as draw_for_training
    from training.peek.world import sample_grid, sample_scene

    def digest(pixels: Any) -> str:
        return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()

    cases = [case for task in TASKS for case in make_cases(task, 12, seed=0)]
    ours = [digest(draw(scene)) for case in cases for scene in case.scenes]
    rng = np.random.default_rng(0)
    theirs = [digest(draw_for_training(sample_scene(rng, *sample_grid(rng)), rng)) for _ in range(120)]
    assert len(set(ours)) == len(ours)  # else a digest would not tell pictures apart
    assert len(set(theirs)) > 100
    assert not set(ours) & set(theirs)


# --- drawing ---------------------------------------------------------------------------------------------------------


def alone(shape: str, **kwargs: Any) -> tuple[Figure, np.ndarray]:
    """A black figure in the middle of a white square, and the share of each pixel that it covers."""
    figure = Figure(shape, "black", (0, 0, 0), 50.0, 50.0, 40.0, **kwargs)
    return figure, 1 - draw(Scene(100, 100, "white", (255, 255, 255), (figure,)))[:, :, 0] / 255


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", math.pi * 36.8**2),
        ("square", (1.6 * 40) ** 2),
        ("triangle", 3 * math.sqrt(3) / 4 * 40**2),
        ("diamond", 2 * 40 * 0.65 * 40),
        ("star", 10 * 0.5 * 40 * 0.42 * 40 * math.sin(math.pi / 5)),
        ("ring", math.pi * (1 - 0.56**2) * 40**2),
        ("cross", (4 * 2 * 0.28 * (0.94 - 0.28) + (2 * 0.28) ** 2) * 40**2),
        ("arrow", (0.72 * 0.88 + 2 * 0.22 * 1.07) * 40**2),
    ],
)
@pytest.mark.parametrize("tilt", [0.0, 7.0])
def test_a_figure_covers_the_area_of_its_shape(shape: str, area: float, tilt: float) -> None:
    _, coverage = alone(shape, tilt=tilt)
    assert coverage.sum() == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_an_arrow_is_widest_on_the_side_it_points_to(direction: str) -> None:
    _, coverage = alone("arrow", direction=direction)
    by_row, by_column = coverage.sum(axis=1), coverage.sum(axis=0)
    widest = {"up": by_row.argmax() < 50, "down": by_row.argmax() > 50}
    widest |= {"left": by_column.argmax() < 50, "right": by_column.argmax() > 50}
    assert widest[direction]


def test_edges_are_antialiased_and_insides_are_not() -> None:
    _, coverage = alone("circle")
    assert coverage[50, 50] == 1
    assert coverage[0, 0] == 0
    assert 100 < ((coverage > 0.02) & (coverage < 0.98)).sum() < 500  # a rim about one pixel wide


def test_a_scene_survives_json_and_draws_the_same() -> None:
    for case in make_cases("counting", 5, seed=3):
        (scene,) = case.scenes
        again = Scene.from_json(json.loads(json.dumps(scene.to_json())))
        assert again == scene
        assert encode(again) == encode(scene)


# --- cases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_cases_are_the_same_every_time_and_differ_by_seed(task: str) -> None:
    assert make_cases(task, 6, seed=1) == make_cases(task, 9, seed=1)[:6]
    assert make_cases(task, 6, seed=1) != make_cases(task, 6, seed=2)


@pytest.mark.parametrize("task", TASKS)
def test_scenes_are_within_the_promised_sizes_and_figures_apart(task: str) -> None:
    for case in make_cases(task, 100, seed=5):
        for scene in case.scenes:
            assert min(scene.width, scene.height) >= 56
            assert max(scene.width, scene.height) <= 1200
            assert max(scene.width, scene.height) / min(scene.width, scene.height) < 3.1
            for i, a in enumerate(scene.figures):
                assert 0 <= a.x - a.radius < a.x + a.radius <= scene.width
                assert 0 <= a.y - a.radius < a.y + a.radius <= scene.height
                assert a.colour != scene.background
                assert all(math.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius for b in scene.figures[:i])


@pytest.mark.parametrize("task", TASKS)
def test_half_of_the_questions_come_before_the_picture(task: str) -> None:
    cases = make_cases(task, 200, seed=0)
    assert sum(case.text_first for case in cases) == 100
    content = [list(to_message(case)["content"]) for case in cases[:20]]
    for case, parts in zip(cases, content, strict=False):
        kinds = [part["type"] for part in parts]  # type: ignore[index]
        assert kinds.index("text") == (0 if case.text_first else len(case.scenes))


def described(question: str) -> tuple[str | None, str | None]:
    """The colour and the shape that a question names."""
    words = question.lower().strip("?.").split()
    shape = next((s for w in words for s in SHAPES if w in (s, s + "s", s + "es")), None)
    return next((c for c in COLOURS if c in words), None), shape


def matching(case: Case, scene: Scene) -> list[Figure]:
    colour, shape = described(case.question)
    return [f for f in scene.figures if colour in (None, f.colour) and shape in (None, f.shape)]


def test_truths_follow_from_the_scene() -> None:
    """Each truth again, from the scene and the words of the question alone."""
    for case in make_cases("colour", 96, seed=7):
        assert [f.colour for f in matching(case, case.scenes[0])] == [case.truth]
    for case in make_cases("background", 48, seed=7):
        assert case.scenes[0].background == case.truth
    for case in make_cases("yes-no", 200, seed=7):
        assert case.truth == ("yes" if matching(case, case.scenes[0]) else "no"), case.question
    for case in make_cases("counting", 120, seed=7):
        assert case.truth == str(len(matching(case, case.scenes[0]))), case.question
    for case in make_cases("which-shape", 96, seed=7):
        assert [f.shape for f in matching(case, case.scenes[0])] == [case.truth]
    for case in make_cases("position", 90, seed=7):
        (figure,) = matching(case, case.scenes[0])
        assert cell_of(figure.x, figure.y, case.scenes[0].width, case.scenes[0].height) == case.truth
    for case in make_cases("arrow", 80, seed=7):
        assert [f.direction for f in case.scenes[0].figures if f.shape == "arrow"] == [case.truth]
    for case in make_cases("two-colour", 48, seed=7):
        scene = case.scenes["second" in case.question]
        assert [f.colour for f in scene.figures] == [case.truth]
    for case in make_cases("two-which", 48, seed=7):
        here = ["first", "second"].index(case.truth)
        assert matching(case, case.scenes[here])
        assert not matching(case, case.scenes[1 - here])


def test_a_no_is_hard() -> None:
    """Wherever colour and shape are asked for, both are in the picture, though not on one figure."""
    for case in make_cases("yes-no", 200, seed=2):
        colour, shape = described(case.question)
        if case.truth == "no" and colour and shape:
            figures = case.scenes[0].figures
            assert any(f.colour == colour for f in figures)
            assert any(f.shape == shape for f in figures)


def test_truths_are_balanced() -> None:
    wanted = {"colour": COLOURS, "background": COLOURS, "yes-no": ("yes", "no"), "counting": ("1", "2", "3")}
    wanted |= {"which-shape": SHAPES, "position": POSITIONS, "arrow": DIRECTIONS, "two-which": ("first", "second")}
    for task, truths in wanted.items():
        counts = Counter(case.truth for case in make_cases(task, 144, seed=0))
        assert counts == dict.fromkeys(truths, 144 / len(truths))


def test_questions_read_as_english() -> None:
    questions = {case.question for task in TASKS for case in make_cases(task, 200, seed=0)}
    assert not [q for q in questions if "{" in q or "}" in q]
    assert not [q for q in questions if " a orange" in q or " a arrow" in q or " an red" in q or "crosss" in q]
    assert any(" an orange " in q for q in questions)
    assert any("crosses" in q for q in questions)


# --- marks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "truth", "right"),
    [
        (" Red.", "red", True),
        ("gray", "grey", True),
        ("Top  left", "top left", True),
        ("center", "centre", True),
        ("two", "2", True),
        ("Yes!", "yes", True),
        ("yes and no", "yes", False),
        ("left", "top left", False),
        ("", "red", False),
        ("reddish", "red", False),
    ],
)
def test_short_answers_are_compared_as_words(answer: str, truth: str, right: bool) -> None:
    assert is_right("colour", answer, truth) is right


def test_a_description_must_name_all_figures_and_no_others() -> None:
    truth = "A red circle and a blue square."
    assert is_right("description", "a blue square, and a red circle", truth)
    assert not is_right("description", "A red circle.", truth)
    assert not is_right("description", "A red circle and a blue square and a blue square.", truth)
    assert not is_right("description", "A red square and a blue circle.", truth)
    assert not is_right("description", "", truth)


def test_wilson_interval_matches_published_values() -> None:
    # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17 (1998), table I
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=1e-4)


def test_a_failed_request_is_a_wrong_answer_and_a_floor_can_be_missed() -> None:
    cases = make_cases("arrow", 10, seed=0)
    results = [Result(c, c.truth, error="timeout" if i < 5 else None) for i, c in enumerate(cases)]
    (row,) = scores(results)
    assert (row.n, row.right, row.passed) == (10, 5, False)
    assert "FAIL" in to_table([row])


# --- the whole run, against a stub that speaks just enough OpenAI -----------------------------------------------------


@contextmanager
def stub(answer: Callable[[list[dict[str, Any]]], str]) -> Iterator[str]:
    """A server on a free port that answers each chat with `answer(content parts)`; gives its base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply({"object": "list", "data": [{"id": "stub", "object": "model", "created": 0, "owned_by": "t"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            assert body["temperature"] == 0
            message = {"role": "assistant", "content": answer(body["messages"][0]["content"])}
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


def key(parts: list[dict[str, Any]]) -> tuple[str, ...]:
    """What a server sees of a case: the question, and each picture's bytes."""
    text = next(p["text"] for p in parts if p["type"] == "text")
    urls = [p["image_url"]["url"] for p in parts if p["type"] == "image_url"]
    return (text, *(hashlib.sha256(base64.b64decode(url.partition(",")[2])).hexdigest() for url in urls))


def test_a_server_that_knows_the_truth_gets_everything_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [case for task in TASKS for case in make_cases(task, 6, seed=0)]
    truths = {
        (c.question, *(hashlib.sha256(encode(s)).hexdigest() for s in c.scenes)): c.truth.upper() + "." for c in cases
    }
    with stub(lambda parts: truths[key(parts)]) as url:
        assert main(["--url", url, "--per-task", "6", "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["accuracy"] for row in results["tasks"]] == [1.0] * len(TASKS)
    assert len(results["cases"]) == 6 * len(TASKS)
    table = capsys.readouterr().out
    assert table.count("pass") == 7
    assert "FAIL" not in table
    assert "model stub" in table


def test_a_server_that_always_says_red_is_found_out(tmp_path: Path) -> None:
    with stub(lambda _: "red") as url:
        assert main(["--url", url, "--tasks", "colour", "yes-no", "--per-task", "48", "--out", str(tmp_path)]) == 1
    colour, yes_no = json.loads((tmp_path / "results.json").read_text())["tasks"]
    assert colour["right"] == 4  # 48 questions, twelve colours in turn
    assert yes_no["right"] == 0
    with Image.open(io.BytesIO((tmp_path / "failures.png").read_bytes())) as sheet:
        assert sheet.width > 1000
        assert len(sheet.getcolors(1 << 24) or []) > 20  # pictures are on it, not just paper
    assert (tmp_path / "accuracy.png").stat().st_size > 500


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


def test_normalise_is_idempotent() -> None:
    for text in ("  Top  Left. ", "GRAY", "Three!", "a b"):
        assert normalise(normalise(text)) == normalise(text)
