"""Full disks, storage that takes no writes, clocks that are set: what `mishaps.py` measures, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs.kill import StoreName
from tests.jobs.mishaps import can_mount, clock_set, disk_full, redis_disk_full
from tests.jobs.redis_server import needs_redis

needs_small_disk = pytest.mark.skipif(not can_mount(), reason="a small tmpfs needs root, on Linux")


@pytest.mark.parametrize("store", ["sqlite", pytest.param("redis", marks=needs_redis)])
def test_a_clock_that_is_set_costs_no_lease(tmp_path: Path, store: StoreName) -> None:
    assert "100 of 100" in clock_set(tmp_path, store)


@needs_small_disk
@pytest.mark.timeout(120)
def test_a_full_disk_refuses_what_is_new_and_nothing_else(tmp_path: Path) -> None:
    assert "507" in disk_full(tmp_path / "disk", 60)


@needs_redis
@needs_small_disk
@pytest.mark.timeout(120)
def test_a_full_disk_of_redis_loses_nothing(tmp_path: Path) -> None:
    assert "2 of 2 batches completed" in redis_disk_full(tmp_path / "disk", 60)
