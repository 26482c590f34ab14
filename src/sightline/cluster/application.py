"""What Ray Serve is to run: an ingress, and a deployment for each model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve  # type: ignore[import-not-found, unused-ignore]

from sightline.cluster import plan as plans
from sightline.cluster.ingress import Ingress
from sightline.cluster.replica import EngineReplica


def app(args: Mapping[str, Any]) -> Any:
    """The application of models as in sightline.yaml; `args` as `plan.of_app` says. Raises `InvalidRequest`."""
    return _to_application(plans.of_app(args))


def build_openai_app(args: Mapping[str, Any]) -> Any:
    """The application of models as `ray.serve.llm:build_openai_app` is told of them; `args` as `plan.of_llm_configs`
    says. Raises `InvalidRequest`."""
    return _to_application(plans.of_llm_configs(args))


def _to_application(plan: plans.Plan) -> Any:
    settings = plans.to_settings(plan.settings)
    models = {
        model.name: serve.deployment(
            EngineReplica, name=f"model:{model.name}", **plans.model_options(plan, settings, model.name)
        ).bind(plan.settings, model.name)
        for model in settings.models
    }
    ingress = serve.deployment(serve.ingress()(Ingress), name="ingress", **plans.ingress_options(plan, settings))
    return ingress.bind(plan, models)
