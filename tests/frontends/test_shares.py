"""What one process may use of what the server may."""

from __future__ import annotations

import pytest

from sightline.config import MIB, HttpLimits, ImageLimits, Settings
from sightline.frontends.shares import core_share, front_end_share


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shares_together_are_no_more_than_the_whole_but_never_nothing(processes: int) -> None:
    settings = Settings(images=ImageLimits(decoders=4, cache_bytes=256 * MIB))
    share = front_end_share(settings, processes)
    assert share.images.cache_bytes * processes <= 256 * MIB
    assert share.images.decoders == max(1, 4 // processes)
    assert share.fetch.max_at_once >= 1
    assert share.batches.max_concurrent == 0, "one process alone works on batches"
    assert core_share(settings).batches == settings.batches
    assert core_share(settings).images.cache_bytes == 0


def test_the_largest_body_still_fits() -> None:
    settings = Settings(http=HttpLimits(max_body_bytes=64 * MIB, max_held_bytes=128 * MIB))
    assert front_end_share(settings, 2).http.max_held_bytes == 64 * MIB
    assert front_end_share(settings, 8).http.max_held_bytes == 64 * MIB
