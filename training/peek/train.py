"""Train `peek` for a number of minutes.

    python -m training.peek.train --minutes 110 --out runs/peek [--resume] [--until-minute 40]

First the vision tower alone learns from dense labels of pictures full of shapes and characters:
questions by themselves teach it nothing for very long. Then questions and dense labels together. The
schedule follows the clock, so that MINUTES is kept on any machine; every minute a checkpoint is
written from which `--resume` goes on, and `--until-minute` ends a run early on the schedule of the
whole. On a GPU other processes draw the pictures; on a CPU two processes share the work.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from training.peek.batches import Rows
from training.peek.draw import BLANK, IGNORE, NOTHING
from training.peek.feed import Feed, OnDevice, to_device
from training.peek.log import LOG
from training.peek.model import Peek
from training.peek.recipe import Recipe, Span, recipe_for
from training.peek.studio import Exam, make_exam
from training.peek.tasks import TASKS

CHECKPOINT: Final = "checkpoint.pt"
_WARM_SHARE: Final = 0.1
"""Of a run, for its warm-up at most."""
_SAVE_EVERY_S: Final = 60.0
_LOG_EVERY: Final = 20
_LOG_EVERY_S: Final = 10.0
"""A line in the log after so many steps or seconds, whichever comes first: a slow machine is told of too."""
_EXAMS: Final = (16, 24)
"""Groups of pictures an exam has, and pictures in each."""


class Crew:
    """The processes of a run. They hold equal models, and share gradients and the first one's clock."""

    def __init__(self, rank: int, size: int, meeting_point: Path) -> None:
        self.rank, self.size = rank, size
        self.stopped = False
        self._stop = threading.Event()
        self._base = time.monotonic()
        if size > 1:
            torch.distributed.init_process_group("gloo", f"file://{meeting_point}", rank=rank, world_size=size)

    def start_clock(self, elapsed_s: float) -> None:
        self._base = time.monotonic() - elapsed_s

    def stop(self) -> None:
        """Ask everybody to stop after the step that runs now."""
        self._stop.set()

    def share(self, parameters: Iterable[nn.Parameter]) -> float:
        """Average the gradients of all; returns the elapsed seconds all go by."""
        clock = [time.monotonic() - self._base, 0.0] if self.rank == 0 else [0.0, 0.0]
        clock[1] = float(self._stop.is_set())
        if self.size > 1:
            gradients = [p.grad for p in parameters if p.grad is not None]
            flat = torch.cat([*(g.flatten().cpu() for g in gradients), torch.tensor(clock)])
            torch.distributed.all_reduce(flat)
            *parts, times = flat.split([*(g.numel() for g in gradients), 2])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient) / self.size)
            clock = times.tolist()
        self.stopped = clock[1] > 0
        return clock[0]


_NOTHING: Final = {"shape": NOTHING, "under": BLANK, **{f"read_{place}": BLANK for place in (1, 2, 3, 4)}}
_HEAD_WEIGHTS: Final = {"background": 0.3, "row": 0.3, "column": 0.3, "place": 0.5}


class Trainer:
    """A model with its optimisers, its averaged twin and its place in the schedule."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.device = torch.device(recipe.device)
        self.model = Peek().to(self.device)
        if recipe.compile:
            torch._dynamo.config.suppress_errors = True  # what can't be compiled runs as it is
            for block in [*self.model.visual.blocks, *self.model.model.layers]:
                block.compile(dynamic=True)
        self.average = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.optimisers = self._optimisers()
        self.step = 0
        self.elapsed_s = 0.0

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        """Muon for the matrices inside blocks and merger, AdamW for all the rest."""
        matrices: list[nn.Parameter] = []
        rest: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            inner = name.startswith(("visual.blocks", "visual.merger", "model.layers"))
            (matrices if inner and parameter.ndim == 2 else rest).append(parameter)
        recipe = self.recipe
        muon = torch.optim.Muon(
            matrices, lr=recipe.muon_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        fused = self.device.type == "cuda"
        adam = torch.optim.AdamW(rest, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)
        for optimiser in (muon, adam):
            for group in optimiser.param_groups:
                group["peak"] = group["lr"]
        return [muon, adam]

    @property
    def progress(self) -> float:
        return self.elapsed_s / (self.recipe.minutes * 60)

    @property
    def joint(self) -> bool:
        return self.progress >= self.recipe.dense_share

    def rate(self) -> float:
        """Share of the peak rate: a short warm-up, a plateau, then a cosine to almost nothing.

        The warm-up is counted in steps, but a machine that makes few is not all of its run at it.
        """
        warm = min(1.0, max((self.step + 1) / self.recipe.warm_steps, self.progress / _WARM_SHARE))
        hold = self.recipe.hold_until
        fall = min(1.0, max(0.0, (self.progress - hold) / (1 - hold)))
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))

    def train_on(self, batch: OnDevice, crew: Crew) -> dict[str, Tensor]:
        """One step. What it reports stays on the device, so that nothing waits for it."""
        with torch.autocast(self.device.type, torch.bfloat16):
            features = self.model.look(batch.pictures)
            dense, report = self._dense(features, batch.labels)
            loss = dense
            if batch.rows:
                answers = self._answers(features, batch.rows)
                loss = answers + self.recipe.dense_weight * dense
                report["answers"] = answers.detach()
        report["loss"] = loss.detach()
        loss.backward()
        self.elapsed_s = crew.share(self.model.parameters())
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * self.rate()
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self._update_average()
        return report

    def _dense(self, features: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the heads' losses. Nothing (background, no character) is easy and everywhere: it counts less."""
        total = torch.zeros((), device=self.device)
        report: dict[str, Tensor] = {}
        for name, logits in self.model.dense(features).items():
            target = labels[name].long()
            known = target != IGNORE
            nothing = _NOTHING.get(name)
            weight = known.float()
            if nothing is not None:
                weight = weight * torch.where(target == nothing, 0.1, 1.0)
                known = known & (target != nothing)
            losses = F.cross_entropy(logits.float(), target, ignore_index=IGNORE, reduction="none")
            total = total + _HEAD_WEIGHTS.get(name, 1.0) * (losses * weight).sum() / weight.sum().clamp(min=1)
            right = ((logits.detach().argmax(-1) == target) & known).sum()
            report[f"token {name}"] = right / known.sum().clamp(min=1)
        return total, report

    def _answers(self, features: Tensor, rows: Iterable[Rows]) -> Tensor:
        total, count = torch.zeros((), device=self.device), 0
        for group in rows:
            hidden = self.model.answer(features, group.ids, group.source, group.positions, group.segments)
            logits = self.model.logits(hidden.flatten(0, 1)[group.learnt]).float()
            total = total + F.cross_entropy(logits, group.targets.flatten()[group.learnt], reduction="sum")
            count += len(group.learnt)
        return total / count

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [state[name] for name in self.average], 1 - keep)

    def save(self, path: Path, factors: np.ndarray[Any, Any]) -> None:
        """Write all that `load` needs; a run that is killed meanwhile leaves the older file."""
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "rng": torch.get_rng_state(),
            "factors": torch.from_numpy(factors.copy()),
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> np.ndarray[Any, Any]:
        """Go on from `path`; the recipe stays the one given now, so that a run can be steered. Returns the mixture."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            peaks = [group["peak"] for group in optimiser.param_groups]
            optimiser.load_state_dict(saved)
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["peak"] = peak
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        torch.set_rng_state(state["rng"].cpu())
        factors: np.ndarray[Any, Any] = state["factors"].cpu().numpy()
        return factors


def rounded(average: dict[str, Tensor]) -> dict[str, Tensor]:
    """The averaged weights as they ship: rounded to fp16, the patch embedding in two equal halves."""
    halved = "visual.patch_embed.proj.weight"
    return {
        name: (value / 2).half().float() * 2 if name == halved else value.half().float()
        for name, value in average.items()
    }


@torch.no_grad()
def grade(model: Peek, exams: list[Exam]) -> dict[str, float]:
    """Share of wholly right answers by task. All tokens of an answer are predicted from the right
    ones before them, which for greedy decoding finds the same answers right."""
    right: defaultdict[str, list[bool]] = defaultdict(list)
    device = model.auxiliary.weight.device
    for paper in exams:
        batch = to_device(paper.batch, device)
        with torch.autocast(device.type, torch.bfloat16):
            features = model.look(batch.pictures)
            for group, sheet in zip(batch.rows, paper.tasks, strict=True):
                hidden = model.answer(features, group.ids, group.source, group.positions, group.segments)
                wrong = (model.logits(hidden).argmax(-1) != group.targets) & (group.targets != IGNORE)
                mistakes, segments = wrong.cpu().numpy(), group.segments.cpu().numpy()
                for row, tasks in enumerate(sheet):
                    for segment, task in tasks.items():
                        right[task].append(not mistakes[row][segments[row] == segment].any())
    return {task: round(float(np.mean(marks)), 4) for task, marks in sorted(right.items())}


def run(recipe: Recipe, span: Span) -> None:
    """Train until the recipe's minutes, or those of `span`, are used up."""
    span.out.mkdir(parents=True, exist_ok=True)
    context = mp.get_context("spawn")
    factors = context.RawArray("d", [1.0] * len(TASKS))
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = Path(folder, "meeting")
        others = [
            context.Process(target=_work, args=(recipe, span, rank, meeting_point, factors), daemon=True)
            for rank in range(1, recipe.workers)
        ]
        for other in others:
            other.start()
        _work(recipe, span, 0, meeting_point, factors)
        for other in others:
            other.join()


def _work(recipe: Recipe, span: Span, rank: int, meeting_point: Path, shared_factors: Any) -> None:
    """One process of the crew. The first also writes the log and the checkpoints, and examines.

    The others leave its session: Linux shares a busy machine among sessions, not processes.
    """
    if rank > 0:
        os.setsid()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("high")
    crew = Crew(rank, recipe.workers, meeting_point)
    trainer = Trainer(recipe)
    kept = trainer.load(span.out / CHECKPOINT) if span.resume and (span.out / CHECKPOINT).exists() else None
    feed = Feed(recipe, (recipe.seed, 2 + trainer.step, rank), shared_factors)
    if kept is not None:
        feed.mixture.factors[:] = kept
    try:
        if rank == 0:
            signal.signal(signal.SIGTERM, lambda *_: crew.stop())
            with (span.out / LOG).open("a" if span.resume else "w", buffering=1) as log:
                _lead(trainer, crew, feed, span, log)
        else:
            while trainer.elapsed_s < _end_s(recipe, span) and not crew.stopped:
                trainer.train_on(feed.next(joint=trainer.joint), crew)
    finally:
        feed.close()


def _end_s(recipe: Recipe, span: Span) -> float:
    return min(recipe.minutes, span.until_minute) * 60


def _lead(trainer: Trainer, crew: Crew, feed: Feed, span: Span, log: TextIO) -> None:
    recipe, out = trainer.recipe, span.out

    def note(**values: Any) -> None:
        line = {"minute": round(trainer.elapsed_s / 60, 2), "step": trainer.step, **values}
        print(json.dumps(line), file=log)
        print(json.dumps(line), flush=True)

    exam_rng = np.random.default_rng([recipe.seed, 1])
    exams = [make_exam(exam_rng, _EXAMS[1]) for _ in range(_EXAMS[0])]

    def examine() -> None:
        twin = Peek().to(trainer.device)
        twin.load_state_dict(rounded(trainer.average))
        accuracy = grade(twin, exams)
        feed.mixture.adapt(accuracy)
        note(accuracy=accuracy)

    note(recipe=asdict(recipe), parameters=sum(p.numel() for p in trainer.model.parameters()), **provenance(recipe))
    seen = pictures = 0
    sums: defaultdict[str, list[Tensor]] = defaultdict(list)
    crew.start_clock(trainer.elapsed_s)
    mark = saved = examined = trainer.elapsed_s
    while trainer.elapsed_s < _end_s(recipe, span) and not crew.stopped:
        batch = feed.next(joint=trainer.joint)
        for name, value in trainer.train_on(batch, crew).items():
            sums[name].append(value)
        pictures += crew.size * sum(len(group) for group in batch.pictures)
        seen += 1
        now = trainer.elapsed_s
        if seen % _LOG_EVERY == 0 or seen == 1 or now - mark > _LOG_EVERY_S:
            means = {name: round(float(torch.stack(values).mean()), 4) for name, values in sums.items()}
            note(stage="joint" if batch.rows else "dense", rate=round(trainer.rate(), 4), **means,
                 pictures_per_s=round(pictures / (now - mark), 1))  # fmt: skip
            sums.clear()
            pictures, mark = 0, now
        if now - saved > _SAVE_EVERY_S:
            trainer.save(out / CHECKPOINT, feed.mixture.factors)
            saved = now
        if batch.rows and now - examined > recipe.exam_every_s:
            examine()
            examined = now
    if not crew.stopped:
        examine()
    trainer.save(out / CHECKPOINT, feed.mixture.factors)


def provenance(recipe: Recipe) -> dict[str, str]:
    """The commit and the kind of machine, for the model card."""
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    name = torch.cuda.get_device_name() if recipe.device == "cuda" else f"{platform.machine()} CPU"
    machine = f"{name}, {os.cpu_count()} cores"
    return {"commit": git.stdout.strip() or "unknown", "machine": machine, "torch": torch.__version__}


def _tune_memory() -> None:
    """Start again with an allocator that keeps its pages: by default every large tensor is mapped
    and zeroed anew, which costs a tenth of a step. Read by glibc at start only, ignored elsewhere."""
    if "GLIBC_TUNABLES" not in os.environ:
        limits = {"hugetlb": 1, "mmap_threshold": 2**25, "trim_threshold": 2**33}
        os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{name}={value}" for name, value in limits.items())
        os.execv(sys.executable, [sys.executable, "-m", "training.peek.train", *sys.argv[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="of the whole run, over which the schedule goes")
    parser.add_argument("--until-minute", type=float, default=math.inf, help="stop there; --resume goes on later")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    for name, default in asdict(Recipe(0)).items():
        if name not in ("minutes", "device", "compile"):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default))
    parser.add_argument("--compile", action="store_true", default=None, help="torch.compile the blocks")
    options = vars(parser.parse_args())
    _tune_memory()
    span = Span(options.pop("out"), options.pop("resume"), options.pop("until_minute"))
    usual = recipe_for(options.pop("minutes"), options.pop("device"))
    run(replace(usual, **{name: value for name, value in options.items() if value is not None}), span)


if __name__ == "__main__":
    main()
