"""`sightline batch run --on ray`: what the arguments say about a cluster."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import yaml

from sightline.cli.models import to_model_config, whole
from sightline.cluster.serve_config import of_file, to_replicas
from sightline.config import ModelConfig
from sightline.errors import InvalidRequest, UnsupportedFeature

if TYPE_CHECKING:
    from sightline.batch.ray_data import RayBatch

_MODULES: Final = ("ray", "pandas", "pyarrow")
"""What Ray Data needs, of which pip's `ray` is only the first."""
_GPU_ENGINES: Final = frozenset({"vllm"})
_BEFORE_RAY: Final = {
    "RAY_AUTH_MODE": "token",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what Ray Data does in every run is an error to Ray's own log
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "30",  # for so long one that was killed keeps processors
}
"""Variables that Ray's libraries read when they are imported."""
_OPTIONS: Final = ("ray_address", "replicas", "accelerator", "cpus", "gpus")


def add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--on",
        choices=["ray"],
        help="where the engines run: on the machines of a Ray cluster, with Ray Data (default: in this process)",
    )
    command.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="with --on ray: the cluster, as HOST:PORT or `auto` (default: RAY_ADDRESS, else the Ray of this machine, "
        "else one that is started for the run)",
    )
    command.add_argument(
        "--replicas",
        metavar="N|MIN-MAX",
        help="with --on ray: engines (default: one for each machine, or as many as there are accelerators for)",
    )
    command.add_argument("--accelerator", metavar="KIND", help="with --on ray: Ray's name of a kind, such as A10G")
    command.add_argument(
        "--cpus",
        type=whole(1, 4096),
        metavar="N",
        help="with --on ray: processors that Ray keeps for each (default: so many that there is one on each machine; "
        "1 with accelerators)",
    )
    command.add_argument(
        "--gpus", type=whole(0, 64), metavar="N", help="with --on ray: accelerators for each (default: what it needs)"
    )


def refuse_elsewhere(args: argparse.Namespace) -> None:
    """Raises `InvalidRequest` for what is about a cluster, where there is none."""
    for name in _OPTIONS:
        if getattr(args, name) is not None:
            raise InvalidRequest(f"--{name.replace('_', '-')} goes with --on ray.", param=name)


def to_ray_batch(args: argparse.Namespace, total: int, arguments: Mapping[str, Any]) -> tuple[RayBatch, str]:
    """And what names its model, as the same model in this process has it. `arguments`: of `Batch`.

    Raises `InvalidRequest`, and `UnsupportedFeature` where Ray Data is not installed.
    """
    if args.url is not None:
        raise InvalidRequest(
            "--on ray runs engines of its own, and --url asks what runs already: a cluster's ingress is asked with "
            "--url alone.",
            param="url",
        )
    values, directory, name, label = _of_file(args) if args.config is not None else _of_arguments(args)
    settings = of_file(values, directory, (1, 1), None)["settings"]
    model = _find(settings["models"], name, args.config)
    least, most = (None, None) if args.replicas is None else to_replicas(args.replicas)
    if least == 0:
        raise InvalidRequest("--replicas is at least 1: a run that is under way needs an engine.", param="replicas")
    gpus = args.gpus if args.gpus is not None else int(bool(args.accelerator or model.get("engine") in _GPU_ENGINES))
    options = {"num_cpus": args.cpus, "num_gpus": gpus or None, "accelerator_type": args.accelerator}
    if str(args.ray_address).startswith("ray://"):
        raise InvalidRequest(
            "Ray Client's addresses (ray://) are not taken: the pictures are read, and the answers written, on a "
            "machine of the cluster. Run the command there, or send it: "
            "ray job submit -- sightline batch run ... --on ray",
            param="ray_address",
        )
    if any(find_spec(module) is None for module in _MODULES):
        raise UnsupportedFeature("--on ray needs Ray Data: pip install 'sightline[cluster]'.", param="on")
    for variable, value in _BEFORE_RAY.items():
        os.environ.setdefault(variable, value)
    from sightline.batch.ray_data import RayBatch, Replicas

    batch = RayBatch(
        settings,
        name,
        total=total,
        per_replica=args.concurrency or 2 * model.get("max_concurrent", ModelConfig(name="any").max_concurrent),
        replicas=Replicas(least, most, {key: value for key, value in options.items() if value is not None}),
        address=args.ray_address,
        arguments={key: value for key, value in arguments.items() if key != "concurrency"},
    )
    return batch, label or name


def _of_file(args: argparse.Namespace) -> tuple[dict[str, Any], Path, str, str | None]:
    """Not checked with its engines, which need not be on this machine."""
    try:
        values = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{args.config} cannot be read: {type(error).__name__}.", param="config") from None
    if not isinstance(values, dict):
        raise InvalidRequest(f"{args.config} must hold settings.", param="config")
    models = values.get("models") or [{"name": "peek"}]
    return values, args.config.parent, args.name or models[0]["name"], None


def _of_arguments(args: argparse.Namespace) -> tuple[dict[str, Any], Path, str, str]:
    for argument, default in args.said.items():
        if getattr(args, argument) is None:
            setattr(args, argument, default)
    config = to_model_config(args, runs_here=False)
    values = {"models": [msgspec.to_builtins(config)]}
    return values, Path(), config.name, f"{config.engine}:{config.source}"


def _find(models: list[dict[str, Any]], name: str, file: Path | None) -> dict[str, Any]:
    for model in models:
        if name in (model["name"], *model.get("aliases", [])):
            return model
    raise InvalidRequest(f"{file} has no model {name!r}.", param="name")
