"""Writes the pages that are made from the code: `python docs/generate.py` (a test fails when they are out of date)."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from sightline import metrics
from sightline.api.openapi import document as openapi_document

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # the test runs this file by its path

from pages_commands import commands_page  # noqa: E402
from pages_configuration import configuration_page, schema_page  # noqa: E402
from pages_images import images_page  # noqa: E402

METRICS = """\
# Metrics

`GET /metrics` answers in Prometheus' text format. Labels come from closed sets: configured model names, routes'
templates, APIs (`openai`, `anthropic`, `ollama`, `ovms`, `simple`, `inside`, `none`), stages, outcomes (`ok`, `cancelled`,
an error's class, `bug`); whatever clients send makes no new time series. This page is made from the code by
`python docs/generate.py`.

[A Prometheus and a Grafana for them](../deploy/prometheus/README.md) · [In the terminal](top.md) · [Traces](tracing.md) ·
[The log](logs.md)

| name | type | labels | unit | meaning |
|---|---|---|---|---|
"""


def metrics_page() -> str:
    rows = []
    for collector in metrics.REGISTRY._collector_to_names:
        labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
        for family in getattr(collector, "describe", collector.collect)():
            name = f"{family.name}_total" if family.type == "counter" else family.name
            rows.append(f"| `{name}` | {family.type} | {labels} | {_unit(family.name)} | {family.documentation} |")
    return METRICS + "\n".join(rows) + "\n"


def _unit(name: str) -> str:
    """A metric's, which its name says; without one it is a count."""
    return next((unit for unit in ("seconds", "bytes", "pixels", "tokens") if unit in name.split("_")), "")


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
rasteriser, sizes 56 to 1,200 px, PNG and JPEG, other phrasings, half of them with the text before the picture). These are
the figures of version 0 by the evaluation of its day; `make eval-peek` measures more by now: all that version 1 has to know.

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


PEEK_1 = """\
# The embedded model

`peek` is a tiny vision-language model that ships in the package: Qwen2-VL architecture, {parameters} parameters, trained in this
repository on drawn pictures. It exists so that you can try everything offline, and so that tests can ask what a model saw.
This page is made by `python docs/generate.py` from `docs/peek.json`, which `make eval-peek` measures.

## What it knows

Flat pictures of up to a few shapes: circle, square, triangle, star, cross, diamond, ring, arrow; in red, green, blue, yellow, orange,
purple, pink, brown, black, white, grey, cyan. Ask for a colour, the background, a shape, how many (nought to five), where (nine places:
`top left` … `bottom right`, `centre`), whether something is there, which way an arrow points, which shape is larger or smaller, where
one stands relative to another, or for a description. It reads one word of up to eight capitals and digits, or two words on two lines,
and simple bar charts: which bar is tallest or shortest, the value above a bar, how many bars. It keeps two to four pictures of one
conversation apart, and answers about an earlier one. To anything else it says: "I can only see simple shapes, charts and short text."

## How well

{n} questions a task, greedy, through the running server, on pictures drawn by code that shares nothing with the training's: another
rasteriser, other fonts, other phrasings; 56 to 4,000 px, ratios to 4:1, PNG and JPEG from quality 50, every Exif orientation flag,
outlines, gradients, slight blur and noise, half of them with the text before the picture.

    make eval-peek PER_TASK={n}

| task | right | 95 % interval | floor | |
|---|---|---|---|---|
{rows}

![Accuracy by task](peek-accuracy.png)

{verdict}

{refusals}

{photographs}

## Under which conditions

All questions about one picture, by what its file was like. Points are against what the same tasks get under all conditions: far below
nought would be a fault of the server's decoding as likely as of the model.

| condition | | questions | right | points |
|---|---|---|---|---|
{conditions}
{compared}
## Its pictures

Any picture becomes {min_tokens} to {max_tokens} tokens of 28x28 pixels: smaller ones are enlarged, larger ones reduced, keeping the aspect ratio.
Text is legible to it where capitals are at least 12 px high after that.

## How it was made

    make train-peek      # resumes where it stopped; two CPU cores, or a GPU where there is one

The log, seed and machine of the shipped weights are in the [model card](../src/sightline/peek/model/README.md); the recipe is
`training/peek/`. The safetensors checkpoint and the OpenVINO files hold the same numbers.
"""

PHOTOGRAPHS = """\
Of real photographs, which we cannot ship and therefore report apart, it refuses {share:.1f} % ({refused} of {n} answers; 95 % interval
{low:.1f} … {high:.1f})."""

NO_PHOTOGRAPHS = """\
"Cannot" is measured on stand-ins: 1/f noise, terrain, shaded renders, collages, textures, screenshots. Real photographs were not part of
this run (`python -m training.peek.evaluation --photographs DIR`)."""


def peek_page(file: Path = HERE / "peek.json") -> str:
    """The evaluation's figures as a page; verdicts are computed, so that a missed floor cannot go unsaid."""
    run = json.loads(file.read_text())
    model = HERE.parent / "src" / "sightline" / "peek" / "model"
    pixels = json.loads((model / "preprocessor_config.json").read_text())
    known = {
        "n": run["tasks"][0]["n"],
        "rows": "\n".join(_task_row(task) for task in run["tasks"]),
        "verdict": _verdict(run),
        "parameters": _in_millions(model / "model.safetensors"),
        "min_tokens": pixels["min_pixels"] // 28**2,
        "max_tokens": pixels["max_pixels"] // 28**2,
    }
    if "evaluation" not in run:  # measured before the evaluation's files had a form
        return PEEK.format(**known)
    return PEEK_1.format(
        **known,
        refusals=_refusals(run["false_refusals"]),
        photographs=_photographs(run["photographs"]),
        conditions="\n".join(_condition_rows(run["conditions"])),
        compared="".join(_compared(run, other) for other in run.get("compared", [])),
    )


def _task_row(task: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in task["interval_95"])
    floor = "" if task["floor"] is None else f"{100 * task['floor']:.0f} %"
    verdict = "" if task["floor"] is None else "reached" if task["passed"] else "**missed**"
    return f"| {task['task']} | {100 * task['accuracy']:.1f} % | {low:.1f} … {high:.1f} | {floor} | {verdict} |"


def _verdict(run: dict[str, Any]) -> str:
    missed = [task["task"] for task in run["tasks"] if not task["passed"]]
    if missed:
        return f"Floors missed: {', '.join(missed)}."
    return "Every floor is reached." if "evaluation" in run else "Every floor of version 0 is reached."


def _refusals(refusals: dict[str, Any]) -> str:
    low, high = (100 * bound for bound in refusals["interval_95"])
    return (
        f"False refusals, over all {refusals['n']} questions that it could have answered: {100 * refusals['share']:.1f} % "
        f"(95 % interval {low:.1f} … {high:.1f}; at most {100 * refusals['ceiling']:.0f} % wanted: "
        f"{'reached' if refusals['passed'] else '**missed**'})."
    )


def _photographs(photographs: dict[str, Any] | None) -> str:
    if photographs is None:
        return NO_PHOTOGRAPHS
    low, high = (100 * bound for bound in photographs["interval_95"])
    counts = {name: photographs[name] for name in ("refused", "n")}
    return PHOTOGRAPHS.format(share=100 * photographs["share"], low=low, high=high, **counts)


def _condition_rows(conditions: dict[str, Any]) -> list[str]:
    return [
        f"| {name} | {label} | {count['n']} | {100 * count['right'] / count['n']:.1f} % | "
        f"{100 * (count['right'] - count['expected']) / count['n']:+.1f} |"
        for name, classes in conditions.items()
        for label, count in classes.items()
    ]


def _compared(run: dict[str, Any], other: dict[str, Any]) -> str:
    """Another run beside this one: other weights, another precision."""
    mine = {task["task"]: task["accuracy"] for task in run["tasks"]}
    rows = [
        f"| {row['task']} | {100 * mine[row['task']]:.1f} % | {100 * row['accuracy']:.1f} % | {row['difference']:+.1f} |"
        for row in other["tasks"]
    ]
    head = [f"\n## {run['label']} beside {other['name']}\n", f"| task | {run['label']} | {other['name']} | points |"]
    return "\n".join([*head, "|---|---|---|---|", *rows, ""]) + "\n"


def _in_millions(checkpoint: Path) -> str:
    """Parameters of a safetensors file, from its header (https://github.com/huggingface/safetensors#format)."""
    with checkpoint.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    sizes = [math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__"]
    return f"{sum(sizes) / 1e6:.1f} million"


PAGES = {
    "commands.md": commands_page,
    "configuration.md": configuration_page,
    "images.md": images_page,
    "metrics.md": metrics_page,
    "peek.md": peek_page,
    "sightline.schema.json": schema_page,
    "../src/sightline/api/openapi/openapi.json": openapi_document.to_json,
}


def main() -> None:
    for name, page in PAGES.items():
        (HERE / name).write_text(page())


if __name__ == "__main__":
    main()
