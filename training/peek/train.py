"""Train `peek` for a number of minutes.

    python -m training.peek.train --minutes 110 --out runs/peek [--resume]

First the vision tower alone learns from dense labels of pictures full of shapes: questions by
themselves teach it nothing for very long. Then questions and dense labels together. The schedule
follows the clock, so that MINUTES is kept on any machine; every two minutes a checkpoint is written
from which `--resume` goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn

from training.peek.batches import Batch, Exam, Rows, dense_batch, exam, joint_batch
from training.peek.draw import IGNORE, NOTHING
from training.peek.model import AUXILIARY, Peek

CHECKPOINT: Final = "checkpoint.pt"
LOG: Final = "log.jsonl"
_SAVE_EVERY_S: Final = 120.0
_LOG_EVERY: Final = 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a run can be told. Rates are the peaks of their schedule, pictures are a worker's share of
    a step. Workers are processes with a thread each: on two cores more than twice as fast as two
    threads in one process, and indifferent to what else the machine does."""

    minutes: float
    seed: int = 2026
    workers: int = 2
    dense_share: float = 0.1
    dense_pictures: int = 24
    pictures: int = 14
    muon_rate: float = 2e-3
    adam_rate: float = 1.5e-3
    weight_decay: float = 0.01
    dense_weight: float = 0.3
    hold_until: float = 0.45
    ema: float = 0.997
    exam_every_s: float = 240.0


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


class Trainer:
    """A model with its optimisers, its averaged twin and its place in the schedule."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Peek().to(self.device)
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
        adam = torch.optim.AdamW(rest, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
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
        """Share of the peak rate: a short warm-up, a plateau, then a cosine to almost nothing."""
        warm = min(1.0, (self.step + 1) / 100)
        hold = self.recipe.hold_until
        fall = min(1.0, max(0.0, (self.progress - hold) / (1 - hold)))
        return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * fall)))

    def train_on(self, batch: Batch, crew: Crew) -> dict[str, float]:
        with torch.autocast(self.device.type, torch.bfloat16):
            features = self.model.look([self._tensor(pixels) for pixels in batch.pictures])
            dense, report = self._dense(features, batch)
            loss = dense
            if batch.rows:
                answers = self._answers(features, batch.rows)
                loss = answers + self.recipe.dense_weight * dense
                report["answers"] = answers.item()
        report["loss"] = loss.item()
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

    def _tensor(self, array: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _dense(self, features: Tensor, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        total = torch.zeros((), device=self.device)
        report: dict[str, float] = {}
        for name, logits in self.model.dense(features).items():
            target = self._tensor(getattr(batch.labels, name)).long()
            known = target != IGNORE
            if name == "shape":  # background is easy and everywhere: it counts less
                weight = torch.ones(AUXILIARY[name], device=self.device)
                weight[NOTHING] = 0.15
                total = total + F.cross_entropy(logits.float(), target, weight, ignore_index=IGNORE)
                known &= target != NOTHING
            elif known.any():
                weight_of_name = 0.3 if name == "background" else 1.0
                total = total + weight_of_name * F.cross_entropy(logits.float(), target, ignore_index=IGNORE)
            if known.any():
                report[f"token {name}"] = float((logits.argmax(-1) == target)[known].float().mean())
        return total, report

    def _answers(self, features: Tensor, rows: Iterable[Rows]) -> Tensor:
        total, count = torch.zeros((), device=self.device), 0
        for group in rows:
            ids, source, positions, segments, targets = (self._tensor(array) for array in group)
            hidden = self.model.answer(features, ids, source, positions, segments)
            learnt = targets != IGNORE
            logits = self.model.logits(hidden[learnt]).float()
            total = total + F.cross_entropy(logits, targets[learnt], reduction="sum")
            count += int(learnt.sum())
        return total / count

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        torch._foreach_lerp_(list(self.average.values()), [state[name] for name in self.average], 1 - keep)

    def save(self, path: Path) -> None:
        state = {
            "recipe": asdict(self.recipe),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "model": self.model.state_dict(),
            "average": self.average,
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "rng": torch.get_rng_state(),
        }
        torch.save(state, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        """Go on from `path`; the recipe stays the one given now, so that a run can be steered."""
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
    for paper in exams:
        with torch.autocast("cpu", torch.bfloat16, enabled=model.auxiliary.weight.device.type == "cpu"):
            device = model.auxiliary.weight.device
            features = model.look([torch.from_numpy(pixels).to(device) for pixels in paper.batch.pictures])
            for group, sheet in zip(paper.batch.rows, paper.tasks, strict=True):
                ids, source, positions, segments, targets = (torch.from_numpy(a).to(device) for a in group)
                hidden = model.answer(features, ids, source, positions, segments)
                wrong = (model.logits(hidden).argmax(-1) != targets) & (targets != IGNORE)
                for row, tasks in enumerate(sheet):
                    for segment, task in tasks.items():
                        right[task].append(not bool(wrong[row][segments[row] == segment].any()))
    return {task: round(float(np.mean(marks)), 4) for task, marks in sorted(right.items())}


def run(recipe: Recipe, out: Path, *, resume: bool) -> None:
    """Train until the recipe's minutes are used up."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        meeting_point = Path(folder, "meeting")
        others = [
            mp.get_context("spawn").Process(target=_work, args=(recipe, out, resume, rank, meeting_point), daemon=True)
            for rank in range(1, recipe.workers)
        ]
        for other in others:
            other.start()
        _work(recipe, out, resume, 0, meeting_point)
        for other in others:
            other.join()


def _work(recipe: Recipe, out: Path, resume: bool, rank: int, meeting_point: Path) -> None:
    """One process of the crew. The first also writes the log and the checkpoints, and examines.

    The others leave its session: Linux shares a busy machine among sessions, not processes.
    """
    if rank > 0:
        os.setsid()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    crew = Crew(rank, recipe.workers, meeting_point)
    trainer = Trainer(recipe)
    if resume and (out / CHECKPOINT).exists():
        trainer.load(out / CHECKPOINT)
    rng = np.random.default_rng([recipe.seed, 2 + trainer.step, rank])
    if rank == 0:
        signal.signal(signal.SIGTERM, lambda *_: crew.stop())
        with (out / LOG).open("a" if resume else "w", buffering=1) as log:
            _lead(trainer, crew, rng, out, log)
    else:
        while trainer.progress < 1 and not crew.stopped:
            trainer.train_on(_batch(trainer, rng), crew)


def _batch(trainer: Trainer, rng: np.random.Generator) -> Batch:
    recipe = trainer.recipe
    return joint_batch(rng, recipe.pictures) if trainer.joint else dense_batch(rng, recipe.dense_pictures)


def _lead(trainer: Trainer, crew: Crew, rng: np.random.Generator, out: Path, log: TextIO) -> None:
    recipe = trainer.recipe

    def note(**values: Any) -> None:
        line = {"minute": round(trainer.elapsed_s / 60, 2), "step": trainer.step, **values}
        print(json.dumps(line), file=log)
        print(json.dumps(line), flush=True)

    exam_rng = np.random.default_rng([recipe.seed, 1])
    exams = [exam(exam_rng, 20) for _ in range(14)]

    def examine() -> None:
        twin = Peek().to(trainer.device)
        twin.load_state_dict(rounded(trainer.average))
        note(accuracy=grade(twin, exams))

    note(recipe=asdict(recipe), parameters=sum(p.numel() for p in trainer.model.parameters()))
    seen = pictures = 0
    sums: defaultdict[str, list[float]] = defaultdict(list)
    crew.start_clock(trainer.elapsed_s)
    mark = saved = examined = trainer.elapsed_s
    while trainer.progress < 1 and not crew.stopped:
        batch = _batch(trainer, rng)
        for name, value in trainer.train_on(batch, crew).items():
            sums[name].append(value)
        pictures += crew.size * sum(len(group) for group in batch.pictures)
        seen += 1
        now = trainer.elapsed_s
        if seen % _LOG_EVERY == 0 or seen == 1:
            means = {name: round(float(np.mean(values)), 4) for name, values in sums.items()}
            note(stage="joint" if batch.rows else "dense", rate=round(trainer.rate(), 4), **means,
                 pictures_per_s=round(pictures / (now - mark), 1))  # fmt: skip
            sums.clear()
            pictures, mark = 0, now
        if now - saved > _SAVE_EVERY_S:
            trainer.save(out / CHECKPOINT)
            saved = now
        if batch.rows and now - examined > recipe.exam_every_s:
            examine()
            examined = now
    if not crew.stopped:
        examine()
    trainer.save(out / CHECKPOINT)


def _tune_memory() -> None:
    """Start again with an allocator that keeps its pages: by default every large tensor is mapped
    and zeroed anew, which costs a tenth of a step. Read by glibc at start only, ignored elsewhere."""
    if "GLIBC_TUNABLES" not in os.environ:
        limits = {"hugetlb": 1, "mmap_threshold": 2**25, "trim_threshold": 2**33}
        os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{name}={value}" for name, value in limits.items())
        os.execv(sys.executable, [sys.executable, "-m", "training.peek.train", *sys.argv[1:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", action="store_true")
    for name, default in asdict(Recipe(0)).items():
        if name != "minutes":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    options = vars(parser.parse_args())
    _tune_memory()
    out, resume = options.pop("out"), options.pop("resume")
    run(Recipe(**options), out, resume=resume)


if __name__ == "__main__":
    main()
