"""The evaluation of `peek` shares nothing with the training; its pictures show what they say."""

from __future__ import annotations

import ast
import hashlib
import importlib
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from PIL import Image, ImageOps

from tests.training.samples import small_cases
from training.peek.evaluation import elsewhere
from training.peek.evaluation.drawing import DIRECTIONS, Block, Figure, Finish, Scene, Text, draw
from training.peek.evaluation.files import encode, upright
from training.peek.evaluation.lettering import FONTS, cover, extent
from training.peek.evaluation.shapes import SHAPES, apparent_size

PEEK = Path(__file__).parents[2] / "training" / "peek"


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
    assert len(files) > 15
    ours = {name for file in files for name in imported(file) if name.startswith("training")}
    assert ours
    assert {n for n in ours if not n.startswith("training.peek.evaluation")} == set()


def test_training_imports_nothing_from_the_evaluation() -> None:
    files = list(PEEK.glob("*.py"))
    assert files
    assert {f.name: n for f in files for n in imported(f) if "evaluation" in n} == {}
    # the package's own file runs before the evaluation does
    assert not [name for name in imported(PEEK / "__init__.py") if name.startswith("training")]


def samplers_of_training() -> list[Callable[..., Any]]:
    """Every public function of the training that makes a scene on a grid: they begin with (rng, rows, columns)."""
    return [
        getattr(importlib.import_module(f"training.peek.{file.stem}"), node.name)
        for file in sorted(PEEK.glob("*.py"))
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and [argument.arg for argument in node.args.args][:3] == ["rng", "rows", "columns"]
    ]


def test_no_picture_is_shared_with_training() -> None:
    from training.peek.draw import draw as draw_for_training
    from training.peek.world import sample_grid

    def digest(pixels: Any) -> str:
        return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()

    ours = [digest(draw(scene)) for case in small_cases(4, 0) for scene in case.scenes]
    samplers, rng = samplers_of_training(), np.random.default_rng(0)
    assert samplers
    each = 120 // len(samplers)
    theirs = [digest(draw_for_training(f(rng, *sample_grid(rng)), rng)) for f in samplers for _ in range(each)]
    assert len(set(ours)) == len(ours)  # else a digest would not tell pictures apart
    assert len(set(theirs)) > 100
    assert not set(ours) & set(theirs)


def families(directory: Path) -> set[str]:
    """Names of the font families whose files lie under a directory."""
    found = set()
    for file in [*directory.rglob("*.ttf"), *directory.rglob("*.otf")]:
        names = TTFont(file)["name"]
        found |= {name for number in (1, 16) if (name := names.getDebugName(number))}
    return found


def test_no_font_is_shared_with_training() -> None:
    ours = families(PEEK / "evaluation" / "fonts")
    assert {"Inter", "Noto Serif", "JetBrains Mono"} <= ours
    theirs = [f for f in PEEK.rglob("*.[to]tf") if "evaluation" not in f.parts]
    ours_by_content = {hashlib.sha256(f.read_bytes()).digest() for f in (PEEK / "evaluation").rglob("*.[to]tf")}
    assert not {f.name for f in theirs if hashlib.sha256(f.read_bytes()).digest() in ours_by_content}
    their_families = {family for file in theirs for family in families(file.parent)}
    assert not ours & their_families
    kept_for_training = ("DejaVu", "Liberation", "Roboto", "Open Sans", "Lato", "Fira")
    assert not [family for family in ours if family.startswith(kept_for_training)]


def test_fonts_come_with_their_licence() -> None:
    text = (PEEK / "evaluation" / "fonts" / "README.md").read_text()
    files = [*(PEEK / "evaluation" / "fonts").glob("*.[to]tf")]
    assert len(files) == len(FONTS) == 10
    assert not [file.name for file in files if f"`{file.name}`" not in text]
    assert sum(file.stat().st_size for file in files) < 80_000


# --- drawing ---------------------------------------------------------------------------------------------------------


def alone(shape: str, **kwargs: Any) -> tuple[Figure, np.ndarray]:
    """A black figure in the middle of a white square, and the share of each pixel that it covers."""
    figure = Figure(shape, "black", (0, 0, 0), 50.0, 50.0, 40.0, **kwargs)
    return figure, 1 - draw(blank(100, 100, figures=(figure,)))[:, :, 0] / 255


def blank(width: int, height: int, **contents: Any) -> Scene:
    return Scene(width, height, "white", (255, 255, 255), **contents)


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
    figure, coverage = alone(shape, tilt=tilt)
    assert coverage.sum() == pytest.approx(area, rel=0.01)
    hole = math.pi * (0.56 * 40) ** 2 if shape == "ring" else 0
    assert apparent_size(shape, figure.radius, figure.proportion) ** 2 == pytest.approx(area + hole, rel=0.01)


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


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape not in ("circle", "ring")])
def test_an_outline_is_the_rim_of_its_shape(shape: str) -> None:
    (_, filled), (_, outlined) = alone(shape), alone(shape, stroke=4.0)
    assert (outlined <= filled + 0.02).all()
    assert 0.2 * filled.sum() < outlined.sum() < 0.85 * filled.sum()


def test_a_gradient_runs_from_top_to_bottom() -> None:
    figure = Figure("square", "red", (255, 0, 0), 50, 50, 40, rgb_below=(155, 0, 0))
    pixels = draw(blank(100, 100, figures=(figure,), background_below=(200, 200, 200)))
    assert pixels[30, 50, 0] > pixels[50, 50, 0] > pixels[70, 50, 0] > 150
    assert pixels[0, 0, 0] > 250 > 205 > pixels[99, 0, 0]


def test_a_block_covers_its_area() -> None:
    pixels = draw(blank(20, 20, blocks=(Block(2.5, 3, 10, 8.25, (0, 0, 0)),)))
    assert (1 - pixels[:, :, 0] / 255).sum() == pytest.approx(7.5 * 5.25, rel=0.01)


@pytest.mark.parametrize("font", FONTS)
def test_capitals_are_as_high_as_they_were_asked_to_be(font: str) -> None:
    found = cover("HEH", font, 40.0, (100.0, 50.0))
    rows = np.flatnonzero(found.values.max(axis=1) > 0.5) + found.top
    columns = np.flatnonzero(found.values.max(axis=0) > 0.5) + found.left
    assert len(rows) == pytest.approx(40, abs=1)
    assert (rows[0] + rows[-1] + 1) / 2 == pytest.approx(50, abs=1)
    assert (columns[0] + columns[-1] + 1) / 2 == pytest.approx(100, abs=2)
    assert len(columns) <= extent("HEH", font, 40.0)


@pytest.mark.parametrize("font", FONTS)
def test_every_letter_and_digit_looks_different(font: str) -> None:
    drawn = {}
    for character in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789":
        canvas = draw(blank(60, 60, texts=(Text(character, font, (0, 0, 0), 30, 30, 30),)))[:, :, 0]
        assert canvas.min() < 40, character  # it is there
        assert canvas[0].min() == canvas[-1].min() == 255  # and nowhere else
        drawn[character] = canvas.tobytes()
    assert len(set(drawn.values())) == 36


def test_holes_of_letters_stay_open() -> None:
    found = cover("O", "Inter-Bold", 60.0, (50.0, 50.0)).values
    assert found[found.shape[0] // 2, found.shape[1] // 2] == 0
    assert found[found.shape[0] // 2].max() == 1


def test_a_character_that_fonts_lack_is_said() -> None:
    with pytest.raises(ValueError, match="capitals, digits"):
        cover("a", FONTS[0], 20.0, (0.0, 0.0))


@pytest.mark.parametrize("kind", elsewhere.KINDS)
def test_pictures_from_elsewhere_are_rich_and_repeat(kind: str) -> None:
    one, again, other = (elsewhere.picture(kind, 120, 90, seed) for seed in (1, 1, 2))
    assert one.shape == (90, 120, 3)
    assert (one == again).all()
    assert np.abs(one.astype(int) - other).mean() > 5
    assert len(np.unique(one.reshape(-1, 3), axis=0)) > 500  # no drawing of flat colours


def test_a_scene_survives_json_and_draws_the_same() -> None:
    for case in small_cases(2, 3):
        for scene in case.scenes:
            again = Scene.from_json(json.loads(json.dumps(scene.to_json())))
            assert again == scene
            assert encode(again) == encode(scene)


@pytest.mark.parametrize("flag", range(1, 9))
@pytest.mark.parametrize("encoding", ["png", "jpeg:90"])
def test_a_file_is_stored_turned_and_its_flag_turns_it_back(flag: int, encoding: str) -> None:
    figure = Figure("arrow", "blue", (0, 0, 200), 20, 60, 15, direction="left")
    scene = blank(60, 90, figures=(figure,), finish=Finish(encoding, flag))
    with Image.open(io.BytesIO(encode(scene))) as stored:
        assert stored.size == ((90, 60) if flag >= 5 else (60, 90))
        turned = np.asarray(ImageOps.exif_transpose(stored), float)
        if flag > 1:
            assert np.abs(np.asarray(stored.resize((60, 90)), float) - draw(scene)).mean() > 3
    assert np.abs(turned - draw(scene)).mean() < (0.01 if encoding == "png" else 2)


def test_blur_and_noise_are_slight_but_there() -> None:
    figure = Figure("square", "red", (200, 0, 0), 40, 40, 30)
    plain, blurred, noisy = (
        np.asarray(upright(blank(80, 80, figures=(figure,), seed=1, finish=finish)), float)
        for finish in (Finish(), Finish(blur=1.0), Finish(noise=6.0))
    )
    assert np.abs(np.diff(blurred[40, :, 1])).max() < 0.6 * np.abs(np.diff(plain[40, :, 1])).max()
    assert (noisy - plain)[20:60, 20:60, 0].std() == pytest.approx(6, rel=0.2)
    assert np.abs(noisy - plain).mean() < 8
