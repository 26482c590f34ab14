"""When to start a dead child again. Pure: time comes in as an argument."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Restart:
    delay_s: float
    gives_up: bool = False
    """The circuit is open: until a probe after `delay_s` has come up, requests are refused instead of kept waiting."""


@dataclass(slots=True)
class RestartPolicy:
    """At once after the first death, then later and later while nothing is served between deaths.

    An engine that serves between its deaths is worth having back immediately, however often it dies; one that only dies
    is a crash loop, and keeps the machine busy loading for nothing.
    """

    first_delay_s: float = 0.5
    """After the second death in a row; doubles with each."""
    max_delay_s: float = 30.0
    max_deaths: int = 5
    """More than these within `window_s`, nothing served between them: the circuit opens."""
    window_s: float = 60.0
    probe_s: float = 30.0
    """Between probes while it is open. It closes when a child does well again."""
    _deaths: list[float] = field(default_factory=list)
    """Times of deaths since one last did well."""
    _open: bool = False

    def died(self, now: float, *, served: bool, up_s: float) -> Restart:
        """`served`: this child completed a request. `up_s`: for how long it was ready."""
        if served or up_s > self.window_s:
            self._deaths.clear()
            self._open = False
        self._deaths.append(now)
        self._open = self._open or sum(now - death <= self.window_s for death in self._deaths) > self.max_deaths
        if self._open:
            return Restart(self.probe_s, gives_up=True)
        in_a_row = len(self._deaths)
        if in_a_row == 1:
            return Restart(0.0)
        exponent = min(in_a_row - 2, 16)  # a float has an end, deaths may not
        return Restart(min(self.max_delay_s, self.first_delay_s * 2.0**exponent))
