"""`sightline convert SOURCE --for gguf`: a checkpoint as another engine takes it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sightline.config import PEEK, ModelConfig
from sightline.engines.checkpoint import CheckpointError
from sightline.errors import InvalidRequest

_MIB = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", metavar="SOURCE", help=f"a directory in Hugging Face's layout (Qwen2-VL, safetensors), or `{PEEK}`"
    )
    parser.add_argument(
        "--for", dest="target", choices=["gguf"], required=True, help="gguf: for llama.cpp, the engine llamacpp"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: SOURCE-gguf, here)")
    parser.add_argument(
        "--type",
        dest="weights",
        choices=["f32", "f16", "q8_0"],
        default="f16",
        help="of the weights (default f16); q8_0 is half of f16, in blocks of 32 that share a scale",
    )


def run(args: argparse.Namespace) -> int:
    source = ModelConfig(name=PEEK, source=args.source).path
    if not source.is_dir():
        raise InvalidRequest(f"There is no model {args.source!r}: it is neither `{PEEK}` nor a directory.")
    try:
        from sightline.engines.llamacpp.convert import convert
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"Converting for llama.cpp needs the package {error.name!r}: pip install 'sightline[llamacpp]'."
        ) from None
    out = args.out or Path(f"{Path(args.source).resolve().name if args.source != PEEK else PEEK}-gguf")
    try:
        convert(source, out, args.weights, _show)
    except CheckpointError as error:
        raise InvalidRequest(f"{args.source} cannot be converted: {error}.") from None
    except OSError as error:
        raise InvalidRequest(f"Cannot write to {str(out)!r}: {error.strerror}.") from None
    print(f"Serve it with: sightline serve --engine llamacpp --model {out}")
    return 0


def _show(name: str, written: int, total: int) -> None:
    """On a terminal as it grows; elsewhere once, when it is whole."""
    line = f"{name}: {written / _MIB:,.1f} of {total / _MIB:,.1f} MiB"
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="\n" if written == total else "", file=sys.stderr, flush=True)
    elif written == total:
        print(line, file=sys.stderr)
