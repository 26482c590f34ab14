"""Decoded pictures that may be asked for again."""

from __future__ import annotations

import numpy as np
import pytest

from sightline import metrics
from sightline.images.budget import CellBudget
from sightline.images.cache import Decoded, Key, PictureCache
from sightline.images.codec import Picture

BUDGET = CellBudget(28, 3136, 64 * 784)
WHITE = (255, 255, 255)


def decoded(num_bytes: int) -> Decoded:
    pixels = np.zeros((1, num_bytes // 3, 3), np.uint8)
    pixels.flags.writeable = False
    picture = Picture("image/png", 10, 10, num_bytes // 3, 1, decode_s=0.1, resize_s=0.1)
    return picture, pixels


def key(digest: str = "sha256:a", tenant: str = "", budget: CellBudget = BUDGET, colour: int = 255) -> Key:
    return Key(digest, tenant, budget, (colour, 255, 255))


def test_every_part_of_the_key_counts() -> None:
    cache = PictureCache(1000)
    kept = decoded(30)
    cache.put(key(), kept)
    assert cache.get(key()) is kept
    others = [
        key("sha256:b"),
        key(tenant="b"),
        key(budget=BUDGET.narrowed("low")),
        key(colour=0),
        key()._replace(processing=0),
    ]
    assert [cache.get(other) for other in others] == [None] * len(others)


def test_what_was_used_longest_ago_makes_room() -> None:
    cache = PictureCache(90)
    for name in "abc":
        cache.put(key(name), decoded(30))
    assert cache.get(key("a")) is not None
    before = metrics.REGISTRY.get_sample_value("sightline_image_cache_evictions_total") or 0
    cache.put(key("d"), decoded(60))
    assert [name for name in "abcd" if cache.get(key(name))] == ["a", "d"]
    assert cache.bytes == 90
    assert metrics.REGISTRY.get_sample_value("sightline_image_cache_evictions_total") == before + 2


@pytest.mark.parametrize(("max_bytes", "kept"), [(0, 0), (29, 0), (30, 30)])
def test_it_never_holds_more_than_it_may(max_bytes: int, kept: int) -> None:
    cache = PictureCache(max_bytes)
    cache.put(key("a"), decoded(30))
    assert cache.bytes == kept


def test_putting_twice_counts_once_and_clearing_gives_back() -> None:
    def told() -> float:
        return metrics.REGISTRY.get_sample_value("sightline_image_cache_bytes") or 0

    before = told()
    cache = PictureCache(100)
    cache.put(key(), decoded(30))
    cache.put(key(), decoded(30))
    assert (cache.bytes, told() - before) == (30, 30)
    cache.clear()
    assert (cache.bytes, told() - before) == (0, 0)
    assert cache.get(key()) is None
