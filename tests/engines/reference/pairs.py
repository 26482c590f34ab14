"""The hundred (pictures, question) pairs that our engine and the reference answer.

They are made once, by `make_golden.py`; the golden file holds them whole (scenes, not pixels), and everyone else reads
them from there and draws the pictures again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from sightline.config import ImageLimits
from sightline.images.budget import CellBudget
from sightline.images.intake import Intake
from sightline.types import EngineRequest, Image, ImageRef, Message, SamplingParams, Text
from training.peek.evaluation.drawing import SHAPES, Scene, encode
from training.peek.evaluation.questions import Case, make_cases
from training.peek.evaluation.world import COLOURS, Wish, compose

MAX_TOKENS = 24
"""More than any answer of `peek` needs; an answer that is still going then ends with `length`."""

_SEED = 20261121


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
                t.role,  # type: ignore[arg-type]  # one of the roles: make_pairs writes no other
                tuple(Text(part) if isinstance(part, str) else images[part] for part in t.parts),
            )
            for t in self.turns
        )
        sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0, logprobs=0)
        return EngineRequest(self.id, model, messages, sampling, tenant=tenant)


def make_pairs() -> list[Pair]:
    """A hundred pairs, always the same."""
    plain = {"colour": 12, "background": 4, "yes-no": 4, "counting": 6, "which-shape": 8, "position": 9, "arrow": 4}
    pairs = [_one_turn("plain", case, text_first=False) for case in _cases(plain)]
    ahead = {"colour": 4, "yes-no": 2, "counting": 3, "which-shape": 4, "position": 4, "arrow": 1}
    pairs += [_one_turn("text-first", case, text_first=True) for case in _cases(ahead, skip=100)]
    two = {"two-colour": 7, "two-which": 4}
    pairs += [_one_turn("two-pictures", case, text_first=i % 3 == 0) for i, case in enumerate(_cases(two))]
    pairs += [_between_pictures(case) for case in _cases({"two-which": 2}, skip=50)]
    pairs += [_multi_turn(a, b) for a, b in zip(_cases({"colour": 6}, 200), _cases({"position": 6}, 200), strict=True)]
    pairs += [_with_system(case) for case in _cases({"which-shape": 3, "description": 3}, skip=300)]
    pairs += [Pair(f"text-only-{i}", "text-only", (Turn("user", (text,)),), ()) for i, text in enumerate(_TEXT_ONLY)]
    pairs += [_as_drawn(index) for index in range(6)]
    assert len(pairs) == 100, len(pairs)
    assert len({pair.id for pair in pairs}) == 100
    assert Counter(pair.kind for pair in pairs)["two-pictures"] == 13
    return pairs


async def serve(pairs: Sequence[Pair], budget: CellBudget) -> list[tuple[Image, ...]]:
    """Each pair's pictures as our own intake serves them: decoded in the decoder processes, upright, resized."""
    intake = Intake(ImageLimits())
    await intake.start()
    try:
        served = []
        for pair in pairs:
            refs = [ImageRef(encode(s), param=f"{pair.id}[{i}]") for i, s in enumerate(pair.scenes)]
            served.append(tuple(r.image for r in await intake.resolve(refs, budget)))
        return served
    finally:
        await intake.close()


def digest(pixels: np.ndarray[Any, Any]) -> str:
    """SHA-256 of size and values: notices any drift in drawing, decoding or resizing."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()


_TEXT_ONLY = (
    "Is red a colour?",
    "What colour is grass?",
    "Say one, two or three.",
    "Unicode: Ünïcödé, 漢字, 🙂, a\u00a0b\tc  d.",
)


def _cases(counts: dict[str, int], skip: int = 0) -> list[Case]:
    return [case for task, n in counts.items() for case in make_cases(task, skip + n, _SEED)[skip:]]


def _one_turn(kind: str, case: Case, *, text_first: bool) -> Pair:
    pictures = tuple(range(len(case.scenes)))
    parts: tuple[str | int, ...] = (case.question, *pictures) if text_first else (*pictures, case.question)
    return Pair(case.id, kind, (Turn("user", parts),), case.scenes)


def _between_pictures(case: Case) -> Pair:
    return Pair(case.id, "two-pictures", (Turn("user", (0, case.question, 1)),), case.scenes)


def _multi_turn(first: Case, second: Case) -> Pair:
    """A question about a picture, its answer, and a question about another picture."""
    turns = (
        Turn("user", (0, first.question)),
        Turn("assistant", (first.truth,)),
        Turn("user", (1, second.question)),
    )
    return Pair(f"{first.id}+{second.id}", "multi-turn", turns, first.scenes + second.scenes)


def _with_system(case: Case) -> Pair:
    turns = (Turn("system", ("Answer briefly.",)), Turn("user", (0, case.question)))
    return Pair(case.id, "system", turns, case.scenes)


def _as_drawn(index: int) -> Pair:
    """A picture whose sides are multiples of 28 px and whose size is within any budget: nobody resizes it."""
    rng = Random(f"as drawn/{_SEED}/{index}")
    shape, other = rng.sample(SHAPES, 2)
    wishes = [Wish(shape, rng.choice(COLOURS)), Wish(other, rng.choice(COLOURS))]
    scene = compose(wishes, rng, size=(28 * rng.randint(5, 6), 28 * rng.randint(5, 6)))
    return Pair(f"as-drawn-{index}", "as-drawn", (Turn("user", (0, f"What colour is the {shape}?")),), (scene,))
