"""How far a long run is: a line that renews itself on a terminal, a line now and then elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TextIO

_TERMINAL_S = 0.1
_ELSEWHERE_S = 10.0
_WINDOW = 200
"""Of the last steps, from which the rate is taken: the first of a run are slow."""
_WIDTH = 24


class Progress:
    """A context manager."""

    def __init__(self, total: int, *, done: int = 0, failed: int = 0, out: TextIO | None = None) -> None:
        self._total = total
        self._done = done
        self._failed = failed
        self._out = out or sys.stderr
        self._is_terminal = self._out.isatty()
        self._steps: deque[float] = deque(maxlen=_WINDOW)
        self._shown = time.monotonic()

    def step(self, *, failed: bool = False) -> None:
        self._done += 1
        self._failed += failed
        now = time.monotonic()
        self._steps.append(now)
        if now - self._shown >= (_TERMINAL_S if self._is_terminal else _ELSEWHERE_S):
            self._show(now)

    def _show(self, now: float) -> None:
        self._shown = now
        line = to_line(self._done, self._total, self._failed, rate(self._steps))
        if self._is_terminal:
            self._out.write(f"\r\x1b[2K{line}")
        else:
            self._out.write(f"{line}\n")
        self._out.flush()

    def __enter__(self) -> Progress:
        if self._is_terminal:
            self._show(time.monotonic())
        return self

    def __exit__(self, *_: object) -> None:
        self._show(time.monotonic())
        if self._is_terminal:
            self._out.write("\n")
            self._out.flush()


def rate(steps: deque[float]) -> float:
    """A second, over the last steps, of which the first may have waited for a model; 0 before there are two."""
    elapsed_s = steps[-1] - steps[0] if steps else 0.0
    return (len(steps) - 1) / elapsed_s if elapsed_s > 0 else 0.0


def to_line(done: int, total: int, failed: int, per_s: float) -> str:
    filled = round(_WIDTH * done / total) if total else _WIDTH
    bar = "█" * filled + "░" * (_WIDTH - filled)
    left = f", {_to_time((total - done) / per_s)} left" if per_s and done < total else ""
    errors = f", {failed} errors" if failed else ""
    return f"{bar} {done}/{total}  {per_s:.1f}/s{left}{errors}"


def _to_time(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"
