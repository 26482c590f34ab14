"""The hundred (pictures, question) pairs that our engine and the reference answer.

They are data: the golden file holds them whole (scenes, not pixels), and everyone reads them from there and draws the
pictures again. `make_golden.py` makes their answers anew, for other weights, not the pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sightline.config import ImageLimits
from sightline.images.budget import CellBudget
from sightline.images.intake import Intake
from sightline.types import EngineRequest, Image, ImageRef, Message, SamplingParams, Text
from training.peek.evaluation.drawing import Scene
from training.peek.evaluation.files import encode

MAX_TOKENS = 24
"""More than any answer of `peek` needs; an answer that is still going then ends with `length`."""

GOLDEN = Path(__file__).parent / "golden.json"


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    parts: tuple[str | int, ...]
    """Texts, and pictures as indices into the pair's scenes."""


@dataclass(frozen=True, slots=True)
class Pair:
    id: str
    kind: str
    """What the pair is there for: `plain`, `text-first`, `two-pictures`, `multi-turn`, `system`, `text-only`, or
    `as-drawn` (a picture that needs no resizing)."""
    turns: tuple[Turn, ...]
    scenes: tuple[Scene, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind,
            "turns": [{"role": t.role, "parts": list(t.parts)} for t in self.turns],
            "scenes": [scene.to_json() for scene in self.scenes],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Pair:
        turns = tuple(Turn(t["role"], tuple(t["parts"])) for t in data["turns"])
        return cls(data["id"], data["kind"], turns, tuple(Scene.from_json(s) for s in data["scenes"]))

    def to_request(self, images: Sequence[Image], *, model: str, tenant: str = "") -> EngineRequest:
        """The pair as our engines take it: greedy, each token told with its log-probability."""
        messages = tuple(
            Message[Image](
                t.role,  # type: ignore[arg-type]  # one of the roles: no other is in the file
                tuple(Text(part) if isinstance(part, str) else images[part] for part in t.parts),
            )
            for t in self.turns
        )
        sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, logprobs=0)
        return EngineRequest(self.id, model, messages, sampling, tenant=tenant)


def committed_pairs() -> list[Pair]:
    """The hundred pairs of the golden file."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return [Pair.from_json({key: pair[key] for key in ("id", "kind", "turns", "scenes")}) for pair in golden["pairs"]]


async def serve(pairs: Sequence[Pair], budget: CellBudget) -> list[tuple[Image, ...]]:
    """Each pair's pictures as our own intake serves them: decoded in the decoder processes, upright, resized."""
    intake = Intake(ImageLimits())
    await intake.start()
    try:
        served = []
        for pair in pairs:
            refs = [ImageRef(encode(s), param=f"{pair.id}[{i}]") for i, s in enumerate(pair.scenes)]
            served.append(tuple(r.image for r in await intake.resolve(refs, [budget] * len(refs))))
        return served
    finally:
        await intake.close()


def digest(pixels: np.ndarray[Any, Any]) -> str:
    """SHA-256 of size and values: notices any drift in drawing, decoding or resizing."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
