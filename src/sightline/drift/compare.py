"""Where two answers to one question part, and what that looks like. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import zip_longest

from sightline.drift.answers import Answer, Token


class Cause(StrEnum):
    """The likeliest one, the first that applies: what comes earlier on the way to an answer explains what is later."""

    FAILED = "failed"
    PIXELS = "pixels"
    BUDGET = "budget"
    TEMPLATE = "template"
    PRECISION = "precision"
    NEAR_TIE = "near tie"
    ACCUMULATED = "accumulated"
    ENDING = "ending"
    UNTOLD = "untold"


MEANING = {
    Cause.FAILED: "an engine gave no answer",
    Cause.PIXELS: "a picture was served in another size: compare the engines' picture rules and context lengths",
    Cause.BUDGET: "a picture of the same size became another number of tokens: one of the two rules is wrong",
    Cause.TEMPLATE: "the prompt became another number of tokens: compare chat templates and special tokens",
    Cause.PRECISION: "the first token is already judged otherwise: weights, precision or picture preprocessing",
    Cause.NEAR_TIE: "two tokens were as good as equally likely: numerical noise",
    Cause.ACCUMULATED: "equal at first, apart later without a near tie: precision, or keys and values, adding up",
    Cause.ENDING: "the same tokens, but another text or finish reason: stop tokens, stop strings or decoding",
    Cause.UNTOLD: "other words; an engine does not tell its tokens, so no more is known",
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One answer beside the reference's."""

    agrees: bool
    """The same tokens (where both tell them), text and finish reason."""
    cause: Cause | None
    """Also of answers that agree, when what they were made from does not; None: nothing is amiss."""
    at: int | None = None
    """The first token that differs, from 0; as long as the shorter answer where that one ended. None: none does."""
    first_apart: float | None = None
    """Difference of the log-probabilities of the first token, where both chose the same."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """An engine's answers beside the reference's, in the order of the questions."""

    reference: str
    engine: str
    comparisons: tuple[Comparison, ...]

    @property
    def agreeing(self) -> int:
        return sum(c.agrees for c in self.comparisons)

    @property
    def share(self) -> float:
        return self.agreeing / len(self.comparisons)

    @property
    def causes(self) -> Counter[tuple[Cause, bool]]:
        """How often each cause was found, and whether the answers agreed nevertheless."""
        return Counter((c.cause, c.agrees) for c in self.comparisons if c.cause)

    @property
    def first_apart(self) -> float | None:
        """The largest difference of first log-probabilities."""
        return max((c.first_apart for c in self.comparisons if c.first_apart is not None), default=None)


def compare_all(answers: dict[str, Sequence[Answer]], tolerance: float) -> list[Agreement]:
    """Every engine beside the first one. `answers`: by engine, all to the same questions."""
    (reference, expected), *others = answers.items()
    return [
        Agreement(reference, engine, tuple(compare(a, b, tolerance) for a, b in zip(expected, told, strict=True)))
        for engine, told in others
    ]


def compare(a: Answer, b: Answer, tolerance: float) -> Comparison:
    """`tolerance`: how far log-probabilities (nats) of one token may be apart with the same weights and precision."""
    at = apart = None
    if a.tokens is not None and b.tokens is not None:
        at, apart = _first_difference(a.tokens, b.tokens), _first_apart(a.tokens, b.tokens)
    agrees = at is None and (a.text, a.reason) == (b.text, b.reason) and a.error is None and b.error is None
    found = Comparison(agrees, None, at, apart)
    return replace(found, cause=_cause(a, b, found, tolerance))


def _cause(a: Answer, b: Answer, found: Comparison, tolerance: float) -> Cause | None:
    if a.error is not None or b.error is not None:
        return Cause.FAILED
    return _prompt_cause(a, b) or _answer_cause(a, b, found, tolerance)


def _prompt_cause(a: Answer, b: Answer) -> Cause | None:
    """What differs before anything runs."""
    if a.served != b.served:
        return Cause.PIXELS
    told = a.image_tokens is not None and b.image_tokens is not None
    if told and a.image_tokens != b.image_tokens:
        return Cause.BUDGET
    return Cause.TEMPLATE if a.prompt_tokens != b.prompt_tokens else None


def _answer_cause(a: Answer, b: Answer, found: Comparison, tolerance: float) -> Cause | None:
    if found.first_apart is not None and found.first_apart > tolerance:
        return Cause.PRECISION
    if found.at is not None:
        if _is_near_tie(a, b, found.at, tolerance):
            return Cause.NEAR_TIE
        return Cause.ACCUMULATED if found.at else Cause.PRECISION
    if found.agrees:
        return None
    return Cause.UNTOLD if a.tokens is None or b.tokens is None else Cause.ENDING


def _first_difference(a: Sequence[Token], b: Sequence[Token]) -> int | None:
    for at, (ours, theirs) in enumerate(zip_longest(a, b)):
        if ours is None or theirs is None or ours.text != theirs.text:
            return at
    return None


def _first_apart(a: Sequence[Token], b: Sequence[Token]) -> float | None:
    return abs(a[0].logprob - b[0].logprob) if a and b and a[0].text == b[0].text else None


def _is_near_tie(a: Answer, b: Answer, at: int, tolerance: float) -> bool:
    """Whether the runner-up was so near, for both as far as they tell, that two log-probabilities that are each off by
    the tolerance change places."""
    there = [answer.tokens[at] for answer in (a, b) if answer.tokens is not None and at < len(answer.tokens)]
    margins = [token.margin for token in there if token.margin is not None]
    return bool(margins) and max(margins) <= 2 * tolerance
