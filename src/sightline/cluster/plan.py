"""What is to run on the cluster: the settings of `sightline.yaml`, and Ray's options for each model's deployment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml

from sightline.access.gate import keys_path
from sightline.cluster.llm_config import is_rays, of_rays, to_deployment, to_model
from sightline.config import PEEK, Settings
from sightline.configfile import to_settings
from sightline.errors import InvalidRequest

__all__ = [
    "Plan",
    "ingress_settings",
    "is_ours_to_route",
    "model_options",
    "of_app",
    "of_llm_configs",
    "replicas",
    "shares_limits",
    "to_settings",
]

INGRESS_ONGOING = 4096
"""Requests in one replica of the ingress. Its own admission is what refuses."""
_INGRESS_VARIABLES = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""On a thread of its own, what the application sends would go into a queue without a bound, and it would never learn
that a client has stopped reading. Nothing of ours holds up the loop that it now shares with Ray."""
DEPLOYMENT_OPTIONS = frozenset(
    {
        "num_replicas", "ray_actor_options", "placement_group_bundles", "placement_group_strategy",
        "max_replicas_per_node", "max_ongoing_requests", "max_queued_requests", "autoscaling_config",
        "graceful_shutdown_wait_loop_s", "graceful_shutdown_timeout_s", "health_check_period_s",
        "health_check_timeout_s", "logging_config", "request_router_config", "max_constructor_retry_count",
        "rolling_update_percentage", "max_surge_percent",
    }
)  # fmt: skip
"""Of `ray.serve.deployment`, those that are the operator's to choose."""
_SINGLE_SERVER = {
    "tls": "Ray's proxies speak plain HTTP: put TLS in front of them",
    "ui": "start it beside the cluster: sightline ui --url URL",
    "admin": "each replica of the ingress would need an address of its own",
    "workers": "say under `ingress` how many replicas answer HTTP: num_replicas",
}
_ALONE: Mapping[str, tuple[Any, ...]] = {"ui": (None, False), "workers": (None, 1)}
"""Values of those that say nothing."""
_POLICY = "sightline.cluster.scaling:ByOutstandingTokens"
_TARGET = "target_outstanding_tokens"
"""Of `autoscaling_config`, the only field that is ours: what one replica may have to do, in tokens."""
_OTHER_POLICIES = frozenset({"target_ongoing_requests", "policy"})
_AUTO_MOST = 100
"""Replicas with `num_replicas: auto`: Ray's own default."""
_ROUTER = "sightline.cluster.router:PictureRouter"
_SPARE = 8
"""Calls beside answers that a replica takes at once: counting is short, and must not wait for an answer to end."""


@dataclass(frozen=True, slots=True)
class Plan:
    settings: dict[str, Any]
    """As the file has them: each machine fills in `${NAME}` itself, so that Ray keeps no secrets."""
    deployments: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By model: Ray's options, as `serve.deployment` takes them."""
    ingress: dict[str, Any] = field(default_factory=dict)
    rays: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By model, of those that Ray's own server runs: fields of its `LLMConfig`."""


class _AppArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    settings: dict[str, Any] = {}
    deployments: dict[str, dict[str, Any]] = {}
    ingress: dict[str, Any] = {}


class _LlmArgs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    llm_configs: list[dict[str, Any] | str]
    settings: dict[str, Any] = {}
    ingress_deployment_config: dict[str, Any] = {}


def of_app(args: Mapping[str, Any]) -> Plan:
    """`args` of `sightline.cluster:app`: `settings` as in sightline.yaml, `deployments` with Ray's options by model,
    and Ray's options for the `ingress`; with none, the embedded model. Raises `InvalidRequest`."""
    given = _read(args, _AppArgs)
    return _checked(Plan(given.settings or {"models": [{"name": PEEK}]}, given.deployments, given.ingress))


def of_llm_configs(args: Mapping[str, Any]) -> Plan:
    """`args` of `sightline.cluster:build_openai_app`: those of `ray.serve.llm:build_openai_app`, and `settings` for
    what Ray has no field for. Raises `InvalidRequest`."""
    given = _read(args, _LlmArgs)
    if not given.llm_configs:
        raise InvalidRequest("llm_configs is empty: it takes one configuration for each model.", param="llm_configs")
    if "models" in given.settings:
        raise InvalidRequest(
            "The models are named by llm_configs, and settings.models names others. Use sightline.cluster:app for "
            "models as in sightline.yaml.",
            param="settings",
        )
    models, deployments, rays = [], {}, {}
    for index, named in enumerate(given.llm_configs):
        at = f"llm_configs[{index}]"
        config = _load(named, at) if isinstance(named, str) else named
        if is_rays(config):
            model, options, told = of_rays(config, at)
            rays[model["name"]] = told
        else:
            model, options = to_model(config, at), to_deployment(config, at)
        if model["name"] in deployments:
            raise InvalidRequest(f"{at}: {model['name']!r} is another model's id already.", param="llm_configs")
        models.append(model)
        deployments[model["name"]] = options
    # Under which names the cluster is reached is for whoever opens Ray's port, as with Ray's own application.
    settings = {"allowed_hosts": ["*"], **given.settings, "models": models}
    return _checked(Plan(settings, deployments, given.ingress_deployment_config, rays))


def _read(args: Mapping[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(dict(args), kind)
    except msgspec.ValidationError as error:
        known = ", ".join(kind.__struct_fields__)
        raise InvalidRequest(f"args: {error}. Known: {known}.", param="args") from None


def _load(file: str, at: str) -> dict[str, Any]:
    """A configuration that stands in a file of its own, as Ray allows."""
    try:
        found = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidRequest(f"{at}: {file} cannot be read: {type(error).__name__}.", param="llm_configs") from None
    if not isinstance(found, dict):
        raise InvalidRequest(f"{at}: {file} must hold a configuration.", param="llm_configs")
    return found


def _checked(plan: Plan) -> Plan:
    for name, why in _SINGLE_SERVER.items():
        if not any(plan.settings.get(name) is value for value in _ALONE.get(name, (None,))):
            raise InvalidRequest(f"settings.{name} is for a server of its own, not for a cluster: {why}.", param=name)
    named = {model["name"] for model in plan.settings.get("models", [{"name": PEEK}])}
    for name in plan.deployments.keys() - named:
        raise InvalidRequest(
            f"deployments.{name}: there is no such model. Models: {', '.join(sorted(named))}.", param="deployments"
        )
    for place, options in (*((f"deployments.{n}", o) for n, o in plan.deployments.items()), ("ingress", plan.ingress)):
        for option in options.keys() - DEPLOYMENT_OPTIONS:
            raise InvalidRequest(
                f"{place}.{option}: Ray's deployments have no such option that can be chosen here. Known: "
                f"{', '.join(sorted(DEPLOYMENT_OPTIONS))}.",
                param="deployments",
            )
        replicas(place, options)
    return plan


# --- what Ray and the ingress make of it -----------------------------------------------------------------------------


def model_options(plan: Plan, settings: Settings, name: str) -> dict[str, Any]:
    """Options of a model's deployment, our defaults filled in."""
    model = next(each for each in settings.models if each.name == name)
    given = dict(plan.deployments.get(name, {}))
    scaling = given.get("autoscaling_config")
    if (given.get("num_replicas") == "auto" or scaling) and not _OTHER_POLICIES & (scaling or {}).keys():
        given["autoscaling_config"] = _by_tokens(scaling or {})
    return {
        "request_router_config": {
            "request_router_class": _ROUTER,
            "request_router_kwargs": {"slots": model.max_concurrent},
        },
        "max_ongoing_requests": model.max_concurrent + _SPARE,
        "health_check_period_s": 2.0,
        "health_check_timeout_s": 10.0,
        "graceful_shutdown_wait_loop_s": 0.5,
        "graceful_shutdown_timeout_s": max(1.0, settings.drain_s),
        **given,
    }


def is_ours_to_route(plan: Plan, name: str) -> bool:
    """Whether our router chooses the model's replicas, and not one that the operator names."""
    return "request_router_config" not in plan.deployments.get(name, {})


def shares_limits(plan: Plan, settings: Settings) -> bool:
    """Whether there are keys, and several ingresses at which they may be used."""
    _, most = replicas("ingress", plan.ingress)
    return most > 1 and (bool(settings.access.keys) or keys_path(settings) is not None)


def _by_tokens(scaling: Mapping[str, Any]) -> dict[str, Any]:
    """With our policy, which has its target in its own arguments: Ray's configuration has no field for it."""
    kept = {option: value for option, value in scaling.items() if option != _TARGET}
    told = {"tokens_per_replica": scaling[_TARGET]} if _TARGET in scaling else {}
    return {**kept, "policy": {"policy_function": _POLICY, "policy_kwargs": told}}


def ingress_options(plan: Plan, settings: Settings) -> dict[str, Any]:
    given = plan.ingress.get("ray_actor_options", {})
    environment = given.get("runtime_env", {})
    variables = {**_INGRESS_VARIABLES, **environment.get("env_vars", {})}
    # Who answers HTTP is replaced only when the new one does; where machines have room for so many and no more, the new
    # one would wait for the old one's place for ever, and they are replaced one after the other.
    surge = {} if "max_replicas_per_node" in plan.ingress else {"max_surge_percent": 100}
    return {
        "max_ongoing_requests": INGRESS_ONGOING,
        **surge,
        "graceful_shutdown_timeout_s": max(1.0, settings.drain_s),
        "health_check_period_s": 2.0,
        **plan.ingress,
        "ray_actor_options": {"num_cpus": 0.5, **given, "runtime_env": {**environment, "env_vars": variables}},
    }


def ingress_settings(plan: Plan, settings: Settings) -> Settings:
    """Of a replica of the ingress: it admits as many requests as all replicas of a model run, and asks a model that may
    have no replica only when somebody wants it."""

    def model(config: Any) -> Any:
        least, most = replicas(f"deployments.{config.name}", plan.deployments.get(config.name, {}))
        return msgspec.structs.replace(
            config,
            max_concurrent=config.max_concurrent * max(1, most),
            max_queue=config.max_queue * max(1, most),
            load="start" if least else "demand",
        )

    return msgspec.structs.replace(settings, models=tuple(model(each) for each in settings.models))


def replicas(place: str, options: Mapping[str, Any]) -> tuple[int, int]:
    """How many a deployment of these options has at least and at most. `place`: where they stand. Raises
    `InvalidRequest` for what Ray could not run."""
    count, scaling = options.get("num_replicas"), options.get("autoscaling_config") or {}
    if not isinstance(scaling, Mapping):
        raise InvalidRequest(
            f"{place}.autoscaling_config holds Ray's options by name, not {scaling!r}.", param="deployments"
        )
    if count == "auto":
        scaling = {"max_replicas": _AUTO_MOST, **scaling}
    elif count is not None and scaling:
        raise InvalidRequest(
            f"{place}: num_replicas fixes how many there are, and autoscaling_config lets that change; give one.",
            param="deployments",
        )
    least, most = (scaling.get(end, 1) for end in ("min_replicas", "max_replicas")) if scaling else (count, count)
    least, most = (1 if end is None else end for end in (least, most))
    if not all(type(end) is int for end in (least, most)) or not 0 <= least <= most or most < 1:
        raise InvalidRequest(f"{place}: it cannot have from {least!r} to {most!r} replicas.", param="deployments")
    target = scaling.get(_TARGET)
    if target is not None and (type(target) is not int or target < 1 or _OTHER_POLICIES & scaling.keys()):
        raise InvalidRequest(
            f"{place}.autoscaling_config.{_TARGET} is a number of tokens from 1 on, and the only thing replicas are "
            "counted by: neither target_ongoing_requests nor a policy may stand beside it.",
            param="deployments",
        )
    return least, most
