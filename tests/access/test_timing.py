"""Times tell nothing of keys and of other tenants' pictures (`python -m tests.access.timing` measures it at length)."""

from __future__ import annotations

import pytest

from tests.access.timing import of_decoding, of_keys, tells_nothing

pytestmark = pytest.mark.anyio


async def test_a_key_that_is_nearly_right_takes_as_long_as_any_other() -> None:
    async def measure() -> float:
        return of_keys(1000)

    assert await tells_nothing(measure)


def test_a_comparison_that_leaks_would_be_seen() -> None:
    assert of_keys(300, leaks=True) < 0.01


async def test_another_tenants_picture_takes_as_long_as_one_that_nobody_has_sent() -> None:
    assert await tells_nothing(lambda: of_decoding(20))


async def test_a_shared_cache_would_be_seen() -> None:
    assert await of_decoding(20, own=True) < 0.01
