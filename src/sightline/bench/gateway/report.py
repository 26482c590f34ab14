"""Figures and what they promise: a line a case while it runs, the goals at the end, JSON and a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sightline.bench.gateway.cases import Case
from sightline.bench.gateway.load import Told
from sightline.bench.gateway.processes import Spent

OURS, LITELLM, SDK, STUB = "Sightline", "LiteLLM's proxy", "LiteLLM's SDK", "the stub itself"
TWO_WORKERS = "Sightline, --workers 2"
STREAMS, PAUSE_MS = "1,000 streams", 250
PACED = "200 KB, 100 a second"
_BEGIN, _END = "<!-- figures: written by make bench-gateway -->", "<!-- end of figures -->"
_BUSY = 0.9
"""Of a core: clients that take more may be what limits a rate."""


@dataclass(frozen=True)
class Measured:
    """One gateway in one case."""

    gateway: str
    case: str
    clients: int
    per_s: float
    cpu_ms: float
    """Of the gateway's processes for a request, without those that decode pictures."""
    decoders_ms: float
    p50_ms: float
    p99_ms: float
    first_p50_ms: float
    longest_gap_ms: float
    """Between two pieces of any answer."""
    errors: int
    clients_cpu: float
    """Cores that the clients took."""

    def line(self) -> str:
        busy = " (clients busy)" if self.clients_cpu > _BUSY else ""
        wrong = f" {self.errors} ERRORS" if self.errors else ""
        return (
            f"{self.case:24} {self.gateway:22} {self.per_s:9.1f} {self.cpu_ms:9.3f} {self.decoders_ms:9.3f} "
            f"{self.p50_ms:9.2f} {self.p99_ms:9.2f} {self.longest_gap_ms:9.1f}{busy}{wrong}"
        )


HEADER = (
    f"{'':47} {'requests':>9} {'CPU ms':>9} {'decoders':>9} {'p50':>9} {'p99':>9} {'longest':>9}\n"
    f"{'case':24} {'gateway':22} {'a second':>9} {'a request':>9} {'ms':>9} {'ms':>9} {'ms':>9} {'gap, ms':>9}"
)


def to_measured(gateway: str, case: Case, told: Told, spent: Spent) -> Measured:
    answers = len(told.latencies_s)

    def ms(values: Sequence[float], share: float) -> float:
        return round(float(np.quantile(values, share)) * 1000, 3) if values else float("nan")

    def each(seconds: float) -> float:
        return round(seconds / max(1, answers) * 1000, 4)

    return Measured(
        gateway=gateway,
        case=case.name,
        clients=case.clients,
        per_s=round(answers / told.wall_s, 2),
        cpu_ms=each(spent.own),
        decoders_ms=each(spent.decoders),
        p50_ms=ms(told.latencies_s, 0.5),
        p99_ms=ms(told.latencies_s, 0.99),
        first_p50_ms=ms(told.firsts_s, 0.5),
        longest_gap_ms=ms(told.gaps_s, 1.0),
        errors=told.errors,
        clients_cpu=round(told.cpu_s / told.wall_s, 3),
    )


@dataclass(frozen=True)
class Goal:
    what: str
    promised: float
    measured: float | None

    @property
    def met(self) -> bool:
        return self.measured is not None and self.measured <= self.promised

    def line(self) -> str:
        told = "not measured" if self.measured is None else f"{self.measured:.3f}"
        return f"{self.what:60} <= {self.promised:<8g} {told:>12}  {'met' if self.met else 'NOT MET'}"


def goals(rows: Sequence[Measured]) -> tuple[Goal, ...]:
    found = {(row.gateway, row.case): row for row in rows}

    def share(case: str) -> float | None:
        """Of LiteLLM's proxy; of its SDK where the proxy was not measured."""
        ours, theirs = found.get((OURS, case)), found.get((LITELLM, case), found.get((SDK, case)))
        return None if ours is None or theirs is None else ours.cpu_ms / theirs.cpu_ms

    def added(case: str, quantile: str) -> float | None:
        ours, bare = found.get((OURS, case)), found.get((STUB, case))
        return None if ours is None or bare is None else float(getattr(ours, quantile) - getattr(bare, quantile))

    def of_streams(gateway: str) -> tuple[Goal, ...]:
        row = found.get((gateway, STREAMS))
        late_ms, lost = (None, None) if row is None else (row.longest_gap_ms - PAUSE_MS, row.errors)
        return (
            Goal(f"{STREAMS}, {gateway}: the latest chunk, ms late", PAUSE_MS, late_ms),
            Goal(f"{STREAMS}, {gateway}: not answered", 0, lost),
        )

    return (
        Goal("CPU at 2 KB, of LiteLLM's", 1 / 10, share("2 KB")),
        Goal("CPU at 2 MB, of LiteLLM's", 1 / 4, share("2 MB")),
        Goal("CPU of 64 chunks at once, of LiteLLM's", 1 / 20, share("64 chunks at once")),
        Goal("CPU of 64 chunks 10 ms apart, of LiteLLM's", 1 / 20, share("64 chunks, 10 ms apart")),
        Goal("added p50 at 200 KB, ms", 1.0, added("200 KB, 100 a second", "p50_ms")),
        Goal("added p99 at 200 KB, ms", 5.0, added("200 KB, 100 a second", "p99_ms")),
        *of_streams(OURS),
        *of_streams(TWO_WORKERS),
    )


def to_text(rows: Sequence[Measured]) -> str:
    return "\n" + "\n".join(goal.line() for goal in goals(rows))


def write(rows: Sequence[Measured], load: float, prefix: Path) -> None:
    """PREFIX.json, PREFIX.png, and the tables of the page beside them. `load`: the machine's, before it began."""
    told = {
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
        "rows": [asdict(row) for row in rows],
        "goals": [{**asdict(goal), "met": goal.met} for goal in goals(rows)],
    }
    prefix.with_suffix(".json").write_text(json.dumps(told, indent=2) + "\n")
    draw(rows, prefix.with_suffix(".png"))
    if (page := prefix.with_name("gateway.md")).exists():
        before, _, rest = page.read_text().partition(_BEGIN)
        page.write_text(before + _BEGIN + "\n\n" + to_markdown(rows, load) + "\n" + _END + rest.partition(_END)[2])


def to_markdown(rows: Sequence[Measured], load: float) -> str:
    """CPU and rate of each gateway in each case; then what was promised."""
    names = list(dict.fromkeys(row.gateway for row in rows if row.case != STREAMS))
    found = {(row.gateway, row.case): row for row in rows}
    lines = [f"| CPU of a request, ms (requests a second) | {' | '.join(names)} |", "|---|" + "--:|" * len(names)]
    for case in dict.fromkeys(row.case for row in rows if row.case not in (STREAMS, PACED)):
        cells = [_cell(found[name, case]) if (name, case) in found else "" for name in names]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    lines += ["", "| promised | at most | measured | |", "|---|--:|--:|---|"]
    for goal in goals(rows):
        told = "" if goal.measured is None else f"{goal.measured:.3g}"
        lines.append(f"| {goal.what} | {goal.promised:g} | {told} | {'met' if goal.met else 'not met'} |")
    cores = len(os.sched_getaffinity(0))
    lines += ["", f"{cores} cores; other work on the machine when it began: a load of {load:.1f} (0: none)."]
    return "\n".join(lines) + "\n"


def _cell(row: Measured) -> str:
    decoders = f" + {row.decoders_ms:.3g} decoders" if row.decoders_ms > row.cpu_ms / 100 else ""
    return f"{row.cpu_ms:.3g}{decoders} ({row.per_s:,.0f})"


def draw(rows: Sequence[Measured], file: Path) -> None:
    """CPU time of a request, by case and gateway."""
    from matplotlib import pyplot

    shown = [row for row in rows if row.gateway != STUB and row.case not in (STREAMS, PACED)]
    cases, names = list(dict.fromkeys(row.case for row in shown)), list(dict.fromkeys(row.gateway for row in shown))
    figure, axes = pyplot.subplots(figsize=(9, 0.45 * len(cases) * len(names) / 2 + 1.5), layout="constrained")
    height = 0.8 / len(names)
    for offset, name in enumerate(names):
        own = {row.case: row for row in shown if row.gateway == name}
        places = [cases.index(case) + (offset - (len(names) - 1) / 2) * height for case in own]
        bars = axes.barh(places, [row.cpu_ms for row in own.values()], height, label=name)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.set_yticks(range(len(cases)), cases)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.set_xlabel("CPU time of a request, ms (logarithmic; shorter is better)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(names))
    figure.savefig(file, dpi=120)
