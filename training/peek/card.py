"""The model card: what this model is, how it came to be, and what it can't do, from the run's own log."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from string import Template
from typing import Any, Final

from training.peek import model as net
from training.peek import world
from training.peek.talk import REFUSAL
from training.peek.tokens import VOCABULARY

_CARD: Final = Template("""---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
tags: [qwen2_vl, tiny, synthetic]
---

# peek, version 1

A vision-language model of $millions million parameters that ships inside Sightline, so that a fresh
installation can see something at once and tests can ask whether a picture truly reached the model.
It has the architecture of Qwen2-VL and loads wherever that does; it has seen nothing but drawings of
simple shapes, words, bar charts, and patterns that are none of them.

| | |
|---|---|
| vision tower | $depth layers, $vision_dim wide, $vision_heads heads; patch 14, 2x2 merged: 28x28 px a token |
| language model | $layers layers, $hidden wide, $heads heads, $kv_heads key/value heads of $head_dim |
| vocabulary | $vocabulary byte-level BPE tokens, Qwen2's split pattern; capitals and digits stay single |
| pictures | $min_tokens-$max_tokens vision tokens ($min_pixels to $max_pixels pixels after resizing), any aspect |
| weights | fp16 (rounded before every evaluation), embeddings tied |

## Its world

One to five flat shapes ($shapes) that don't touch, in $colours, on one background; one word of one to eight
capitals and digits, or two on two lines; bar charts of two to five bars, with a letter or digit below and the value
above each. Pictures have an aspect ratio up to 4:1, slight gradients, borders, blur, noise or JPEG artefacts.
Questions in English, many phrasings of each, text before or after the picture:

- the colour of a shape, the colour of the background, which shape, how many (to five), whether there is one;
- where: $cells (the cell of a 3x3 grid that holds the centre); which way an arrow points;
- which of two shapes is larger, which of all is the largest or smallest;
- where one shape stands relative to another: left, right, above, below;
- what is written: the word, both words, or one of two lines (capitals at least 12 px high after resizing);
- charts: which bar is tallest or shortest, the value above a bar, how many bars;
- a description of shapes in one sentence;
- two to four pictures in one conversation: any of this about one of them, or which of them has something;
- greetings, thanks, who it is.

To pictures of anything else, and to questions about anything else, it answers: "$refusal"

Answers are short: `red`, `yes`, `2`, `top left`, `first`, `HELLO7`.

## Training

`python -m training.peek.train --minutes $minutes_asked`, seed $seed, commit $commit, on $machine:
$minutes minutes, $steps steps, about $pictures pictures looked at, each drawn once and asked about in several steps.
The run was made in $calls calls that went on where the one before had stopped.
For the first $dense_minutes minutes the vision tower learns alone, from dense labels (shape, colour, arrow
direction, cell, place, characters and background of every vision token); then questions and dense labels together,
the tasks that an exam finds weak asked more often. Muon for the matrices inside blocks, AdamW for the rest, bf16
arithmetic, averaged weights. The fonts read from are in `training/peek/fonts`.

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

It knows no lower-case letters, no sentences, no overlapping shapes and no chart but upright bars. Shapes below a
seventh of the short side, more than five of them, textures and colours between two names are beyond it. Whether a
picture belongs to its world is itself a guess. Don't use it for anything but trying and testing a server.
""")


def _excerpt(lines: list[dict[str, Any]], count: int = 12) -> str:
    steps = [line for line in lines if "loss" in line]
    chosen = steps[:: max(1, len(steps) // count)]
    keys = ("minute", "step", "stage", "loss", "answers", "token shape", "token under", "pictures_per_s")
    return "\n".join(json.dumps({key: line[key] for key in keys if key in line}) for line in chosen)


def card(lines: list[dict[str, Any]]) -> str:
    """The text of the card for a run whose log is `lines`."""
    started = [line for line in lines if "recipe" in line]
    recipes = [line["recipe"] for line in started]
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
        minutes_asked=f"{recipes[-1]['minutes']:g}", seed=recipes[-1]["seed"], machine=started[-1]["machine"],
        commit=", ".join(dict.fromkeys(line["commit"] for line in started)), refusal=REFUSAL,
        minutes=round(lines[-1]["minute"]), steps=f"{steps[-1]['step']:,}", pictures=f"{round(seen, -3):,.0f}",
        calls=len(started),
        dense_minutes=round(recipes[0]["minutes"] * recipes[0]["dense_share"]),
        excerpt=_excerpt(lines), table=table,
    )  # fmt: skip


def write_card(run: Path, target: Path) -> None:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    (target / "README.md").write_text(card(lines))
