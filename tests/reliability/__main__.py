"""`make reliability`: what the safety page promises of staying up, measured, as one table.

    python -m tests.reliability --only 4,6 --soak-minutes 20 --json runs/reliability.json --into docs/reliability.md

One driver after the other, each with servers of its own. Exit status 1 when a promise is not met. What `--into` writes
keeps the rows of figures that were not measured this time.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from tests.chaos_matrix import HeldUp
from tests.reliability.result import HEADER, PAGE_HEADER, Result, to_json

Measure = Callable[[], Awaitable[Result]]
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def drivers(args: argparse.Namespace) -> dict[int, Measure]:
    """By figure, the quick ones first."""
    options = {
        21: ("overhead", {}),
        8: ("crash", {}),
        5: ("disconnect", {}),
        4: ("drain", {}),
        20: ("rolling", {}),
        6: ("overload", {}),
        17: ("fuzz", {"minutes": args.fuzz_minutes, "first_seed": int(time.time())}),
        13: ("soak", {"minutes": args.soak_minutes, "rate": args.soak_rate}),
    }
    return {
        figure: _driver(name, kwargs)
        for figure, (name, kwargs) in options.items()
        if find_spec(f"tests.reliability.{name}") is not None
    }


def _driver(name: str, kwargs: dict[str, float]) -> Measure:
    def measure() -> Awaitable[Result]:
        found: Callable[..., Awaitable[Result]] = import_module(f"tests.reliability.{name}").measure
        return found(**kwargs)

    return measure


async def run(figure: int, measure: Measure) -> Result:
    print(f"figure {figure} ...", file=sys.stderr, flush=True)
    began = time.monotonic()
    held_up = HeldUp()
    try:
        async with held_up:
            result = await measure()
    except Exception as error:  # a driver that fails is a promise that is not met, and the others still run
        result = Result(figure, "could be measured", f"{type(error).__name__}: {str(error)[:300]}", met=False)
    result.held_up_ms = round(1000 * held_up.most_s)
    result.took_s = round(time.monotonic() - began, 1)
    print(result.row(), flush=True)
    return result


def write_into(page: Path, results: list[Result]) -> None:
    """The rows between the marks, in order; those of other figures stay."""
    before, rest = page.read_text().split(BEGIN)
    old, after = rest.split(END)
    rows = {int(found[1]): found[0] for found in re.finditer(r"^\| (\d+) \|.*$", old, re.M)}
    rows |= {result.figure: result.page_row() for result in results}
    table = "\n".join([PAGE_HEADER, *(rows[number] for number in sorted(rows))])
    page.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


async def main(args: argparse.Namespace) -> int:
    chosen = {int(number) for number in args.only.split(",") if number}
    print(HEADER, flush=True)
    known = drivers(args)
    results = [await run(figure, measure) for figure, measure in known.items() if not chosen or figure in chosen]
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(to_json(results))
    if args.into is not None:
        write_into(args.into, results)
    return 0 if results and all(result.met for result in results) else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="N,N", help="figures of the safety page (default: all)")
    parser.add_argument("--soak-minutes", type=float, default=20.0)
    parser.add_argument("--soak-rate", type=float, default=20.0, help="requests a second (default: %(default)s)")
    parser.add_argument("--fuzz-minutes", type=float, default=10.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--into", type=Path, metavar="PAGE", help="a page with the marks between which the table stands"
    )
    sys.exit(asyncio.run(main(parser.parse_args())))
