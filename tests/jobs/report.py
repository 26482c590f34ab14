"""`make reliability-jobs`: what is promised of batches and files, measured on both stores, as one table.

python -m tests.jobs.report [--lines 1000] [--kills 20] [--only 19] [--into docs/reliability-jobs.md]

Each figure has a driver of its own; one runs after the other. Exit 1 if a promise is not met.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.jobs.figures import Figure
from tests.jobs.kill import VICTIMS, StoreName
from tests.jobs.redis_server import BINARY, WHY_NOT

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


@dataclass(frozen=True, slots=True)
class Driver:
    number: int
    store: StoreName
    arguments: tuple[str, ...]
    """Of `python -m`."""


def drivers(lines: int, kills: int) -> Iterator[Driver]:
    stores: tuple[StoreName, ...] = ("sqlite", "redis")
    for store in stores:
        for victim in VICTIMS[store]:
            counts = ("--lines", str(lines), "--kills", str(kills))
            yield Driver(1, store, ("tests.jobs.kill", *counts, "--store", store, "--victim", victim))
    for number, module in ((2, "attempts"), (3, "syncs"), (12, "once"), (18, "mishaps")):
        for store in stores:
            yield Driver(number, store, (f"tests.jobs.{module}", "--store", store))
    yield Driver(19, "redis", ("tests.jobs.outage", "--store", "redis"))


def run(driver: Driver, file: Path) -> Figure:
    done = subprocess.run(
        [sys.executable, "-m", *driver.arguments, "--json", str(file)], stdout=subprocess.DEVNULL, check=False
    )
    if file.exists():
        return Figure(**json.loads(file.read_text()))
    return Figure(
        driver.number, driver.store, " ".join(driver.arguments), f"it ended with {done.returncode}", met=False
    )


def to_table(figures: list[Figure]) -> str:
    rows = [
        f"| {f.number} | {f.store} | {f.promise} | {f.measured} | {'yes' if f.met else '**no**'} |" for f in figures
    ]
    return "\n".join(["| figure | store | promise | measured | met |", "|---|---|---|---|---|", *rows])


def write(table: str, page: Path) -> None:
    text = page.read_text()
    before, rest = text.split(BEGIN, 1)
    _, after = rest.split(END, 1)
    where = f"{os.cpu_count()} cores, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    page.write_text(f"{before}{BEGIN}\n{table}\n\nMeasured on {where}.\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", type=int, help="the number of one figure")
    parser.add_argument("--into", type=Path, help="write the table between the marks of this page")
    args = parser.parse_args()
    chosen = [one for one in drivers(args.lines, args.kills) if args.only in (None, one.number)]
    if BINARY is None:
        print(f"Nothing of Redis is measured: {WHY_NOT}")
        chosen = [one for one in chosen if one.store != "redis"]
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for number, driver in enumerate(chosen):
            print(f"[{number + 1}/{len(chosen)}] {' '.join(driver.arguments)}", file=sys.stderr, flush=True)
            figures.append(run(driver, Path(folder) / f"{number}.json"))
    table = to_table(figures)
    print(table)
    if args.into is not None:
        write(table, args.into)
    raise SystemExit(0 if all(figure.met for figure in figures) else 1)


if __name__ == "__main__":
    main()
