"""A process that has held many pictures does not hold their memory afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

CHURN = """
import psutil, random
from sightline.server.memory import give_back_large_blocks
if {gives_back}:
    assert give_back_large_blocks()
process, chance = psutil.Process(), random.Random(1)
bytearray(1_400_000)  # the first one: glibc learns from its end
before = process.memory_info().rss
pictures, others = [], []
for i in range(600):
    pictures.append(bytearray(chance.randint(600_000, 1_400_000)))
    if i % 3 == 0:
        others.append(bytearray(100_000))
    for held, most in ((pictures, 60), (others, 300)):
        if len(held) > most:
            held.pop(chance.randrange(len(held)))
del pictures, held
print((process.memory_info().rss - before - 100_000 * len(others)) // 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_is_freed_goes_back_to_the_system() -> None:
    def left_mib(gives_back: bool) -> int:
        code = CHURN.format(gives_back=gives_back)
        return int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)

    assert left_mib(gives_back=True) < 5
    assert left_mib(gives_back=False) > 25, "or this test shows nothing"


AGAIN = """
import resource
from sightline.server.memory import give_back_large_blocks
assert give_back_large_blocks()
def strings_of_a_request():
    return [b"a" * 125_000 for _ in range(16)]
for _ in range(3):
    strings_of_a_request()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    strings_of_a_request()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_pictures_come_into_memory_that_is_at_hand() -> None:
    faults = int(subprocess.run([sys.executable, "-c", AGAIN], capture_output=True, check=True, text=True).stdout)

    assert faults < 500, "of 4,900 pages that were used"
