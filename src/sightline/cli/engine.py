"""`sightline engine list` and `sightline engine install NAME`: which engines there are, and environments for them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sightline.engines import engine_names, find_entry
from sightline.engines.environments import (
    RECIPES,
    Environment,
    default_directory,
    find_environments,
    install,
    version_here,
)
from sightline.errors import InvalidRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    shown = actions.add_parser("list", help="engines, whether they are installed, and where")
    shown.add_argument(
        "directories", nargs="*", type=Path, metavar="DIR", help="environments made with --into, to be shown too"
    )
    made = actions.add_parser("install", help="make the environment of an engine; what is there already is left alone")
    made.add_argument("engine", choices=sorted(RECIPES))
    made.add_argument("--into", type=Path, metavar="DIR", help="where (default: in the user's data directory)")
    made.add_argument("--cpu", action="store_true", help="for a machine without a GPU: smaller")
    made.add_argument("--python", metavar="PROGRAM", default=sys.executable, help="the Python to make it from")


def run(args: argparse.Namespace) -> int:
    if args.action == "list":
        print(_to_table([("ENGINE", "INSTALLED", "WHERE", "WHAT IT IS"), *_rows(args.directories)]))
        return 0
    # Made absolute, links left as they are: it is written down, and used from elsewhere.
    directory = (args.into or default_directory(args.engine)).absolute()
    print(f"The environment of {args.engine} in {directory}, about {RECIPES[args.engine].size}:", flush=True)
    environment = install(
        args.engine, directory, cpu=args.cpu, python=args.python, tell=lambda line: print(line, flush=True)
    )
    print(f"{args.engine} {environment.version} is installed. In sightline.yaml, below the model's name:\n")
    print(f"    engine: {args.engine}\n    python: {environment.python}\n")
    print(f"Or: sightline serve --engine {args.engine} --python {environment.python} --model ...")
    return 0


def _rows(directories: Sequence[Path]) -> Iterator[tuple[str, ...]]:
    places = [*map(default_directory, RECIPES), *(directory.absolute() for directory in directories)]
    environments = list(find_environments(places))
    for name in engine_names():
        try:
            summary = find_entry(name).summary
        except InvalidRequest as error:
            yield name, "no", "-", error.message
            continue
        places_of_it = list(_places(name, environments))
        for version, where in places_of_it or [("no", _remedy(name))]:
            yield name, version, where, summary


def _remedy(name: str) -> str:
    """What to run for an engine that is not installed."""
    return f"sightline engine install {name}" if name in RECIPES else f"pip install 'sightline[{name}]'"


def _places(name: str, environments: Sequence[Environment]) -> Iterator[tuple[str, str]]:
    """Version and place of an engine, for each that there is."""
    needs = name in RECIPES or bool(find_entry(name).needs) or name == "openvino"
    if not needs:
        yield "yes", "with sightline"
    elif (version := version_here(name)) is not None:
        yield version, sys.executable
    for environment in environments:
        if environment.engine == name:
            yield environment.version, str(environment.python)


def _to_table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
