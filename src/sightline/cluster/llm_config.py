"""Ray's `LLMConfig`, as its file has it, in our words: a model of sightline.yaml, and options of its deployment.

Its fields are those of `ray.serve.llm.LLMConfig` (Ray 2.60, docs.ray.io/en/latest/serve/llm), and one of ours:
`engine`, the engine's name here, which is `vllm` where it is left out. What has no meaning here is refused, not
dropped. With `RAYS_ENGINE`, Ray's own server runs the model (`ray_llm.py`), and checks its fields itself; beside them
`options` may say what our engine `remote` has to know of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from sightline.errors import InvalidRequest

RAYS_ENGINE = "ray.serve.llm"
_VLLM = "vllm"
_SHARED = frozenset({"model_loading_config", "deployment_config"})
"""Fields that the ingress has to know too, whoever runs the model."""
_MOST_PLACED = ("PACK", "STRICT_PACK")


class _Loading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model_id: str
    model_source: str | None = None
    tokenizer_source: str | None = None


class _Placement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    bundles: list[dict[str, float]] | None = None
    bundle_per_worker: dict[str, float] | None = None
    strategy: str = "PACK"


class _Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    model_loading_config: _Loading
    engine: str | None = None
    llm_engine: str = "vLLM"
    engine_kwargs: dict[str, Any] = {}
    accelerator_type: str | None = None
    deployment_config: dict[str, Any] = {}
    runtime_env: dict[str, Any] | None = None
    placement_group_config: _Placement | None = None
    log_engine_metrics: bool = True


def to_model(config: Mapping[str, Any], at: str) -> dict[str, Any]:
    """The model, as sightline.yaml has it. `at`: where the configuration stands. Raises `InvalidRequest`."""
    given = _read(config, at)
    loading = given.model_loading_config
    model: dict[str, Any] = {"name": loading.model_id, "engine": _engine(given, at)}
    source = loading.model_source or loading.model_id
    kwargs = dict(given.engine_kwargs)
    if limit := kwargs.pop("limit_mm_per_prompt", None):
        model["limit_mm_per_prompt"] = {kind: most for kind, most in limit.items() if kind == "image"}
    if "max_num_seqs" in kwargs:
        model["max_concurrent"] = kwargs["max_num_seqs"]
    if model["engine"] == _VLLM:
        if limit:
            kwargs["limit_mm_per_prompt"] = limit
        if loading.tokenizer_source:
            kwargs["tokenizer"] = loading.tokenizer_source
        own = {"executable": "vllm", "pass_environment": ["CUDA_VISIBLE_DEVICES"]}
        return {**model, "source": source, "options": {**own, "engine_kwargs": kwargs}}
    if loading.tokenizer_source:
        raise _wrong(at, "model_loading_config.tokenizer_source", "only vLLM takes a tokenizer from elsewhere")
    kwargs.pop("max_num_seqs", None)
    if (length := kwargs.pop("max_model_len", None)) is not None:
        kwargs["context_length"] = length
    return {**model, "source": source, "options": kwargs}


def to_deployment(config: Mapping[str, Any], at: str) -> dict[str, Any]:
    """Options of its deployment, as `ray.serve.deployment` takes them. Raises `InvalidRequest`.

    All accelerators of a replica are on one machine and belong to its one process, from which vLLM starts a worker for
    each: so the bundles of a placement group are one bundle here.
    """
    given = _read(config, at)
    options = dict(given.deployment_config)
    options.pop("name", None)  # the deployment's name is ours to give
    actor = dict(options.pop("ray_actor_options", {}))
    if given.runtime_env:
        actor["runtime_env"] = {**given.runtime_env, **actor.get("runtime_env", {})}
    workers = _workers(given)
    if given.placement_group_config is not None:
        bundle = _one_bundle(given.placement_group_config, workers, at)
        options["placement_group_bundles"] = [_with_accelerator(bundle, given.accelerator_type)]
        options["placement_group_strategy"] = "STRICT_PACK"
        actor.update(num_cpus=bundle.get("CPU", 0), num_gpus=bundle.get("GPU", 0))
        others = {kind: amount for kind, amount in bundle.items() if kind not in ("CPU", "GPU")}
        if others:
            actor["resources"] = {**actor.get("resources", {}), **others}
    elif (given.engine or _VLLM) == _VLLM or given.accelerator_type:
        actor.setdefault("num_gpus", workers)
    if given.accelerator_type:
        actor["accelerator_type"] = given.accelerator_type
    return {**options, "ray_actor_options": actor} if actor else options


def is_rays(config: Mapping[str, Any]) -> bool:
    """Whether Ray's own server is to run it."""
    return config.get("engine") == RAYS_ENGINE


def of_rays(config: Mapping[str, Any], at: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Of one that Ray's own server is to run: the model, as far as the ingress has to know it; options of its
    deployment, but for those that Ray makes of it; and what Ray is told. Raises `InvalidRequest`."""
    told = {field: value for field, value in config.items() if field not in ("engine", "options")}
    shared = {field: value for field, value in told.items() if field in _SHARED}
    model = {**to_model({**shared, "engine_kwargs": {}}, at), "options": dict(config.get("options", {}))}
    kwargs = told.get("engine_kwargs") or {}
    if not isinstance(kwargs, Mapping):
        raise _wrong(at, "engine_kwargs", "holds options by name")
    limit = kwargs.get("limit_mm_per_prompt") or {}
    model |= {"limit_mm_per_prompt": {"image": limit["image"]}} if "image" in limit else {}
    model |= {"max_concurrent": kwargs["max_num_seqs"]} if "max_num_seqs" in kwargs else {}
    options = dict(_read(shared, at).deployment_config)
    options.pop("name", None)
    return model, options, told


def _read(config: Mapping[str, Any], at: str) -> _Config:
    try:
        return msgspec.convert(dict(config), _Config)
    except msgspec.ValidationError as error:
        known = ", ".join(_Config.__struct_fields__)
        raise InvalidRequest(f"{at}: {error}. Known here: {known}.", param="llm_configs") from None


def _engine(given: _Config, at: str) -> str:
    if given.engine is not None:
        return given.engine
    if given.llm_engine.lower() != _VLLM:
        raise _wrong(at, "llm_engine", f"{given.llm_engine} is no engine here; name one of ours with `engine`")
    return _VLLM


def _workers(given: _Config) -> int:
    """Accelerators that a replica computes on."""
    sizes = (given.engine_kwargs.get(key, 1) for key in ("tensor_parallel_size", "pipeline_parallel_size"))
    return math.prod(int(size) for size in sizes)


def _one_bundle(placement: _Placement, workers: int, at: str) -> dict[str, float]:
    if placement.strategy not in _MOST_PLACED:
        raise _wrong(
            at,
            "placement_group_config.strategy",
            f"{placement.strategy} spreads a replica over machines, and a replica here is one process on one; use "
            "PACK or STRICT_PACK",
        )
    if (placement.bundles is None) == (placement.bundle_per_worker is None):
        raise _wrong(at, "placement_group_config", "takes either bundles or bundle_per_worker")
    bundles = placement.bundles if placement.bundles is not None else [placement.bundle_per_worker or {}] * workers
    kinds = {kind for bundle in bundles for kind in bundle}
    return {kind: sum(bundle.get(kind, 0) for bundle in bundles) for kind in sorted(kinds)}


def _with_accelerator(bundle: dict[str, float], accelerator: str | None) -> dict[str, float]:
    """Ray asks for a kind of accelerator by a trace of a resource that machines with it have."""
    return bundle if accelerator is None else {**bundle, f"accelerator_type:{accelerator}": 0.001}


def _wrong(at: str, field: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"{at}.{field}: {why}.", param="llm_configs")
