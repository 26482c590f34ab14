"""Where answers part, and the cause that is told: each from answers in which only that is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sightline.drift.answers import Answer, Token
from sightline.drift.compare import MEANING, Cause, compare, compare_all

TOLERANCE = 0.05


def token(text: str, logprob: float = -0.1, margin: float | None = 3.0) -> Token:
    return Token(text, logprob, margin)


def answer(*tokens: Token) -> Answer:
    return Answer(
        text="".join(t.text for t in tokens),
        reason="stop",
        tokens=tokens,
        served=((196, 168),),
        image_tokens=(42,),
        prompt_tokens=58,
    )


REFERENCE = answer(token("dark"), token(" red"))


def test_the_same_answer() -> None:
    found = compare(REFERENCE, answer(token("dark", -0.11), token(" red")), TOLERANCE)
    assert (found.agrees, found.cause, found.at) == (True, None, None)
    assert found.first_apart == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("other", "cause", "at"),
    [
        (Answer(error="the engine broke"), Cause.FAILED, 0),
        (replace(answer(token("blue")), served=((308, 252),), image_tokens=(99,)), Cause.PIXELS, 0),
        (replace(answer(token("blue")), image_tokens=(43,), prompt_tokens=59), Cause.BUDGET, 0),
        (replace(answer(token("blue")), prompt_tokens=59), Cause.TEMPLATE, 0),
        (answer(token("blue")), Cause.PRECISION, 0),
        (answer(token("dark", -0.3), token(" blue")), Cause.PRECISION, 1),
        (answer(token("dark"), token(" blue")), Cause.ACCUMULATED, 1),
        (answer(token("dark")), Cause.ACCUMULATED, 1),
        (replace(REFERENCE, reason="length"), Cause.ENDING, None),
        (replace(REFERENCE, text="dark red "), Cause.ENDING, None),
        (replace(answer(token("blue")), tokens=None), Cause.UNTOLD, None),
    ],
)
def test_one_thing_is_wrong(other: Answer, cause: Cause, at: int | None) -> None:
    other = replace(other, tokens=()) if other.error else other
    for found in (compare(REFERENCE, other, TOLERANCE), compare(other, REFERENCE, TOLERANCE)):
        assert (found.agrees, found.cause, found.at) == (False, cause, at)


@pytest.mark.parametrize(
    ("margins", "cause"),
    [
        ((0.01, 0.02), Cause.NEAR_TIE),
        ((0.01, None), Cause.NEAR_TIE),  # the other engine does not tell of a runner-up
        ((0.01, 0.5), Cause.ACCUMULATED),  # for one of them it was no tie
        ((None, None), Cause.ACCUMULATED),  # nothing is known of a tie, so none is claimed
    ],
)
def test_a_near_tie_is_one_for_both(margins: tuple[float | None, float | None], cause: Cause) -> None:
    ours, theirs = (answer(token("dark"), token(t, -0.7, m)) for t, m in zip((" red", " blue"), margins, strict=True))
    assert compare(ours, theirs, TOLERANCE).cause == cause


def test_a_near_tie_with_the_end_of_the_answer() -> None:
    longer = answer(token("dark"), token(" red", -0.7, 0.01))
    found = compare(longer, answer(token("dark")), TOLERANCE)
    assert (found.cause, found.at) == (Cause.NEAR_TIE, 1)


@pytest.mark.parametrize(
    ("other", "cause"),
    [
        (replace(REFERENCE, served=((308, 252),)), Cause.PIXELS),
        (replace(REFERENCE, prompt_tokens=59), Cause.TEMPLATE),
        (answer(token("dark", -0.3), token(" red")), Cause.PRECISION),
    ],
)
def test_agreement_by_luck_is_told(other: Answer, cause: Cause) -> None:
    found = compare(REFERENCE, other, TOLERANCE)
    assert (found.agrees, found.cause) == (True, cause)


def test_an_estimate_of_picture_tokens_proves_nothing() -> None:
    assert compare(REFERENCE, replace(REFERENCE, image_tokens=None), TOLERANCE).cause is None
    assert (
        compare(REFERENCE, replace(REFERENCE, image_tokens=None, prompt_tokens=60), TOLERANCE).cause == Cause.TEMPLATE
    )


def test_two_that_failed_do_not_agree() -> None:
    failed = Answer(error="no room", tokens=())
    assert not compare(failed, failed, TOLERANCE).agrees


def test_each_is_beside_the_first() -> None:
    wrong = answer(token("blue"))
    agreements = compare_all({"a": [REFERENCE] * 4, "b": [REFERENCE] * 3 + [wrong], "c": [wrong] * 4}, TOLERANCE)
    assert [(a.reference, a.engine, a.agreeing, a.share) for a in agreements] == [("a", "b", 3, 0.75), ("a", "c", 0, 0)]
    assert agreements[0].causes == {(Cause.PRECISION, False): 1}
    assert agreements[0].first_apart == 0
    assert agreements[1].first_apart is None


def test_every_cause_is_explained() -> None:
    assert set(MEANING) == set(Cause)
