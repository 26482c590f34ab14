"""`sightline check FILE`: all that is wrong with a configuration file, or what it would serve."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sightline.access.gate import Gate, keys_path
from sightline.cli.serve import refuse_open_bind
from sightline.config import ModelConfig, Settings
from sightline.configfile import check
from sightline.errors import InvalidRequest, StorageUnavailable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="such as sightline.yaml")
    parser.add_argument("--open-to-anyone", action="store_true", help="as `serve` has it")


def run(args: argparse.Namespace) -> int:
    settings, problems = check(args.file)
    lines = [problem.show(str(args.file)) for problem in problems]
    if settings is not None:
        lines += [f"{args.file}: {problem}" for problem in _of_access(settings, is_open=args.open_to_anyone)]
    if settings is None or lines:
        print("\n".join(lines), file=sys.stderr)
        return 1
    header = ("MODEL", "ENGINE", "SOURCE", "LOADED", "ALSO KNOWN AS", "FALLBACKS")
    print(to_table([header, *(_to_row(model) for model in settings.models)]))
    print(f"on http://{settings.host}:{settings.port}/v1")
    return 0


def _of_access(settings: Settings, *, is_open: bool) -> Iterator[str]:
    """What would keep a server with these settings from starting, as far as keys go."""
    try:
        Gate(settings.access, keys_path(settings))
        if not is_open:
            refuse_open_bind(settings)
    except InvalidRequest as error:
        yield f"{error.param}: {error.message}"
    except StorageUnavailable as error:
        yield f"access: {error.message}"


def _to_row(model: ModelConfig) -> tuple[str, ...]:
    source = str(model.options.get("model") or model.options.get("base_url") or model.source)
    loaded = "at start" if model.load == "start" else "on demand"
    return (
        model.name,
        model.engine,
        "-" if model.engine == "fake" else source,
        loaded,
        ", ".join(model.aliases) or "-",
        ", ".join(model.fallbacks) or "-",
    )


def to_table(rows: Sequence[tuple[str, ...]]) -> str:
    """The first row is the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
