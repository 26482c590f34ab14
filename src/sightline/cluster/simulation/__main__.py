"""Whom to ask, on 10 to 1,000 replicas: `python -m sightline.cluster.simulation`.

`--out PREFIX` writes PREFIX.json, PREFIX.png where matplotlib is installed, and the table into PREFIX.md, between its
two comments. `--quick` leaves out what takes more than some seconds.
"""

# ruff: noqa: T201 - a program that prints its table
from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sightline.cluster.simulation.policy import POLICIES
from sightline.cluster.simulation.replica import Pace
from sightline.cluster.simulation.run import Outcome, simulate
from sightline.cluster.simulation.traffic import TURNS, Traffic, draw

SIZES = (10, 30, 100, 300, 1000)
QUICK = 30
"""Replicas, at most."""
PER_REPLICA = 60
"""Conversations; the first third of them makes the caches warm."""
REQUESTS_PER_S = 0.45
"""Of a replica: two thirds of its slots are busy."""
FIGURES = re.compile(r"(<!-- figures: [^\n]* -->\n).*(<!-- end of figures -->)", re.S)
PACE = Pace()
COLOURS = {"random": "#b0b0b0", "least loaded": "#e08a1e", "affinity": "#2463eb"}


@dataclass(frozen=True)
class Scenario:
    what: str
    replicas: int
    requests_per_s: float = REQUESTS_PER_S
    per_picture: float = 200 / 43
    pace: Pace = PACE

    def traffic(self) -> Traffic:
        return Traffic(
            conversations=self.replicas * PER_REPLICA,
            per_s=self.replicas * self.requests_per_s / TURNS,
            per_picture=self.per_picture,
        )


@dataclass(frozen=True)
class Row:
    scenario: Scenario
    policy: str
    outcome: Outcome


def scenarios(quick: bool) -> list[Scenario]:
    sizes = [size for size in SIZES if not quick or size <= QUICK]
    others = QUICK if quick else 100
    small = replace(PACE, prefix_tokens=20_000, embedding_tokens=20_000)
    return [
        *(Scenario("", size) for size in sizes),
        Scenario("busy: 0.58 requests a second of a replica", others, requests_per_s=0.58),
        Scenario("1.5 conversations a picture", others, per_picture=1.5),
        Scenario("caches of 20,000 tokens", others, pace=small),
    ]


def run(scenario: Scenario, seed: int) -> list[Row]:
    conversations = draw(scenario.traffic(), seed)
    return [
        Row(scenario, policy, simulate(conversations, scenario.replicas, policy, scenario.pace, seed=seed))
        for policy in POLICIES
    ]


# --- telling ---------------------------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    head = "| replicas | | asked is | picture known | prompt computed | TTFT p50, s | p99, s | busiest | slots busy |"
    return "\n".join([head, "|--:|---|---|--:|--:|--:|--:|--:|--:|", *map(_line, rows)]) + "\n"


def _line(row: Row) -> str:
    asked, told = row.scenario, row.outcome
    cells = [
        f"{asked.replicas:,}", asked.what, row.policy, f"{told.hit_rate:.1%}", f"{told.computed:.1%}",
        f"{told.ttft_p50_s:.2f}", f"{told.ttft_p99_s:.2f}", f"{told.imbalance:.2f}", f"{told.busy:.0%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def to_json(rows: Sequence[Row], seed: int) -> str:
    told: dict[str, Any] = {
        "seed": seed,
        "rows": [
            {
                "what": row.scenario.what,
                "replicas": row.scenario.replicas,
                "policy": row.policy,
                "traffic": asdict(row.scenario.traffic()),
                "pace": asdict(row.scenario.pace),
                "outcome": asdict(row.outcome),
            }
            for row in rows
        ],
    }
    return json.dumps(told, indent=1) + "\n"


def plot(rows: Sequence[Row], path: Path) -> bool:
    """By the number of replicas; False where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    figures: list[tuple[str, Callable[[Outcome], float]]] = [
        ("requests whose picture the replica knew, %", lambda told: 100 * told.hit_rate),
        ("TTFT p99, s (logarithmic)", lambda told: told.ttft_p99_s),
        ("load of the busiest, as a multiple of the mean", lambda told: told.imbalance),
    ]
    for axes, (title, figure_of) in zip(panels, figures, strict=True):
        for policy, colour in COLOURS.items():
            mine = [row for row in rows if row.policy == policy and not row.scenario.what]
            sizes = [row.scenario.replicas for row in mine]
            axes.plot(sizes, [figure_of(row.outcome) for row in mine], "o-", color=colour, label=policy)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("replicas")
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(0, 100)
    panels[1].set_yscale("log")
    panels[1].set_yticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    panels[2].set_ylim(1, None)
    panels[0].legend(frameon=False, loc="center right")
    figure.savefig(path, dpi=110)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="PREFIX of .json, .png and .md")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help=f"up to {QUICK} replicas")
    args = parser.parse_args()
    rows: list[Row] = []
    for scenario in scenarios(args.quick):
        began = time.perf_counter()
        rows += run(scenario, args.seed)
        print(f"{scenario.replicas} replicas: {time.perf_counter() - began:.1f} s", flush=True)
    print(table(rows), end="")
    if args.out is not None:
        write(rows, args.seed, args.out)


def write(rows: Sequence[Row], seed: int, prefix: Path) -> None:
    prefix.with_suffix(".json").write_text(to_json(rows, seed))
    page = prefix.with_suffix(".md")
    if page.exists():
        page.write_text(FIGURES.sub(rf"\1\n{table(rows)}\n\2", page.read_text()))
    if not plot(rows, prefix.with_suffix(".png")):
        print("matplotlib is not installed: no plot")


if __name__ == "__main__":
    main()
