"""What Ray Serve is to run: an ingress, and a deployment for each model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve  # type: ignore[import-not-found, unused-ignore]

from sightline.cluster import plan as plans
from sightline.cluster.ingress import Ingress
from sightline.cluster.meter import MeterReplica
from sightline.cluster.ray_llm import RayLlmReplica, placement
from sightline.cluster.replica import EngineReplica
from sightline.config import Settings


def app(args: Mapping[str, Any]) -> Any:
    """The application of models as in sightline.yaml; `args` as `plan.of_app` says. Raises `InvalidRequest`."""
    return _to_application(plans.of_app(args))


def build_openai_app(args: Mapping[str, Any]) -> Any:
    """The application of models as `ray.serve.llm:build_openai_app` is told of them; `args` as `plan.of_llm_configs`
    says. Raises `InvalidRequest`."""
    return _to_application(plans.of_llm_configs(args))


def _to_application(plan: plans.Plan) -> Any:
    settings = plans.to_settings(plan.settings)
    models = {model.name: _to_replicas(plan, settings, model.name) for model in settings.models}
    ingress = serve.deployment(serve.ingress()(Ingress), name="ingress", **plans.ingress_options(plan, settings))
    return ingress.bind(plan, models, _to_meter(plan, settings))


def _to_replicas(plan: plans.Plan, settings: Settings, name: str) -> Any:
    """Of a model."""
    options = {"name": f"model:{name}", **plans.model_options(plan, settings, name)}
    if (told := plan.rays.get(name)) is None:
        return serve.deployment(EngineReplica, **options).bind(plan.settings, name)
    return serve.deployment(RayLlmReplica, **{**options, **placement(told)}).bind(plan.settings, name, told)


def _to_meter(plan: plans.Plan, settings: Settings) -> Any:
    """Of what keys may ask for, where several ingresses have to agree on it; else None."""
    if not plans.shares_limits(plan, settings):
        return None
    # Told of nothing but where keys are kept, it outlives new configurations of everything else.
    places = {name: plan.settings[name] for name in ("access", "data_dir") if name in plan.settings}
    options = {
        "ray_actor_options": {"num_cpus": 0},
        "max_ongoing_requests": plans.INGRESS_ONGOING,
        "health_check_period_s": 2.0,
    }
    return serve.deployment(MeterReplica, name="limits", **options).bind(places)
