"""How far what was heard is from what was said."""

from __future__ import annotations


def edits(said: list[str], heard: list[str]) -> int:
    """Words put in, left out or exchanged (Levenshtein, 1966)."""
    row = list(range(len(heard) + 1))
    for i, a in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(heard, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]
