"""How the clauses that an engine cannot keep are counted."""

from __future__ import annotations

import pytest

from sightline.testing import CLAUSES, ISOLATED_CLAUSES
from tests.engines.conftest import ALLOWED_SKIPS, AllowedSkip, judge, read_allowed_skips

LISTED = AllowedSkip("e", "c", "it has no grammar", "no grammar here")


@pytest.mark.parametrize(
    ("outcome", "told", "allowed", "required", "counts_as"),
    [
        ("passed", "", None, True, "passed"),
        ("failed", "assert 1 == 2", None, True, "failed"),
        ("skipped", "not installed", None, False, "skipped"),
        ("skipped", "not installed", None, True, "failed"),
        ("failed", "E  no grammar here", LISTED, True, "skipped"),
        ("skipped", "no grammar here", LISTED, True, "skipped"),
        ("failed", "E  segmentation fault", LISTED, True, "failed"),
        ("skipped", "not installed", LISTED, True, "failed"),
        ("passed", "", LISTED, True, "failed"),
    ],
)
def test_a_skip_must_be_listed_with_its_error_and_a_listed_one_must_not_pass(
    outcome: str, told: str, allowed: AllowedSkip | None, required: bool, counts_as: str
) -> None:
    assert judge(outcome, told, allowed, required=required).outcome == counts_as


def test_the_list_names_clauses_that_there_are() -> None:
    names = {clause.__name__ for clause in (*CLAUSES, *ISOLATED_CLAUSES)}
    assert {clause for clause, _ in ALLOWED_SKIPS} <= names


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[[skip]]\nengine = "e"\nclause = "c"\nreason = "r"\n', "must have"),
        ('[[skip]]\nengine = "e"\nclause = "c"\nreason = "r"\nerror = ""\n', "must have"),
        ('[[skip]]\nengine = "e"\nclause = "c"\nreason = "r"\nerror = "x"\n' * 2, "twice"),
    ],
)
def test_an_entry_says_all_and_stands_once(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        read_allowed_skips(text)
