"""Trains the tiny Whisper.

    python -m training.whisper.train --minutes 50 --out runs/whisper [--threads 1] [--resume]

First the whole model learns, then, from `DECODER_FROM` of the time on, the decoder alone: by then the encoder tells
words apart, and what takes longest is to say them in their order, which the decoder learns from what the encoder made
of windows, without making it anew each time.

Writes `log.jsonl` (loss and error rates against time), `state.pt` every few minutes, and continues from it with
`--resume`. `training.whisper.checkpoint` makes the files of it that engines load.
"""

from __future__ import annotations

import argparse
import json
import math
import queue
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.whisper import tokens
from training.whisper.evaluate import error_rate
from training.whisper.lessons import Lesson, Teacher
from training.whisper.model import Size, Whisper
from training.whisper.speech import Studio

BATCH_S = 64.0
"""Seconds of sound in a step."""
POOL = 1500
"""Takes kept of each language; a step adds a few."""
SHORT_WINDOWS_S = (1.6, 2.4, 3.2, 4.8)
DECODER_FROM = 0.9
KEPT = 1500
"""Windows of which the encoder's output is kept while the decoder learns alone."""
REPLAYED = 2
"""Steps of the decoder for each batch that the encoder makes."""
REPLAYED_BATCH = 24
EXAM_EVERY_S = 600.0
EMA = 0.995
_IGNORED = -100


class Batch:
    def __init__(self, lessons: list[Lesson]) -> None:
        self.lessons = lessons
        longest = max(len(lesson.tokens) for lesson in lessons)
        self.mel = torch.from_numpy(np.stack([lesson.mel for lesson in lessons]))
        self.tokens = torch.zeros(len(lessons), longest - 1, dtype=torch.long)
        self.targets = torch.full((len(lessons), longest - 1), _IGNORED, dtype=torch.long)
        self.frames = torch.from_numpy(np.stack([lesson.frames for lesson in lessons]))
        self.places = torch.zeros(len(lessons), longest, self.frames.shape[1], dtype=torch.bool)
        """Frames that a token is about: [lessons, tokens, frames]."""
        for row, lesson in enumerate(lessons):
            self.tokens[row, : len(lesson.tokens) - 1] = torch.tensor(lesson.tokens[:-1])
            for index, place in enumerate(lesson.places):
                if place is not None:
                    self.places[row, index, place[0] : place[1]] = True
            for index in range(lesson.asked_from + 1, len(lesson.tokens)):
                if index not in lesson.not_asked:
                    self.targets[row, index - 1] = lesson.tokens[index]


def token_loss(logits: Tensor, targets: Tensor, first_timestamp: int, near: float) -> Tensor:
    """Cross entropy. A moment near the right one is nearly right: its weight is a Gaussian of `near` timestamps.

    Wide at first, for moments to be learnt at all; narrow in the end, because engines take doubt about moments
    for doubt about the answer."""
    logs = logits.log_softmax(-1)
    asked = targets != _IGNORED
    is_time = asked & (targets >= first_timestamp)
    text = -logs[asked & ~is_time].gather(-1, targets[asked & ~is_time][:, None]).sum()
    around = torch.arange(-4, 5)
    weights = torch.exp(-(around**2) / (2 * near**2))
    nearby = (targets[is_time][:, None] + around).clamp(first_timestamp, logits.shape[-1] - 1)
    times = -(logs[is_time].gather(-1, nearby) * (weights / weights.sum())).sum()
    return (text + 0.5 * times) / asked.sum().clamp(min=1)


def look_loss(looks: list[Tensor], places: Tensor) -> Tensor:
    """Guided attention, with the truth in place of a guess (cf. Tachibana et al., arXiv:1710.08969): the first heads of
    the last layer look at what is said next, those of the layers before at what was said last. Without it the model
    knows every word within minutes and for an hour mixes up their order."""
    total = torch.zeros(())
    for index, look in enumerate(looks):
        wanted = places[:, 1:] if index == len(looks) - 1 else places[:, :-1]
        asked = wanted.any(-1)
        rows = look.transpose(1, 2)[asked]  # [asked, heads, places]: of the others no logarithm may be taken
        total = total - rows.masked_fill(~wanted[asked][:, None], -torch.inf).logsumexp(-1).mean()
    return total / len(looks)


class Feed:
    """Batches, made in a thread while the step before is computed."""

    def __init__(self, teacher: Teacher, seed: int) -> None:
        self._teacher = teacher
        self._random = np.random.default_rng(seed)
        self.full_windows = 0.2
        """Share of batches whose windows are as long as the model's."""
        self._ready: queue.Queue[Batch] = queue.Queue(3)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        self._teacher.stock(400, POOL)
        while True:
            self._teacher.stock(3, POOL)
            is_full = self._random.random() < self.full_windows
            window_s = float(tokens.WINDOW_S) if is_full else float(self._random.choice(SHORT_WINDOWS_S))
            count = max(4, round(BATCH_S / window_s))
            self._ready.put(Batch([self._teacher.lesson(window_s) for _ in range(count)]))

    def next(self) -> Batch:
        return self._ready.get()


def train(minutes: float, out: Path, *, resume: bool, seed: int = 6) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    tokenizer = tokens.build()
    tokenizer.save(str(out / "tokenizer.json"))
    size = Size(tokenizer.get_vocab_size())
    first_timestamp = tokenizer.token_to_id("<|0.00|>")
    model = Whisper(size, first_timestamp)
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    before_s, step = 0.0, 0
    if resume and (out / "state.pt").exists():
        state = torch.load(out / "state.pt", weights_only=False)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average, before_s, step = state["average"], state["elapsed_s"], state["step"]
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    feed = Feed(Teacher(tokenizer, Studio("train", seed + step), size.bands, seed + step), seed + step)
    began, total_s, exam_at = time.monotonic(), minutes * 60, before_s + EXAM_EVERY_S
    shown: list[dict[str, float]] = []
    kept: list[tuple[Tensor, Lesson]] = []
    draw = random.Random(seed + step)
    log = (out / "log.jsonl").open("a" if resume else "w")

    def note(**facts: Any) -> None:
        print(facts, flush=True)
        log.write(json.dumps(facts) + "\n")
        log.flush()

    while (elapsed := before_s + time.monotonic() - began) < total_s:
        done = elapsed / total_s
        alone = done >= DECODER_FROM
        feed.full_windows = 0.15 if done < 0.3 else 1.0 if alone else 0.4
        rate = (
            2e-3
            * min(1.0, (step + 1) / 150)
            * (1.0 if done < 0.3 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.3) / 0.7))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        if alone and not kept:
            model.load_state_dict(average)
        batch = feed.next()
        with torch.set_grad_enabled(not alone):
            memory = model.encoder(batch.mel)
            heard = F.cross_entropy(model.frames(memory).flatten(0, 1), batch.frames.flatten())
        if alone:
            if memory.shape[1] == size.source_positions:
                kept = [*kept, *zip(memory.half(), batch.lessons, strict=True)][-KEPT:]
            if len(kept) < REPLAYED_BATCH:
                continue
        for _ in range(REPLAYED if alone else 1):
            if alone:
                chosen = draw.sample(kept, REPLAYED_BATCH)
                memory, batch = torch.stack([m for m, _ in chosen]).float(), Batch([lesson for _, lesson in chosen])
            logits, looks = model.decoder.guided(batch.tokens, memory)
            said = token_loss(logits, batch.targets, first_timestamp, 0.6 if alone else 2.0)
            looked = look_loss(looks, batch.places)
            loss = said + 0.3 * looked + (0.0 if alone else (1.0 if done < 0.25 else 0.3) * heard)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            decay = min(EMA, (step + 1) / (step + 20))
            with torch.no_grad():
                for name, value in model.state_dict().items():
                    average[name].lerp_(value, 1 - decay)
            shown.append({"said": said.item(), "heard": heard.item(), "looked": looked.item()})
        if len(shown) >= 50:
            means = {key: round(float(np.mean([s[key] for s in shown])), 4) for key in shown[0]}
            note(minute=round(elapsed / 60, 2), step=step, **means)
            shown.clear()
        if elapsed >= exam_at or elapsed + 5 > total_s:
            exam_at = elapsed + EXAM_EVERY_S
            note(minute=round(elapsed / 60, 2), step=step, **examine(size, first_timestamp, average, out))
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "average": average,
                 "elapsed_s": elapsed, "step": step, "size": size},
                out / "unfinished.pt",
            )  # fmt: skip
            (out / "unfinished.pt").replace(out / "state.pt")


def examine(size: Size, first_timestamp: int, weights: dict[str, Tensor], out: Path) -> dict[str, float]:
    """Word error rates of the averaged weights on voices and speeds of neither the step nor the run."""
    model = Whisper(size, first_timestamp)
    model.load_state_dict(weights)
    return error_rate(model.eval(), out / "tokenizer.json", count=24, seed=77)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments.minutes, arguments.out, resume=arguments.resume)


if __name__ == "__main__":
    main()
