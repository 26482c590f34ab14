"""How many words a model in training gets wrong on voices and speeds that it was not trained on.

Greedy, without the engines; `training.whisper.measure` asks a served model through the API.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from sightline.audio.mel import log_mel
from training.whisper.edits import edits
from training.whisper.lessons import ENDS_BEFORE_S
from training.whisper.model import Whisper
from training.whisper.speech import Scene, Studio
from training.whisper.tokens import TIMESTAMP_S, WINDOW_S
from training.whisper.words import written


@cache
def held_out_scenes(count: int, seed: int) -> list[Scene]:
    """Alternately in English and Spanish; nothing is cut."""
    studio = Studio("held_out", seed)
    scenes = []
    while len(scenes) < count:
        language = "en" if len(scenes) % 2 == 0 else "es"
        takes = [studio.take(language) for _ in range(1 + len(scenes) % 3 // 2)]
        scene = studio.scene(takes, WINDOW_S)
        if scene.phrases and scene.phrases[-1][-1].end < WINDOW_S - ENDS_BEFORE_S:
            scenes.append(scene)
    return scenes


@torch.inference_mode()
def error_rate(model: Whisper, tokenizer_file: Path, *, count: int, seed: int) -> dict[str, float]:
    """Word error rates by language and mode, the share of right languages, and how far moments are off (seconds)."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    scenes = held_out_scenes(count, seed)
    mel = torch.from_numpy(np.stack([log_mel(s.samples, model.size.bands) for s in scenes]))
    memory = model.encoder(mel)
    ids = {name: tokenizer.token_to_id(f"<|{name}|>") for name in (
        "startoftranscript", "en", "es", "transcribe", "notimestamps", "endoftext", "0.00")}  # fmt: skip
    start = torch.full((count, 1), ids["startoftranscript"])
    languages = model.decoder(start, memory)[:, -1]
    guessed = ["en" if row[ids["en"]] > row[ids["es"]] else "es" for row in languages]
    facts = {"language": float(np.mean([g == s.language for g, s in zip(guessed, scenes, strict=True)]))}
    wrong: dict[str, list[int]] = {}
    off = []
    for mode in ("plain", "timed"):
        prefix = [[ids["startoftranscript"], ids[s.language], ids["transcribe"]] for s in scenes]
        if mode == "plain":
            prefix = [[*p, ids["notimestamps"]] for p in prefix]
        tokens = torch.tensor(prefix)
        for _ in range(70):
            logits = model.decoder(tokens, memory)[:, -1]
            if mode == "timed":
                logits[:, ids["notimestamps"]] = -torch.inf
                times = logits[:, ids["0.00"] :].logsumexp(-1) > logits[:, : ids["0.00"]].max(-1).values
                logits[:, : ids["0.00"]].masked_fill_(times[:, None], -torch.inf)  # as engines prefer them, too
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], dim=1)
            if bool((tokens == ids["endoftext"]).any(dim=1).all()):
                break
        for scene, row in zip(scenes, tokens.tolist(), strict=True):
            answer = row[len(prefix[0]) :]
            answer = answer[: answer.index(ids["endoftext"])] if ids["endoftext"] in answer else answer
            heard = tokenizer.decode([t for t in answer if t < ids["0.00"]]).split()
            said = [written(w.word, scene.language, "transcribe", False) for p in scene.phrases for w in p]
            wrong.setdefault(f"{mode}_{scene.language}", []).append(edits(said, heard))
            wrong.setdefault(f"words_{mode}_{scene.language}", []).append(len(said))
            times = [(t - ids["0.00"]) * TIMESTAMP_S for t in answer if t >= ids["0.00"]]
            true = [t for p in scene.phrases for t in (p[0].start, p[-1].end)]
            if len(times) == len(true):
                off += [abs(a - b) for a, b in zip(times, true, strict=True)]
    for key in ("plain_en", "plain_es", "timed_en", "timed_es"):
        facts[f"wer_{key}"] = round(sum(wrong[key]) / sum(wrong[f"words_{key}"]), 4)
    facts["moments_off_s"] = round(float(np.median(off)), 3) if off else 99.0
    return facts
