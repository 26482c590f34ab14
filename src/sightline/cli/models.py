"""The arguments that name a model, the same for every command that runs one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sightline.config import PEEK, ModelConfig, environment
from sightline.engines import ENGINES
from sightline.errors import InvalidRequest


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=environment("MODEL", PEEK),
        help="the embedded model `peek` (default), or a directory that holds an OpenVINO model",
    )
    engines = "; ".join(f"{name}: {entry.summary}" for name, entry in ENGINES.items())
    parser.add_argument("--engine", choices=sorted(ENGINES), default=environment("ENGINE", "openvino"), help=engines)
    parser.add_argument("--name", help="the name clients use for the model (default: the directory's, or `peek`)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the engine; the value is read as JSON where it is JSON, else as text; repeatable",
    )


def to_model_config(args: argparse.Namespace) -> ModelConfig:
    """Raises `InvalidRequest` for a directory that is not there or an option that is not KEY=VALUE."""
    if args.engine == "fake" and args.model == PEEK:
        return ModelConfig(name=args.name or "fake", engine="fake", options=_options(args.option))
    if args.model != PEEK and not Path(args.model).is_dir():
        raise InvalidRequest(
            f"There is no model {args.model!r}: it is neither `{PEEK}` nor a directory.", param="model"
        )
    name = args.name or (PEEK if args.model == PEEK else Path(args.model).resolve().name)
    return ModelConfig(name=name, engine=args.engine, source=args.model, options=_options(args.option))


def _options(pairs: list[str]) -> dict[str, object]:
    options: dict[str, object] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise InvalidRequest(f"--option takes KEY=VALUE, not {pair!r}.", param="option")
        try:
            options[key] = json.loads(value)
        except ValueError:
            options[key] = value
    return options
