"""What a driver measured, and how it is told."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Result:
    figure: int
    promise: str
    measured: str
    met: bool
    details: dict[str, Any] = field(default_factory=dict)
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 2))
    """The machine's load average (1 minute) when it was done: what else ran meanwhile."""
    held_up_ms: int = 0
    """By how much the driver itself woke too late from a short sleep, at most: what the machine adds to any time."""
    took_s: float = 0.0

    def row(self) -> str:
        return f"| {self.figure} | {self.promise} | {self.measured} | {'yes' if self.met else '**no**'} |"

    def page_row(self) -> str:
        """With what the reader of a page cannot look up: what else ran on the machine, and what that did to times."""
        return f"{self.row()} {self.load:g} | {self.held_up_ms} ms |"


HEADER = "| # | promise | measured | met |\n|---|---|---|---|"
PAGE_HEADER = "| # | promise | measured | met | load | held up |\n|---|---|---|---|---|---|"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.nan


def milliseconds(values: Sequence[float]) -> dict[str, float]:
    """Of seconds: median, 99th percentile, most, and how many."""
    spread = {f"p{int(share * 100)}_ms": round(1000 * quantile(values, share), 2) for share in (0.5, 0.99)}
    return {**spread, "max_ms": round(1000 * max(values, default=math.nan), 2), "count": len(values)}


def to_json(results: Sequence[Result]) -> str:
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()}
    when = time.strftime("%Y-%m-%d", time.gmtime())
    rows = [vars(result) for result in results]
    return json.dumps({"date": when, "machine": machine, "results": rows}, indent=1) + "\n"
