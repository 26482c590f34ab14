"""The arguments that name a model, the same for every command that runs one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from sightline.config import PEEK, ModelConfig, PictureSize, environment
from sightline.configfile import verify_model
from sightline.engines import ENGINES, find_entry
from sightline.engines.sources import check_source, name_of
from sightline.errors import InvalidRequest


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default=environment("MODEL", PEEK),
        help="the embedded model `peek` (default), a directory, a GGUF file, a hub's id (ORGANISATION/NAME), or a name "
        "that the engine knows",
    )
    engines = "; ".join(f"{name}: {entry.summary}" for name, entry in ENGINES.items())
    parser.add_argument(
        "--engine",
        metavar="NAME",
        default=environment("ENGINE", "openvino"),
        help=f"what runs the model (default: openvino). {engines}; and those of other packages",
    )
    parser.add_argument(
        "--python",
        metavar="PROGRAM",
        help="the Python of the environment that the engine is installed in (default: this one); "
        "`sightline engine install NAME` makes one",
    )
    parser.add_argument("--name", help="the name clients use for the model (default: the source's, or `peek`)")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of the engine; the value is read as JSON where it is JSON, else as text; repeatable",
    )
    parser.add_argument(
        "--limit-mm-per-prompt",
        default="{}",
        metavar="image=N",
        help='most pictures in a request to this model; also as JSON: {"image": 4}',
    )
    add_picture_size_arguments(parser, "", "to this model")


def whole(low: int, high: int) -> Callable[[str], int]:
    """Reads a number of a flag that must lie within these bounds."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"takes a whole number, not {text!r}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"takes a number from {low} to {high}, not {value}")
        return value

    return read


PORT = whole(0, 65_535)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Within the bounds that the API has, too."""
    parser.add_argument(
        "--max-tokens",
        type=whole(1, 2**31 - 1),
        metavar="N",
        help="longest answer (default: what the context holds)",
    )
    parser.add_argument(
        "--temperature",
        type=_temperature,
        default=0.0,
        metavar="T",
        help="0 (default): always the likeliest answer; up to 2",
    )
    parser.add_argument("--seed", type=whole(-(2**63), 2**63 - 1), metavar="N", help="draws the same answer again")


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a number, not {text!r}") from None
    if not 0 <= value <= 2:  # nan is not
        raise argparse.ArgumentTypeError(f"takes a number from 0 to 2, not {text}")
    return value


def add_picture_size_arguments(parser: argparse.ArgumentParser, prefix: str, whose: str) -> None:
    """`prefix` is "" or ends with "-"; `to_picture_size` takes it as well."""
    details = ["auto", "low", "high", "original"]
    parser.add_argument(
        f"--{prefix}detail", choices=details, default="auto", help=f"of pictures {whose} whose request asks for none"
    )
    parser.add_argument(
        f"--{prefix}max-pixels", type=int, metavar="N", help=f"most pixels of a picture as it is given {whose}"
    )
    parser.add_argument(
        f"--{prefix}min-pixels", type=int, metavar="N", help=f"fewest pixels of a picture as it is given {whose}"
    )


def to_picture_size(args: argparse.Namespace, prefix: str = "") -> PictureSize:
    """Raises `InvalidRequest` for bounds that contradict each other."""
    given = vars(args)
    start = prefix.replace("-", "_")
    return PictureSize(
        detail=given[f"{start}detail"], max_pixels=given[f"{start}max_pixels"], min_pixels=given[f"{start}min_pixels"]
    )


def to_model_config(args: argparse.Namespace, *, runs_here: bool = True) -> ModelConfig:
    """Raises `InvalidRequest` for an engine or a source that is not there, and for what cannot be meant; where the
    engine runs here, also for an option that it does not know and a package that it lacks: now, and not again and
    again in its own process."""
    config = msgspec.structs.replace(
        _to_source(args),
        options=to_options(args.option),
        python=args.python,
        limit_mm_per_prompt=_to_limits(args.limit_mm_per_prompt),
        picture_size=to_picture_size(args),
    )
    if runs_here:
        verify_model(config)
    return config


def _to_source(args: argparse.Namespace) -> ModelConfig:
    entry = find_entry(args.engine)
    if args.engine == "fake" and args.model == PEEK:
        return ModelConfig(name=args.name or "fake", engine="fake")
    check_source(args.model, args.engine, entry)
    return ModelConfig(name=args.name or name_of(args.model), engine=args.engine, source=args.model)


def to_options(pairs: Sequence[str]) -> dict[str, object]:
    """Of `KEY=VALUE`s. Raises `InvalidRequest` for what is none."""
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


def _to_limits(text: str) -> Mapping[str, int]:
    """`image=4` or `{"image": 4}`; which keys there are is the configuration's to say."""
    kind, separator, most = text.partition("=")
    try:
        limits: Any = {kind.strip(): int(most)} if separator else json.loads(text)
        return msgspec.convert(limits, dict[str, int])
    except (ValueError, msgspec.ValidationError):
        raise InvalidRequest(
            f'--limit-mm-per-prompt takes image=N or {{"image": N}}, not {text!r}.', param="limit_mm_per_prompt"
        ) from None
