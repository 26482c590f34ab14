"""A process that has held many pictures does not hold their memory afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

HOLDS = """
import os, psutil
from sightline.server.memory import give_back_large_blocks
if {gives_back}:
    assert give_back_large_blocks()
process = psutil.Process()
bytearray(1_400_000)  # the first one: glibc learns from its end
before = process.memory_info().rss
kept = []
for _ in range(100):
    picture = bytearray(1_400_000)
    kept.append((picture, bytearray(4000)))  # something small behind it that stays
small = [few for _, few in kept]
del kept, picture
print((process.memory_info().rss - before) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_is_freed_goes_back_to_the_system() -> None:
    def left_mib(gives_back: bool) -> int:
        code = HOLDS.format(gives_back=gives_back)
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)

    assert left_mib(gives_back=True) < 5
    assert left_mib(gives_back=False) > 50, "or this test shows nothing"
