"""Lines of JSON."""

from __future__ import annotations

import json

import pytest

from sightline.jsonlines import to_line

BREAKS = "\n \r \v \f \x1c \x1d \x1e \x85 \u2028 \u2029"
"""All that `str.splitlines` splits at."""


@pytest.mark.parametrize("text", [BREAKS, "\\\u2028", '"\x85"', "äö é “quoted” 🙈", "\u0085\u2028" * 3])
def test_a_line_is_one_line_whoever_splits_it_and_says_what_it_said(text: str) -> None:
    line = to_line({text: [text]}).decode()
    assert len(line.splitlines()) == 1
    assert line.endswith("\n")
    assert json.loads(line) == {text: [text]}
