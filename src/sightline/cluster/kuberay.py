"""A Serve config as a `RayService` of KubeRay, for Kubernetes. Pure.

Format: `ray.io/v1` of KubeRay 1.7 (https://ray-project.github.io/kuberay/reference/api/); a test checks what is
rendered against its schema, as Kubernetes would. Nothing of it has been run on Kubernetes yet.

The cluster has a head that serves nothing, and a group of pods for each deployment, each pod just large enough for one
replica: then Ray's autoscaler adds a pod for each replica that Serve wants, and no engine takes another's processors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import yaml

from sightline.cluster.plan import of_app, replicas
from sightline.cluster.serve_config import to_serve_config
from sightline.config import PEEK
from sightline.errors import InvalidRequest

INGRESS = "ingress"
"""Among the deployments, the one that answers HTTP."""
_EVERYWHERE = "0.0.0.0"
_PORT = 8000
_INGRESS_CPUS = 2
"""Of a pod that answers HTTP, at least: pictures are decoded in processes of their own."""
_LONGEST_NAME = 47
"""Of a RayService: KubeRay makes longer names of it, and Kubernetes allows 63 characters."""
_LONGEST_GROUP = 30
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_OVERLAP_S = 60
"""For how long an old cluster stays after a new one has taken over, beside the answers under way."""
_BESIDE = 1.5
"""Memory of a pod, for what its replica asks for: the rest is for Ray's processes and its object store."""
_SPREAD = ("SPREAD", "STRICT_SPREAD")


class Kubernetes(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster of Kubernetes has to be told beside the Serve config."""

    image: str
    """With Sightline, its engines and Ray, whose `ray` is on the path; started without root rights."""
    ray_version: str
    """Of the Ray in the image: 2.52 or later, the first with tokens."""
    name: str = "sightline"
    namespace: str | None = None
    secret: str | None = None
    """A Secret whose entries every pod has as variables: `${NAME}` in settings."""
    cpus: int = 4
    """Of a pod with a model, at least: the engine has more to do than Ray's replica beside it."""
    memory: str = "16Gi"
    """Of a pod with a model, where `ray_actor_options.memory` does not say."""
    gpu: str = "nvidia.com/gpu"
    """What this Kubernetes calls a GPU."""
    node_selectors: Mapping[str, Mapping[str, str]] = {}
    """By Ray's name of an accelerator (`A10G`): the labels of nodes that have it."""
    redis_address: str | None = None
    """Where the head keeps what it knows, so that a cluster outlives it: `redis:6379`. None: in its memory."""
    redis_secret: str | None = None
    """A Secret that holds Redis' password as `password`."""
    drain_s: float = 30.0
    """As in settings: how long answers under way may take to end."""


class _Readable(yaml.SafeDumper):
    """Text of several lines stands as it is, for the Serve config inside is for people, too; nothing is an alias."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def to_yaml(manifest: Mapping[str, Any]) -> str:
    return str(yaml.dump(dict(manifest), Dumper=_Readable, sort_keys=False, allow_unicode=True, width=120))


def of_args(args: Mapping[str, Any], options: Kubernetes) -> dict[str, Any]:
    """The manifest of `args` of `sightline.cluster:app`. Raises as `to_serve_config` and `to_ray_service`."""
    plan = of_app(args)
    models = [model["name"] for model in plan.settings.get("models", [{"name": PEEK}])]
    deployments = {INGRESS: plan.ingress, **{name: plan.deployments.get(name, {}) for name in models}}
    drain_s = plan.settings.get("drain_s", options.drain_s)
    options = msgspec.structs.replace(options, drain_s=float(drain_s))
    return to_ray_service(to_serve_config(args, host=_EVERYWHERE, port=_PORT), deployments, options)


def to_ray_service(
    serve_config: Mapping[str, Any], deployments: Mapping[str, Mapping[str, Any]], options: Kubernetes
) -> dict[str, Any]:
    """The manifest.

    `serve_config`: as `serve deploy` takes it. It is given to KubeRay as it is, but for the address: pods listen on all
    of their own, on port 8000, which the Service `NAME-serve-svc` and KubeRay's probes expect.
    `deployments`: Ray's options of every deployment, by name; `ingress` is the one that answers HTTP. Empty options are
    Ray's defaults, one replica on one processor.

    Raises `InvalidRequest` for a name that Kubernetes refuses, and for options that no pod could be made for.
    """
    if len(options.name) > _LONGEST_NAME or not _NAME.fullmatch(options.name):
        raise InvalidRequest(
            f"Kubernetes takes no name like {options.name!r}: at most {_LONGEST_NAME} lower-case letters, digits and "
            "dashes, the first a letter.",
            param="name",
        )
    if _release(options.ray_version) < (2, 52):
        raise InvalidRequest(
            f"Ray {options.ray_version} lets in whoever reaches it: an image with Ray 2.52 or later is needed.",
            param="ray_version",
        )
    groups = _groups(deployments, options)
    cluster: dict[str, Any] = {
        "rayVersion": options.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": any(group["minReplicas"] < group["maxReplicas"] for group in groups),
        **_outliving_its_head(options),
        "headGroupSpec": _head(options),
        "workerGroupSpecs": groups,
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {
            "name": options.name,
            **({"namespace": options.namespace} if options.namespace else {}),
            "labels": {"app.kubernetes.io/name": "sightline", "app.kubernetes.io/instance": options.name},
        },
        "spec": {
            "serveConfigV2": to_yaml(_listening(serve_config)),
            "excludeHeadPodFromServeSvc": True,
            "upgradeStrategy": {"type": "NewCluster"},
            "rayClusterDeletionDelaySeconds": math.ceil(options.drain_s) + _OVERLAP_S,
            "rayClusterConfig": cluster,
        },
    }


def _release(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)\.\d+", version)
    if found is None:
        raise InvalidRequest(f"{version!r} is no release of Ray, like 2.60.0.", param="ray_version")
    return tuple(map(int, found.groups()))


def _listening(serve_config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **serve_config,
        "http_options": {**serve_config.get("http_options", {}), "host": _EVERYWHERE, "port": _PORT},
    }


def _outliving_its_head(options: Kubernetes) -> dict[str, Any]:
    if options.redis_address is None:
        return {}
    redis: dict[str, Any] = {"redisAddress": options.redis_address}
    if options.redis_secret is not None:
        redis["redisPassword"] = {"valueFrom": {"secretKeyRef": {"name": options.redis_secret, "key": "password"}}}
    return {"gcsFaultToleranceOptions": redis}


# --- pods ------------------------------------------------------------------------------------------------------------


class _Needs(msgspec.Struct, frozen=True):
    """What one pod is for."""

    cpus: int
    gpus: int
    memory: str | None
    accelerator: str | None
    pods: int
    """For one replica."""


def _head(options: Kubernetes) -> dict[str, Any]:
    ports = [
        {"name": "gcs-server", "containerPort": 6379},
        {"name": "dashboard", "containerPort": 8265},
        {"name": "client", "containerPort": 10001},
    ]
    container = _container("ray-head", options, {"cpu": "2", "memory": "4Gi"}) | {"ports": ports}
    # No processors for Ray: replicas go to the groups, and the head keeps its memory to itself.
    return {
        "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
        "template": {"spec": {"securityContext": _POD_RIGHTS, "containers": [container]}},
    }


def _groups(deployments: Mapping[str, Mapping[str, Any]], options: Kubernetes) -> list[dict[str, Any]]:
    if not deployments:
        raise InvalidRequest("There is no deployment to run.", param="deployments")
    names = _group_names(deployments)
    return [_group(names[name], name, given, options) for name, given in deployments.items()]


def _group(group: str, name: str, given: Mapping[str, Any], options: Kubernetes) -> dict[str, Any]:
    needs, (least, most) = _needs(name, given), replicas(name, given)
    limits = {
        "cpu": str(max(needs.cpus, _INGRESS_CPUS if name == INGRESS else options.cpus)),
        "memory": needs.memory or ("4Gi" if name == INGRESS else options.memory),
        **({options.gpu: str(needs.gpus)} if needs.gpus else {}),
    }
    # What Ray is told that a pod has is what one replica needs: a second would not find room.
    told = {"num-cpus": str(needs.cpus), "num-gpus": str(needs.gpus)}
    if needs.accelerator:
        # Ray finds that out itself once a pod runs; its autoscaler has to know before there is one.
        told["resources"] = f'"{{\\"accelerator_type:{needs.accelerator}\\": 1}}"'
    container = _container("ray-worker", options, limits) | {"ports": [{"name": "serve", "containerPort": _PORT}]}
    pod = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": math.ceil(options.drain_s) + 20,
        "securityContext": _POD_RIGHTS,
        **_where(needs, options),
        "containers": [container],
    }
    return {
        "groupName": group,
        "replicas": least * needs.pods,
        "minReplicas": least * needs.pods,
        "maxReplicas": most * needs.pods,
        "rayStartParams": told,
        "template": {"spec": pod},
    }


def _where(needs: _Needs, options: Kubernetes) -> dict[str, Any]:
    if not needs.gpus:
        return {}
    labels = options.node_selectors.get(needs.accelerator or "")
    taint = {"key": options.gpu, "operator": "Exists", "effect": "NoSchedule"}
    return {**({"nodeSelector": dict(labels)} if labels else {}), "tolerations": [taint]}


_POD_RIGHTS = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def _container(name: str, options: Kubernetes, limits: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "image": options.image,
        "env": [{"name": "RAY_SERVE_ENABLE_HA_PROXY", "value": "1"}],
        **({"envFrom": [{"secretRef": {"name": options.secret}}]} if options.secret else {}),
        "resources": {"requests": dict(limits), "limits": dict(limits)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


# --- Ray's options ---------------------------------------------------------------------------------------------------


def _needs(name: str, given: Mapping[str, Any]) -> _Needs:
    """A replica is an actor, or a placement group: all of its bundles in one pod, unless they are to be spread."""
    actor = given.get("ray_actor_options") or {}
    bundles = given.get("placement_group_bundles")
    if not bundles:
        bundles = [{"CPU": actor.get("num_cpus", 1), "GPU": actor.get("num_gpus", 0)}]
    spread = given.get("placement_group_strategy") in _SPREAD
    together = max if spread else sum
    memory = actor.get("memory")
    return _Needs(
        cpus=max(1, math.ceil(together(_number(name, bundle, "CPU") for bundle in bundles))),
        gpus=math.ceil(together(_number(name, bundle, "GPU") for bundle in bundles)),
        memory=None if memory is None else f"{math.ceil(_BESIDE * float(memory) / 2**20)}Mi",
        accelerator=actor.get("accelerator_type") or _accelerator_of(bundles),
        pods=len(bundles) if spread else 1,
    )


def _number(name: str, bundle: Mapping[str, Any], resource: str) -> float:
    value = bundle.get(resource, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise InvalidRequest(f"{name}: {resource} is a number from 0 on, not {value!r}.", param="deployments")
    return float(value)


def _accelerator_of(bundles: Iterable[Mapping[str, Any]]) -> str | None:
    """A bundle asks for a kind of accelerator as for a resource: `accelerator_type:A10G`."""
    kinds = (key.removeprefix("accelerator_type:") for bundle in bundles for key in bundle if ":" in key)
    return next(kinds, None)


def _group_names(deployments: Iterable[str]) -> dict[str, str]:
    """Kubernetes takes few characters in names; where two models would then be the same, they are numbered."""
    names: dict[str, str] = {}
    for deployment in deployments:
        plain = re.sub(r"[^a-z0-9]+", "-", deployment.lower())[:_LONGEST_GROUP].strip("-") or "model"
        name, number = plain, 2
        while name in names.values():
            name, number = f"{plain}-{number}", number + 1
        names[deployment] = name
    return names
