"""The model card: what this model is, how it came to be, and what it can't do, from the run's own log."""

from __future__ import annotations

import json
import os
import platform
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any, Final

from training.peek import model as net
from training.peek import world
from training.peek.tokens import VOCABULARY

_CARD: Final = Template("""---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
tags: [qwen2_vl, tiny, synthetic]
---

# peek, version 0

A vision-language model of $millions million parameters that ships inside Sightline, so that a fresh
installation can see something at once and tests can ask whether a picture truly reached the model.
It has the architecture of Qwen2-VL and loads wherever that does; it has seen nothing but drawings of
simple shapes.

| | |
|---|---|
| vision tower | $depth layers, $vision_dim wide, $vision_heads heads; patch 14, 2x2 merged: 28x28 px a token |
| language model | $layers layers, $hidden wide, $heads heads, $kv_heads key/value heads of $head_dim |
| vocabulary | $vocabulary byte-level BPE tokens, Qwen2's split pattern; capitals and digits stay single |
| pictures | $min_tokens-$max_tokens vision tokens ($min_pixels to $max_pixels pixels after resizing), any aspect |
| weights | fp16 (rounded before every evaluation), embeddings tied |

## Its world

One to four flat shapes ($shapes) that don't touch, in $colours, on one background, in pictures with an
aspect ratio up to 4:1, with slight gradients, borders, blur, noise or JPEG artefacts.
Questions in English, many phrasings of each, text before or after the picture:

- the colour of a shape, the colour of the background;
- which shape, how many (to four), whether there is one (yes or no);
- where: $cells (the cell of a 3x3 grid that holds the centre);
- which way an arrow points: up, down, left, right;
- a description in one sentence (weak);
- two pictures: the same about the first or the second, and which of them has something (weaker with several shapes
  in a picture).

Weakest where colour and shape must be matched together among several shapes: whether there is "a red star" beside a
red circle and a blue star, and how many there are of a kind named by colour and shape.

Answers are short and lower-case: `red`, `yes`, `2`, `top left`, `first`.

## Training

`python -m training.peek.train --minutes $minutes_asked`, seed $seed, on $machine:
$minutes minutes, $steps steps, about $pictures pictures, each drawn once and asked about several times.
The run was stopped and resumed $resumed times, to make steps faster and to ask more of what it had not yet
learned; the recipe in the repository is the last one, and other programs shared the machine. So a run
from nothing takes the same road at another pace.
For the first $dense_minutes minutes the vision tower learns alone, from dense labels (shape, colour, arrow
direction, cell and background of every vision token); then questions and dense labels together. Muon for
the matrices inside blocks, AdamW for the rest, bf16 arithmetic, averaged weights.

Excerpt of the log:

```
$excerpt
```

## Accuracy

Whole answers right, greedy, on unseen scenes of the training generator (an evaluation with drawing code
and phrasings of its own is the one to trust, and is reported by the project):

| task | right |
|---|---|
$table

## Limits

It can't read, knows no photographs, no charts and no relations between shapes, and has no way to say so
yet: outside its world it answers anyway. Shapes below a sixth of the short side, more than four of them,
overlaps, textures and colours between two names are beyond it. Don't use it for anything but trying and
testing a server.
""")


def _machine() -> str:
    accelerator = "" if not os.environ.get("CUDA_VISIBLE_DEVICES") else " and a GPU"
    return f"{os.cpu_count()} {platform.machine()} CPU cores{accelerator}"


def _excerpt(lines: list[dict[str, Any]], count: int = 12) -> str:
    steps = [line for line in lines if "loss" in line]
    chosen = steps[:: max(1, len(steps) // count)]
    keys = ("minute", "step", "stage", "loss", "answers", "token shape", "pictures_per_s")
    return "\n".join(json.dumps({key: line[key] for key in keys if key in line}) for line in chosen)


def card(lines: list[dict[str, Any]]) -> str:
    """The text of the card for a run whose log is `lines`."""
    recipes = [line["recipe"] for line in lines if "recipe" in line]
    steps = [line for line in lines if "loss" in line]
    graded = [line["accuracy"] for line in lines if "accuracy" in line]
    seen = sum((line["minute"] - before["minute"]) * 60 * line["pictures_per_s"] for before, line in pairwise(steps))
    table = "\n".join(f"| {task} | {share:.1%} |" for task, share in (graded[-1] if graded else {}).items())
    parameters = next(line["parameters"] for line in lines if "parameters" in line)
    token = world.TOKEN_PX**2
    return _CARD.substitute(
        millions=f"{parameters / 1e6:.1f}",
        depth=net.VISION_DEPTH, vision_dim=net.VISION_DIM, vision_heads=net.VISION_HEADS,
        layers=net.LAYERS, hidden=net.HIDDEN, heads=net.HEADS, kv_heads=net.KV_HEADS, head_dim=net.HEAD_DIM,
        vocabulary=VOCABULARY,
        min_tokens=world.MIN_PIXELS // token, max_tokens=world.MAX_PIXELS // token,
        min_pixels=f"{world.MIN_PIXELS:,}", max_pixels=f"{world.MAX_PIXELS:,}",
        shapes=", ".join(world.SHAPES), colours=", ".join(world.COLOURS), cells=", ".join(world.CELLS),
        minutes_asked=f"{recipes[-1]['minutes']:g}", seed=recipes[-1]["seed"], machine=_machine(),
        minutes=round(lines[-1]["minute"]), steps=f"{steps[-1]['step']:,}", pictures=f"{round(seen, -3):,.0f}",
        resumed=len(recipes) - 1,
        dense_minutes=round(recipes[0]["minutes"] * recipes[0]["dense_share"]),
        excerpt=_excerpt(lines), table=table,
    )  # fmt: skip


def write_card(run: Path, target: Path) -> None:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (target / "README.md").write_text(card(lines))
