"""What the chart puts into a cluster, as Helm rendered it (tests/deploy/charts.py)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from sightline import __version__
from sightline.access.gate import Gate
from sightline.config import PEEK, AdminEndpoint, ModelConfig
from sightline.configfile import load
from tests.deploy.charts import CASES, CHART, digest, render, rendered, values
from tests.deploy.dockerfile import read

ROOT = Path(__file__).parents[2]
IMAGE = read(ROOT / "deploy/docker/Dockerfile")[-1]
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())
needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not there")


def objects(case: str) -> dict[tuple[str, str], dict[str, Any]]:
    found = [each for each in yaml.safe_load_all(rendered(case).read_text()) if each]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def only(case: str, kind: str) -> dict[str, Any]:
    (found,) = [each for (of, _), each in objects(case).items() if of == kind]
    return found


def pods(case: str) -> list[dict[str, Any]]:
    return [each["spec"]["template"]["spec"] for (kind, _), each in objects(case).items() if kind == "Deployment"]


@pytest.mark.parametrize("case", CASES)
def test_what_is_looked_at_is_the_chart_of_today(case: str) -> None:
    first = rendered(case).read_text().splitlines()[0]
    assert first.endswith(digest(case)), "render it anew: python -m tests.deploy.charts"


@needs_helm
@pytest.mark.parametrize("case", CASES)
def test_helm_makes_the_same_again(case: str) -> None:
    assert render("helm", "--values", values(case)) == rendered(case).read_text().partition("\n")[2]


@pytest.mark.parametrize("case", CASES)
def test_pods_may_do_nothing_but_serve(case: str) -> None:
    for pod in pods(case):
        uid = int(IMAGE.last("USER").value.partition(":")[0])
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == context["fsGroup"] == uid, "as the image has it"
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert writable == {IMAGE.environment["SIGHTLINE_DATA_DIR"], "/tmp"}


@pytest.mark.parametrize("case", CASES)
def test_every_mount_is_a_volume_and_every_reference_an_object(case: str) -> None:
    known = objects(case)
    for pod in pods(case):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
        assert ("ServiceAccount", pod["serviceAccountName"]) in known
        assert ("ConfigMap", volumes["config"]["configMap"]["name"]) in known
    if case == "small":
        claim = pods(case)[0]["volumes"][1]["persistentVolumeClaim"]["claimName"]
        assert ("PersistentVolumeClaim", claim) in known


def configuration(case: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As a pod would read it, with the variables that it would have."""
    for name, value in only(case, "Secret")["stringData"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("REDIS_PASSWORD", "secret")
    monkeypatch.setenv("OPS_KEY", "a-key-of-more-than-sixteen")
    file = directory / "sightline.yaml"
    file.write_text(only(case, "ConfigMap")["data"]["sightline.yaml"])
    return load(file)


@pytest.mark.parametrize("case", CASES)
def test_the_configuration_is_one(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = configuration(case, tmp_path, monkeypatch)
    assert not Gate(settings.access).is_open, "a pod listens for other machines, and would refuse to start"
    (server, *_) = [pod["containers"][0] for pod in pods(case) if pod["containers"][0]["name"] == "server"]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert settings.host == "0.0.0.0"
    assert ports == {"http": settings.port, "metrics": settings.admin.port}
    assert settings.admin == AdminEndpoint(host="0.0.0.0", port=9090)
    assert settings.data_dir == IMAGE.environment["SIGHTLINE_DATA_DIR"]
    assert [model.name for model in settings.models] == ["peek"]


def test_keys_keep_their_limits_and_the_file_has_no_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = only("large", "ConfigMap")["data"]["sightline.yaml"]
    assert not re.search(r"[0-9a-f]{64}", text)
    shop, ops = configuration("large", tmp_path, monkeypatch).access.keys
    assert (shop.name, shop.models, shop.requests_per_minute, shop.admin) == ("shop", ("peek",), 60, False)
    assert (ops.name, ops.env, ops.admin) == ("ops", "OPS_KEY", True)


@pytest.mark.parametrize("case", CASES)
def test_a_pod_has_the_time_to_drain(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = configuration(case, tmp_path, monkeypatch)
    for pod in pods(case):
        sleep = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert pod["terminationGracePeriodSeconds"] >= settings.drain_s + sleep + 10


@pytest.mark.parametrize(("case", "scheme"), [("small", "HTTP"), ("large", "HTTPS")])
def test_probes_ask_what_is_answered_without_a_key(case: str, scheme: str) -> None:
    (server, *_) = [pod["containers"][0] for pod in pods(case) if pod["containers"][0]["name"] == "server"]
    paths = {name: server[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in paths.items()} == {
        "startup": "/health",
        "liveness": "/health",
        "readiness": "/ready",
    }
    assert {probe["scheme"] for probe in paths.values()} == {scheme}
    assert server["args"][:2] == ["serve", "/etc/sightline/sightline.yaml"]


def test_services_find_the_server_and_never_the_worker() -> None:
    known = objects("large")
    server = known["Deployment", "vision-sightline"]["spec"]["template"]["metadata"]["labels"]
    worker = known["Deployment", "vision-sightline-worker"]["spec"]["template"]
    assert worker["spec"]["containers"][0]["args"] == ["worker", "/etc/sightline/sightline.yaml"]
    for name in ("vision-sightline", "vision-sightline-metrics"):
        selector = known["Service", name]["spec"]["selector"]
        assert selector.items() <= server.items()
        assert not selector.items() <= worker["metadata"]["labels"].items()
    monitor = known["ServiceMonitor", "vision-sightline"]["spec"]
    assert (
        monitor["selector"]["matchLabels"].items()
        <= known["Service", "vision-sightline-metrics"]["metadata"]["labels"].items()
    )
    assert (
        not monitor["selector"]["matchLabels"].items()
        <= known["Service", "vision-sightline"]["metadata"]["labels"].items()
    )


def test_metrics_are_for_those_who_are_named() -> None:
    http, metrics = only("large", "NetworkPolicy")["spec"]["ingress"]
    assert metrics["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    assert metrics["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "monitoring"}
    assert http["ports"] == [{"port": "http", "protocol": "TCP"}]
    assert only("large", "NetworkPolicy")["spec"]["egress"][0]["ports"][0]["port"] == 53, "names are looked up"
    _, small = only("small", "NetworkPolicy")["spec"]["ingress"]
    assert small["from"] == [{"podSelector": {}}]


def test_scaling_leaves_the_number_to_the_autoscaler() -> None:
    server = objects("large")["Deployment", "vision-sightline"]["spec"]
    assert "replicas" not in server
    assert server["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert only("large", "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "vision-sightline"
    alone = objects("small")["Deployment", "vision-sightline"]["spec"]
    assert (alone["replicas"], alone["strategy"]) == (1, {"type": "Recreate"})
    assert only("small", "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_values_are_described_and_used() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA)
    for case in CASES:
        jsonschema.validate(yaml.safe_load(values(case).read_text()), SCHEMA)
    assert VALUES.keys() | {"global"} == SCHEMA["properties"].keys()
    templates = "\n".join(path.read_text() for path in (CHART / "templates").iterdir())
    for path in re.findall(r"\.Values\.([A-Za-z.]+)", templates):
        here: Any = VALUES
        for part in path.split("."):
            if here is VALUES["config"]:
                break  # the operator's own
            assert part in here, f".Values.{path} is nowhere in values.yaml"
            here = here[part]
    for name in VALUES:
        assert f".Values.{name}" in templates, f"{name} changes nothing"


@pytest.mark.parametrize(
    "wrong",
    [
        {"replica": 2},
        {"keys": [{"name": "x"}]},
        {"keys": [{"name": "x", "sha256": "abc"}]},
        {"image": {"tag": "latest"}},
    ],
)
def test_the_schema_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA)


@needs_helm
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "No key protects the server"),
        (("--set", "openToAnyone=true", "--set", "replicas=2"), "Several pods cannot share"),
        (("--set", "openToAnyone=true,replicas=2,persistence.enabled=false"), "Set config.jobs"),
        (("--set", "openToAnyone=true,config.port=80"), "config.port is set by the chart"),
        (("--set", "openToAnyone=true,replica=2"), "replica"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: tuple[str, ...], told: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as refused:
        render("helm", *arguments)
    assert told in refused.value.stderr


def test_it_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == __version__
    assert ModelConfig(**VALUES["config"]["models"][0]).source == PEEK
