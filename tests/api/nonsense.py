"""Bodies that no client would send, made of a dialect's own words: whatever comes, it is answered or refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

_SCALARS = st.none() | st.booleans() | st.integers(-9, 30) | st.floats(-3, 3) | st.text(max_size=3)


def values(words: Sequence[str], keys: Sequence[str]) -> st.SearchStrategy[Any]:
    """Any JSON value, in whose place another may be wanted. `words`: what a dialect's strings may be; `keys`: what its
    objects have."""
    return st.recursive(
        _SCALARS | st.sampled_from(words),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(keys), inner, max_size=5),
        max_leaves=12,
    )
