"""Writes the pages that are made from the code: `python docs/generate.py` (a test fails when they are out of date)."""

from __future__ import annotations

import json
import math
from pathlib import Path

from sightline import metrics

HERE = Path(__file__).parent

METRICS = """\
# Metrics

`GET /metrics` answers in Prometheus' text format. Labels come from closed sets: configured model names, stages,
outcomes (`ok`, `cancelled`, an error's class, `bug`). This page is made from the code by `python docs/generate.py`.

| name | type | labels | meaning |
|---|---|---|---|
"""


def metrics_page() -> str:
    rows = []
    for collector in metrics.REGISTRY._collector_to_names:
        (family,) = collector.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return METRICS + "\n".join(rows) + "\n"


PEEK = """\
# The embedded model

`peek` is a tiny vision-language model that ships in the package: Qwen2-VL architecture, {parameters} parameters, trained in this
repository on drawn shapes. It exists so that you can try everything offline, and so that tests can ask what a model saw.
This page is made by `python docs/generate.py` from `docs/peek.json`, which `make eval-peek` measures.

## What it knows

Flat pictures of one to a few shapes: circle, square, triangle, star, cross, diamond, ring, arrow; in red, green, blue, yellow,
orange, purple, pink, brown, black, white, grey, cyan. Ask for a colour, the background, a shape, how many (up to three), where (nine
places: `top left` … `bottom right`, `centre`), whether something is there, which way an arrow points, or for a description. Answers are
short lower-case words. It does not know photographs, and does not say so yet: it answers with the nearest thing it knows. It cannot read.

## How well

{n} questions a task, greedy, through the running server, on pictures drawn by code that shares nothing with the training's (another
rasteriser, sizes 56 to 1,200 px, PNG and JPEG, other phrasings, half of them with the text before the picture):

    make eval-peek PER_TASK={n}

| task | right | 95 % interval | floor of version 0 | |
|---|---|---|---|---|
{rows}

![Accuracy by task](peek-accuracy.png)

{verdict}

## Its pictures

Any picture becomes {min_tokens} to {max_tokens} tokens of 28x28 pixels: smaller ones are enlarged, larger ones reduced, keeping the aspect ratio.

## How it was made

    make train-peek MINUTES=110      # a fresh run on two CPU cores, or a GPU where there is one; resumes where it stopped

The log, seed and machine of the shipped weights are in the [model card](../src/sightline/peek/model/README.md); the recipe is
`training/peek/`. The safetensors checkpoint and the OpenVINO files hold the same numbers, rounded to fp16 before they were
measured, computed in f32.
"""


def peek_page() -> str:
    """The evaluation's tasks as a table; the verdict is computed, so that a missed floor cannot go unsaid."""
    tasks = json.loads((HERE / "peek.json").read_text())["tasks"]
    model = HERE.parent / "src" / "sightline" / "peek" / "model"
    rows, missed = [], []
    for task in tasks:
        low, high = (100 * bound for bound in task["interval_95"])
        floor = "" if task["floor"] is None else f"{100 * task['floor']:.0f} %"
        verdict = "" if task["floor"] is None else "reached" if task["passed"] else "**missed**"
        rows.append(
            f"| {task['task']} | {100 * task['accuracy']:.1f} % | {low:.1f} … {high:.1f} | {floor} | {verdict} |"
        )
        if not task["passed"]:
            missed.append(task["task"])
    pixels = json.loads((model / "preprocessor_config.json").read_text())
    return PEEK.format(
        n=tasks[0]["n"],
        rows="\n".join(rows),
        verdict=f"Floors missed: {', '.join(missed)}." if missed else "Every floor of version 0 is reached.",
        parameters=_in_millions(model / "model.safetensors"),
        min_tokens=pixels["min_pixels"] // 28**2,
        max_tokens=pixels["max_pixels"] // 28**2,
    )


def _in_millions(checkpoint: Path) -> str:
    """Parameters of a safetensors file, from its header (https://github.com/huggingface/safetensors#format)."""
    with checkpoint.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    sizes = [math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
    return f"{sum(sizes) / 1e6:.1f} million"


PAGES = {"metrics.md": metrics_page, "peek.md": peek_page}


def main() -> None:
    for name, page in PAGES.items():
        (HERE / name).write_text(page())


if __name__ == "__main__":
    main()
