"""The file that `serve run` and `serve deploy` take as it is, and Anyscale's service file. Pure.

Ray's format: `ServeDeploySchema` (Ray 2.60, docs.ray.io/en/latest/serve/production-guide/config.html). Anyscale's:
the fields of `ServiceConfig` (docs.anyscale.com/reference/service-api), which nobody has deployed from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sightline.cluster.plan import of_app, to_settings
from sightline.errors import InvalidRequest

NAME = "sightline"
IMPORT_PATH = "sightline.cluster:app"
_GPU_ENGINES = frozenset({"vllm"})


class Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody says who has no file yet, of one model."""

    model: str = "peek"
    """As `ModelConfig.source`."""
    engine: str = "openvino"
    name: str | None = None
    """None: the last part of the source."""
    accelerator: str | None = None
    """Ray's name of a kind: `A10G`, `H100` ...; None: the processor, unless the engine needs another."""
    replicas: tuple[int, int] = (1, 1)
    """At least and at most."""
    target_tokens: int | None = None
    """As `of_file` has it."""
    token_variable: str | None = None
    """Of the machines' environment: holds the hub's token, for a model that is not everybody's."""


def to_replicas(text: str) -> tuple[int, int]:
    """`2`, or `0-8` for as many as there is work for. Raises `InvalidRequest`."""
    least, dash, most = text.strip().partition("-")
    if least.isdecimal() and (most.isdecimal() if dash else True):
        low, high = int(least), int(most or least)
        if low <= high and high >= 1:
            return low, high
    raise InvalidRequest(
        f"Replicas are a number from 1 on, or two with a dash between them: 2, 0-8; not {text!r}.", param="replicas"
    )


def of_answers(answers: Answers) -> dict[str, Any]:
    """`args` of `sightline.cluster:app`."""
    name = answers.name or answers.model.rstrip("/").rpartition("/")[2] or answers.model
    model: dict[str, Any] = {"name": name, "engine": answers.engine, "source": answers.model}
    actor: dict[str, Any] = {}
    if answers.engine in _GPU_ENGINES:
        passed = ["CUDA_VISIBLE_DEVICES", *([answers.token_variable] if answers.token_variable else [])]
        model["options"] = {"executable": answers.engine, "pass_environment": passed}
        actor["num_gpus"] = 1
    if answers.accelerator:
        actor |= {"num_gpus": 1, "accelerator_type": answers.accelerator}
    scale = _scale(answers.replicas, answers.target_tokens)
    return {
        "settings": {"models": [model]},
        "deployments": {name: {**scale, **({"ray_actor_options": actor} if actor else {})}},
    }


def _scale(replicas: tuple[int, int], target_tokens: int | None) -> dict[str, Any]:
    least, most = replicas
    told = {} if target_tokens is None else {"target_outstanding_tokens": target_tokens}
    if least < most:
        return {"autoscaling_config": {"min_replicas": least, "max_replicas": most, **told}}
    if told:
        raise InvalidRequest(
            f"A target of {target_tokens} tokens says when replicas come and go, and there are always {most}: name two "
            f"numbers, {most}-{most + 1}.",
            param="replicas",
        )
    return {"num_replicas": most}


def of_file(
    values: Mapping[str, Any],
    directory: Path,
    replicas: tuple[int, int],
    accelerator: str | None,
    *,
    target_tokens: int | None = None,
) -> Any:
    """`args` for what a sightline.yaml in `directory` holds; every model gets the same. `target_tokens`: that one
    replica may have to do before another is started; None: our default. Raises `InvalidRequest`."""
    settings = {key: value for key, value in values.items() if key not in ("host", "port")}
    scale = _scale(replicas, target_tokens)
    actor = {"ray_actor_options": {"num_gpus": 1, "accelerator_type": accelerator}} if accelerator else {}
    models = [_anchored(model, directory) for model in settings.get("models", [{"name": "peek"}])]
    return {
        "settings": {**settings, "models": models},
        "deployments": {model["name"]: {**scale, **actor} for model in models},
    }


def _anchored(model: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """With a source that is a file there by its whole path: replicas run elsewhere."""
    source = model.get("source")
    if isinstance(source, str) and (directory / source).exists():
        return {**model, "source": str((directory / source).resolve())}
    return dict(model)


def to_serve_config(args: Mapping[str, Any], *, host: str, port: int) -> dict[str, Any]:
    """Raises `InvalidRequest` for args that could not be deployed."""
    to_settings(_without_variables(of_app(args).settings))
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "applications": [
            {"name": NAME, "route_prefix": "/", "import_path": IMPORT_PATH, "runtime_env": {}, "args": dict(args)}
        ],
    }


def to_anyscale_service(args: Mapping[str, Any], *, image: str) -> dict[str, Any]:
    """Raises as `to_serve_config`. `image`: with Sightline and its engines in it."""
    (application,) = to_serve_config(args, host="0.0.0.0", port=8000)["applications"]
    return {"name": NAME, "image_uri": image, "query_auth_token_enabled": True, "applications": [application]}


def _without_variables(value: Any) -> Any:
    """`${NAME}` is for the machines of the cluster to fill in: here it only has to be text."""
    if isinstance(value, Mapping):
        return {key: _without_variables(item) for key, item in value.items() if "${" not in str(item) or _holds(item)}
    if isinstance(value, list):
        return [_without_variables(item) for item in value]
    return value


def _holds(item: Any) -> bool:
    return isinstance(item, Mapping | list)
