"""Every driver, for as short a time as it shows anything: it runs, and nothing goes wrong.

How long things take is looked at by `make reliability`, on a machine that does nothing else.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.reliability import crash, disconnect, drain, fuzz, overhead, overload, soak
from tests.reliability.__main__ import BEGIN, END, write_into
from tests.reliability.result import Result, milliseconds, quantile

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]


def test_quantiles_are_values_that_were_measured() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(list(range(1, 201)), 0.99) == 198
    assert quantile([5.0], 0.99) == 5.0
    assert milliseconds([0.001, 0.002])["max_ms"] == 2.0


def test_a_page_keeps_the_rows_that_were_not_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    write_into(page, [Result(6, "p", "old", met=True), Result(4, "p", "m", met=True)])
    write_into(page, [Result(6, "p", "new", met=False)])
    rows = [line for line in page.read_text().splitlines() if line.startswith(("| 4", "| 6"))]
    assert [row.split(" | ")[:4] for row in rows] == [["| 4", "p", "m", "yes"], ["| 6", "p", "new", "**no**"]]
    assert page.read_text().endswith("after\n")


async def test_drivers_find_nothing_wrong() -> None:
    drained, left, crashed, loaded, fuzzed, soaked, fast = await asyncio.gather(
        drain.measure(streams=7, answer_s=5.0, drain_s=2.0),
        disconnect.measure(count=8),
        crash.measure(kills=1, real=False, loop=False),
        overload.measure(seconds=2.0, calm_s=1.0),
        fuzz.measure(minutes=0, first_seed=1, batch=4),
        soak.measure(minutes=0.05, rate=5.0, num_bytes=100_000),
        overhead.measure(answers=2, seconds=0.5),
    )
    drain_found = drained.details["drained"]
    assert (drain_found["complete"], drain_found["truncated"], drain_found["status"]) == (7, 0, 0)
    assert 0 < drain_found["refused"] == drain_found["tried"]
    assert drain_found["left"] == drained.details["cut_off"]["left"] == 0
    assert drained.details["cut_off"]["told"] == drained.details["cut_off"]["streams"]
    assert "0 slots held" in left.measured
    under = crashed.details["fake"]
    assert under["again"] == under["unsent"] == 9
    assert under["told"] == under["begun"] == 7
    assert under["health"] == 0
    assert not loaded.details["others"]
    assert loaded.details["refused"]["count"] > 0 < loaded.details["ttft_accepted"]["count"]
    assert fuzzed.met, fuzzed.measured
    assert set(soaked.details["ends"]) <= {"ok", "left"}
    assert fast.details["fan_out"]["tokens"] > 0
