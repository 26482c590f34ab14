"""What is rendered for KubeRay is what its schema allows, and says what the Serve config and Ray's options say."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sightline.cli import main
from sightline.cluster.kuberay import Kubernetes, to_ray_service, to_yaml
from sightline.errors import InvalidRequest

VALIDATOR = jsonschema.Draft202012Validator(json.loads(Path(__file__).with_name("rayservice.schema.json").read_text()))
SERVE = {
    "proxy_location": "EveryNode",
    "http_options": {"host": "127.0.0.1", "port": 9000, "keep_alive_timeout_s": 60},
    "applications": [
        {"name": "sightline", "route_prefix": "/", "import_path": "sightline.cluster:app", "args": {"settings": {}}}
    ],
}
OPTIONS = Kubernetes(image="registry.example/sightline:1", ray_version="2.60.0")
VLLM = {
    "autoscaling_config": {"min_replicas": 0, "max_replicas": 8},
    "ray_actor_options": {"num_gpus": 1, "accelerator_type": "A10G"},
}


def render(deployments: Mapping[str, Mapping[str, Any]], options: Kubernetes = OPTIONS) -> dict[str, Any]:
    """As Kubernetes reads it: through YAML, and held to the schema."""
    manifest: dict[str, Any] = yaml.safe_load(to_yaml(to_ray_service(SERVE, deployments, options)))
    VALIDATOR.validate(manifest)
    return manifest


def cluster(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["spec"]["rayClusterConfig"]
    return found


def group(manifest: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in cluster(manifest)["workerGroupSpecs"] if each["groupName"] == name)
    return dict(found)


def limits(spec: dict[str, Any]) -> dict[str, str]:
    resources = spec["template"]["spec"]["containers"][0]["resources"]
    assert resources["limits"] == resources["requests"]
    return dict(resources["limits"])


# --- the schema ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "groupname"), "misspelt"),
        (("spec", "rayClusterConfig", "workerGroupSpecs", 0, "minReplicas"), "two"),
        (("spec", "rayClusterConfig", "headGroupSpec", "template", "spec", "containers", 0, "imagePullSecret"), "x"),
        (("spec", "rayClusterConfig", "authOptions", "mode"), "password"),
        (("spec", "serveConfigV2"), {"applications": []}),
        (("spec", "serveConfig"), ""),
    ],
)
def test_the_schema_would_find_a_mistake(path: tuple[str | int, ...], value: object) -> None:
    manifest = copy.deepcopy(render({"ingress": {}, "peek": {}}))
    place: Any = manifest
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(manifest)


def test_the_schema_wants_what_kubernetes_wants() -> None:
    manifest = render({"ingress": {}})
    del cluster(manifest)["headGroupSpec"]["template"]
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(manifest)


number = st.integers(1, 8)
replicas = st.one_of(
    st.just({}),
    st.builds(lambda n: {"num_replicas": n}, number),
    st.builds(lambda n, m: {"autoscaling_config": {"min_replicas": n - 1, "max_replicas": n + m}}, number, number),
)
actors = st.fixed_dictionaries({}, optional={
    "num_cpus": st.integers(0, 32), "num_gpus": st.sampled_from([0, 0.5, 1, 8]),
    "memory": st.integers(2**20, 2**40), "accelerator_type": st.sampled_from(["A10G", "H100"]),
})  # fmt: skip
bundles = st.fixed_dictionaries({}, optional={
    "placement_group_bundles": st.lists(st.builds(lambda g, c: {"GPU": g, "CPU": c}, number, number), min_size=1),
    "placement_group_strategy": st.sampled_from(["PACK", "STRICT_PACK", "SPREAD", "STRICT_SPREAD"]),
})  # fmt: skip
deployments = st.dictionaries(
    st.text(min_size=1, max_size=60),
    st.builds(lambda count, actor, pg: {**count, "ray_actor_options": actor, **pg}, replicas, actors, bundles),
    min_size=1,
    max_size=5,
)


@settings(deadline=None, max_examples=30)
@given(deployments, st.booleans(), st.booleans())
def test_whatever_is_rendered_is_allowed(drawn: dict[str, dict[str, Any]], redis: bool, secret: bool) -> None:
    options = Kubernetes(
        image="i", ray_version="2.60.0", namespace="vision", secret="tokens" if secret else None,
        redis_address="redis:6379" if redis else None, redis_secret="redis" if redis and secret else None,
        node_selectors={"A10G": {"cloud.example/gpu": "a10g"}},
    )  # fmt: skip
    groups = cluster(render(drawn, options))["workerGroupSpecs"]
    names = [each["groupName"] for each in groups]
    assert len(set(names)) == len(drawn)
    assert all(0 < len(name) <= 63 and name.strip("-") == name for name in names)
    assert all(each["minReplicas"] == each["replicas"] <= each["maxReplicas"] for each in groups)


# --- the service -----------------------------------------------------------------------------------------------------


def test_the_serve_config_is_given_on_and_listens_where_kuberay_looks() -> None:
    config = yaml.safe_load(render({"ingress": {}})["spec"]["serveConfigV2"])
    assert config["applications"] == SERVE["applications"]
    assert config["proxy_location"] == "EveryNode"
    assert config["http_options"] == {"host": "0.0.0.0", "port": 8000, "keep_alive_timeout_s": 60}
    assert SERVE["http_options"]["port"] == 9000  # type: ignore[index]


def test_nobody_gets_in_without_a_token_and_nothing_runs_as_root() -> None:
    manifest = render({"ingress": {}, "peek": {}})
    assert cluster(manifest)["authOptions"] == {"mode": "token"}
    pods = [cluster(manifest)["headGroupSpec"], *cluster(manifest)["workerGroupSpecs"]]
    for pod in (each["template"]["spec"] for each in pods):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False


def test_the_head_serves_nothing() -> None:
    manifest = render({"ingress": {}})
    assert cluster(manifest)["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert manifest["spec"]["excludeHeadPodFromServeSvc"] is True


def test_secrets_are_named_and_not_told() -> None:
    options = Kubernetes(
        image="i", ray_version="2.60.0", secret="tokens", redis_address="redis:6379", redis_secret="redis"
    )
    manifest = render({"ingress": {}, "peek": {}}, options)
    for each in [cluster(manifest)["headGroupSpec"], *cluster(manifest)["workerGroupSpecs"]]:
        assert each["template"]["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "tokens"}}]
    assert cluster(manifest)["gcsFaultToleranceOptions"] == {
        "redisAddress": "redis:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}},
    }


def test_answers_under_way_have_their_time() -> None:
    manifest = render({"peek": {}}, Kubernetes(image="i", ray_version="2.60.0", drain_s=120.0))
    assert group(manifest, "peek")["template"]["spec"]["terminationGracePeriodSeconds"] > 120
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] > 120


def test_people_can_read_it() -> None:
    text = to_yaml(to_ray_service(SERVE, {"ingress": {}, "peek": {}}, OPTIONS))
    assert "\n    applications:\n    - name: sightline\n" in text  # the Serve config, line by line
    assert "&id" not in text


# --- pods ------------------------------------------------------------------------------------------------------------


def test_a_model_with_a_gpu_has_pods_on_nodes_with_that_gpu_and_scales_from_zero() -> None:
    options = Kubernetes(image="i", ray_version="2.60.0", node_selectors={"A10G": {"cloud.example/gpu": "a10g"}})
    manifest = render({"ingress": {"num_replicas": 2}, "qwen": VLLM}, options)
    qwen = group(manifest, "qwen")
    assert (qwen["minReplicas"], qwen["maxReplicas"]) == (0, 8)
    assert cluster(manifest)["enableInTreeAutoscaling"] is True
    assert limits(qwen)["nvidia.com/gpu"] == "1"
    assert qwen["template"]["spec"]["nodeSelector"] == {"cloud.example/gpu": "a10g"}
    assert qwen["template"]["spec"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    # Ray's autoscaler reads it as JSON in quotes (autoscaling_config.py), before there is a pod that could tell.
    told = json.loads(json.loads(qwen["rayStartParams"]["resources"]))
    assert told == {"accelerator_type:A10G": 1}
    assert group(manifest, "ingress")["replicas"] == 2
    assert "nvidia.com/gpu" not in limits(group(manifest, "ingress"))


def test_where_nothing_scales_there_is_no_autoscaler() -> None:
    assert cluster(render({"ingress": {}, "peek": {"num_replicas": 3}}))["enableInTreeAutoscaling"] is False


def test_a_second_replica_has_no_room_in_a_pod() -> None:
    # The pod has four processors, for the engine; Ray is told of as many as the replica asks for.
    peek = group(render({"peek": {"ray_actor_options": {"num_cpus": 2}}}), "peek")
    assert limits(peek)["cpu"] == "4"
    assert peek["rayStartParams"] == {"num-cpus": "2", "num-gpus": "0"}


def test_memory_that_a_replica_asks_for_is_there_beside_rays_own() -> None:
    peek = group(render({"peek": {"ray_actor_options": {"memory": 8 * 2**30}}}), "peek")
    assert limits(peek)["memory"] == "12288Mi"


@pytest.mark.parametrize(("strategy", "pods", "gpus"), [(None, 3, "4"), ("PACK", 3, "4"), ("STRICT_SPREAD", 12, "1")])
def test_a_placement_group_is_in_one_pod_unless_it_is_to_be_spread(strategy: str, pods: int, gpus: str) -> None:
    given = {
        "num_replicas": 3,
        "placement_group_bundles": [{"GPU": 1, "CPU": 1, "accelerator_type:H100": 0.001}] * 4,
        **({"placement_group_strategy": strategy} if strategy else {}),
    }
    model = group(render({"big": given}), "big")
    assert model["replicas"] == model["maxReplicas"] == pods
    assert limits(model)["nvidia.com/gpu"] == gpus == model["rayStartParams"]["num-gpus"]
    assert "H100" in model["rayStartParams"]["resources"]


def test_rays_auto_is_rays_auto() -> None:
    model = group(render({"m": {"num_replicas": "auto", "autoscaling_config": {"min_replicas": 2}}}), "m")
    assert (model["minReplicas"], model["maxReplicas"]) == (2, 100)


def test_models_whose_names_are_alike_to_kubernetes_have_groups_of_their_own() -> None:
    groups = cluster(render({"Qwen/Qwen2.5": {}, "qwen-qwen2-5": {}, "模型": {}}))["workerGroupSpecs"]
    assert [each["groupName"] for each in groups] == ["qwen-qwen2-5", "qwen-qwen2-5-2", "model"]


# --- from a file -----------------------------------------------------------------------------------------------------


def test_models_of_a_file_have_their_pods(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "sightline.yaml"
    file.write_text("drain_s: 90\nallowed_hosts: [vision.example]\nmodels: [{name: one}, {name: two, engine: fake}]\n")
    asked = ["cluster", "config", str(file), "--replicas", "1-4", "--kuberay", "registry.example/sightline:1"]
    assert main([*asked, "--secret", "tokens"]) == 0
    manifest = yaml.safe_load(capsys.readouterr().out)
    VALIDATOR.validate(manifest)
    counts = {g["groupName"]: (g["minReplicas"], g["maxReplicas"]) for g in cluster(manifest)["workerGroupSpecs"]}
    assert counts == {"ingress": (1, 1), "one": (1, 4), "two": (1, 4)}
    pod = group(manifest, "two")["template"]["spec"]
    assert pod["containers"][0]["image"] == "registry.example/sightline:1"
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "tokens"}}]
    assert pod["terminationGracePeriodSeconds"] == 110
    (application,) = yaml.safe_load(manifest["spec"]["serveConfigV2"])["applications"]
    assert application["args"]["settings"]["allowed_hosts"] == ["vision.example"]


def test_no_model_without_a_file_is_open_to_a_kubernetes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", "config", "--model", "peek", "--kuberay", "i"]) != 0
    assert "no key protects them" in capsys.readouterr().err


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deployments", "names"),
    [
        ({}, "no deployment"),
        ({"m": {"num_replicas": 0}}, "from 0 to 0"),
        ({"m": {"autoscaling_config": {"min_replicas": 3, "max_replicas": 2}}}, "from 3 to 2"),
        ({"m": {"num_replicas": "many"}}, "'many'"),
        ({"m": {"ray_actor_options": {"num_gpus": -1}}}, "GPU"),
        ({"m": {"placement_group_bundles": [{"CPU": "four"}]}}, "'four'"),
    ],
)
def test_what_no_pod_can_be_made_for_is_refused(deployments: dict[str, Any], names: str) -> None:
    with pytest.raises(InvalidRequest, match=names) as refusal:
        render(deployments)
    assert refusal.value.param == "deployments"


@pytest.mark.parametrize("name", ["", "Sightline", "-a", "a-", "a.b", "1a", "a" * 48])
def test_names_that_kubernetes_refuses_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        render({"m": {}}, Kubernetes(image="i", ray_version="2.60.0", name=name))
    assert refusal.value.param == "name"


@pytest.mark.parametrize(("version", "says"), [("2.51.9", "2.52"), ("latest", "no release")])
def test_a_ray_without_tokens_is_refused(version: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refusal:
        render({"m": {}}, Kubernetes(image="i", ray_version=version))
    assert refusal.value.param == "ray_version"
