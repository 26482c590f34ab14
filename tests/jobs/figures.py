"""What the drivers of `make reliability-jobs` have in common: one figure of the safety page, promised and measured."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.jobs.kill import StoreName


@dataclass(frozen=True, slots=True)
class Figure:
    number: int
    """On the safety page."""
    store: StoreName
    promise: str
    measured: str
    met: bool


def command(doc: str, measure: Callable[[Path, StoreName], Figure]) -> None:
    """The command line of a driver: measures in an empty directory, prints, writes a JSON result; exit 1 if not met."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--store", choices=["sqlite", "redis"], default="sqlite")
    parser.add_argument("--json", type=Path, help="write the result there, too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figure = measure(Path(folder), args.store)
    show(figure, args.json)


def show(figure: Figure, file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(asdict(figure)))
    print(f"{figure.store}: {figure.promise}: {figure.measured}: {'met' if figure.met else 'NOT MET'}")
    raise SystemExit(0 if figure.met else 1)
