"""`sightline pull MODEL`: has a model downloaded to where an engine finds it, and shows how far that is."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable
from typing import TextIO

from sightline.cli.models import to_options
from sightline.config import ModelConfig
from sightline.engines import Pulls, engine_names, find_entry, load_engine
from sightline.engines.hub import download
from sightline.engines.sources import check_source, kind_of
from sightline.errors import InvalidRequest

_BAR = 32
_PATIENCE_S = 10.0
"""With a server that is to download and does not answer."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a hub's id (ORGANISATION/NAME), or a name that the engine knows")
    parser.add_argument(
        "--engine", metavar="NAME", help="what will run it (default: transformers for a hub's id, else ollama)"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the engine; repeatable"
    )


def run(args: argparse.Namespace) -> int:
    """Raises `InvalidRequest` where there is nothing to download, `EngineUnavailable` where that fails."""
    engine = args.engine or ("transformers" if kind_of(args.model) == "hub" else "ollama")
    config = ModelConfig(
        name=args.model,
        engine=engine,
        source=args.model,
        options=to_options(args.option),
        start_timeout_s=_PATIENCE_S,
    )
    shown = Shown(args.model, sys.stderr)
    try:
        pull(config, shown.tell)
    finally:
        shown.end()
    print(f"{args.model} is here: sightline serve --engine {engine} --model {args.model}")
    return 0


def pull(config: ModelConfig, told: Callable[[float], None]) -> None:
    """`told` hears what part of the bytes is here, 0..1, from any thread."""
    entry, kind = find_entry(config.engine), kind_of(config.source)
    check_source(config.source, config.engine, entry)
    if kind == "hub" and "hub" in entry.sources:
        download(config.source, told, with_code=config.options.get("trust_remote_code") is True)
        return
    if kind == "directory" or kind == "gguf":
        raise InvalidRequest(f"{config.source!r} is on this machine already: there is nothing to download.")
    engine = load_engine(config, entry.target)
    if not isinstance(engine, Pulls):
        raise InvalidRequest(
            f"The engine {config.engine} downloads nothing. Those that take models of a hub do, and ollama; engines: "
            f"{', '.join(engine_names())}.",
            param="engine",
        )
    asyncio.run(engine.pull(told))


class Shown:
    """A line that says how far it is: redrawn on a terminal, a new one for each tenth elsewhere."""

    def __init__(self, name: str, out: TextIO) -> None:
        self._name = name
        self._out = out
        self._last = -1

    def tell(self, progress: float) -> None:
        percent = int(100 * progress)
        if percent == self._last:
            return
        if self._out.isatty():
            bar = "█" * int(_BAR * progress)
            print(f"\r\x1b[K{self._name} {bar:░<{_BAR}} {percent:3} %", end="", file=self._out, flush=True)
        elif percent // 10 != self._last // 10:
            print(f"{self._name}: {percent} %", file=self._out, flush=True)
        self._last = percent

    def end(self) -> None:
        if self._out.isatty() and self._last >= 0:
            print(file=self._out)
