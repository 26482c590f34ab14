"""The dashboard and the alerts: every metric and label that they name exists, Grafana and Prometheus can read them."""

from __future__ import annotations

import itertools
import json
import re
import runpy
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sightline import metrics
from sightline.config import ModelConfig, Settings
from tests.api.serving import server_of

DEPLOY = Path(__file__).parents[2] / "deploy"
GRAFANA, PROMETHEUS = DEPLOY / "grafana", DEPLOY / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "sightline.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "sightline.rules.yml").read_text())["groups"][0]["rules"]
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGET_LABELS = {"job", "instance"}
UNITS = {"reqps", "percentunit", "short", "s", "cps", "Bps", "bytes"}
"""Ids of Grafana's units (packages/grafana-data/src/valueFormats/categories.ts)."""

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not there (Debian: prometheus)")
prometheus = pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not there")


def names() -> dict[str, set[str]]:
    """Labels by name, of all that `/metrics` can tell."""
    found: dict[str, set[str]] = {"up": set()}
    for collector in metrics.REGISTRY._collector_to_names:
        labels = set(getattr(collector, "_labelnames", ()))
        for family in getattr(collector, "describe", collector.collect)():
            match family.type:
                case "counter":
                    found[f"{family.name}_total"] = labels
                case "histogram":
                    found |= {f"{family.name}_sum": labels, f"{family.name}_count": labels}
                    found[f"{family.name}_bucket"] = labels | {"le"}
                case _:
                    found[family.name] = labels
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """By where they stand."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], re.sub(r"^label_values\((.*), \w+\)$", r"\1", variable["query"]["query"])


def filled(expression: str) -> str:
    """As Grafana sends it, with all chosen."""
    return re.sub(r"\$(job|instance|model)", ".*", expression.replace("$__rate_interval", "1m"))


EXPRESSIONS = list(expressions())
KNOWN = names()


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_every_metric_and_label_is_there(where: str, expression: str) -> None:
    used = re.findall(r"\b((?:sightline|process|vlm)_\w+|up\b)(?:\{([^}]*)\})?", expression)
    assert used, "it asks for something"
    for name, matchers in used:
        assert name in KNOWN, f"{where}: {name} is no metric of ours"
        for label in re.findall(r"(\w+)\s*[=!]~?", matchers):
            assert label in KNOWN[name] | TARGET_LABELS, f"{where}: {name} has no label {label}"
    all_labels = set.union(*(KNOWN[name] for name, _ in used)) | TARGET_LABELS
    for group in re.findall(r"\bby \(([^)]*)\)", expression):
        assert {label.strip() for label in group.split(",")} <= all_labels, where


def test_legends_name_labels_that_are_left() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            groups = re.findall(r"\b(?:sum|max|count) by \(([^)]*)\)", target["expr"])
            if groups:
                left = {label.strip() for label in groups[0].split(",")} - {"le"}
                assert named == left, f"{panel['title']}: {target['legendFormat']} of {left}"


def test_outcomes_that_are_asked_for_exist() -> None:
    from sightline import errors

    classes = [name for name, cls in vars(errors).items() if isinstance(cls, type)]
    for _, expression in EXPRESSIONS:
        for outcomes in re.findall(r'outcome=~?"([^"]*)"', expression):
            for one in outcomes.split("|"):
                assert one == "bug" or any(re.fullmatch(one, name) for name in classes), one


# --- Grafana ---------------------------------------------------------------------------------------------------------


def test_the_dashboard_is_current() -> None:
    made = runpy.run_path(str(GRAFANA / "dashboard.py"))
    assert (GRAFANA / "sightline.json").read_text() == made["to_json"](), "python deploy/grafana/dashboard.py"


def test_the_dashboard_is_one_that_grafana_reads() -> None:
    assert 36 <= DASHBOARD["schemaVersion"] <= 41, "Grafana 11 and 12 read these as they stand"
    assert DASHBOARD["uid"]
    assert DASHBOARD["title"] == "Sightline"
    assert "id" not in DASHBOARD, "a number of one Grafana's own database"
    for panel in PANELS:
        assert panel["type"] in {"timeseries", "stat"}
        assert panel["title"]
        assert panel["description"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["fieldConfig"]["overrides"] == []
        references = [target["refId"] for target in panel["targets"]]
        assert references
        assert len(set(references)) == len(references)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS))) - {"__rate_interval"}
    assert used == set(variables)


def test_grafanas_own_library_reads_it_and_writes_it_back_unchanged() -> None:
    models = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="pip install grafana-foundation-sdk")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()
    read = models.Dashboard.from_json(json.loads((GRAFANA / "sightline.json").read_text()))
    assert list(lost(DASHBOARD, json.loads(JSONEncoder().encode(read)))) == [], "it only fills in what was left out"


def lost(written: Any, read: Any, where: str = "") -> Iterator[str]:
    """Where the second lacks or changes what the first says."""
    if isinstance(written, dict) and isinstance(read, dict):
        for key, value in written.items():
            yield from lost(value, read.get(key), f"{where}.{key}")
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        for index, (one, other) in enumerate(zip(written, read, strict=True)):
            yield from lost(one, other, f"{where}[{index}]")
    elif written != read:
        yield where


def test_panels_have_their_own_places_and_ids() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0 for place in places)
    for a, b in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (a, b)


def test_every_row_of_the_dashboard() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    wanted = [
        "Overview",
        "Traffic",
        "Latency",
        "Pictures",
        "Queues",
        "Engines",
        "Caches",
        "Errors",
        "Batches",
        "Processes",
    ]
    assert rows == wanted


def test_provisioning_names_what_is_there() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert (source["type"], source["access"]) == ("prometheus", "proxy")
    (provider,) = yaml.safe_load((GRAFANA / "provisioning/dashboards/sightline.yml").read_text())["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"]


# --- Prometheus ------------------------------------------------------------------------------------------------------


def test_alerts_say_what_and_what_to_do() -> None:
    for rule in RULES:
        assert rule["alert"].startswith("Sightline")
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"].keys() == {"summary", "description"}
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_the_rules_that_are_scraped_for_are_there() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert all((PROMETHEUS / file).exists() for file in config["rule_files"])
    assert [job["job_name"] for job in config["scrape_configs"]] == ["sightline"], "as the alerts name it"


@promtool
def test_prometheus_reads_all_of_it(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{n}", "expr": filled(e)} for n, (_, e) in enumerate(EXPRESSIONS)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    for arguments in (
        ["check", "config", str(PROMETHEUS / "prometheus.yml")],
        ["check", "rules", str(tmp_path / "panels.yml")],
        ["test", "rules", str(PROMETHEUS / "sightline.rules.test.yml")],
    ):
        done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_promtool_likes_the_names() -> None:
    body, _ = metrics.render()
    done = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@prometheus
def test_a_real_prometheus_scrapes_a_server_and_draws_every_panel(tmp_path: Path) -> None:
    settings = Settings(models=(ModelConfig(name="m", engine="fake"),), allowed_hosts=("*",))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        listen = f"127.0.0.1:{probe.getsockname()[1]}"
    with server_of(settings) as port:
        config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(PROMETHEUS / file) for file in config["rule_files"]]
        config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        command = [
            "prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address={listen}", "--log.level=error",
        ]  # fmt: skip
        with subprocess.Popen(command) as process:
            try:
                until(lambda: ask(listen, 'up{job="sightline"}') == ["1"])
                body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()
                headers = {"content-type": "application/json"}
                url = f"http://127.0.0.1:{port}/v1/chat/completions"
                urllib.request.urlopen(urllib.request.Request(url, body, headers)).close()
                until(lambda: ask(listen, 'sightline_requests_total{model="m", outcome="ok"}') == ["1"])
                for where, expression in EXPRESSIONS:
                    assert ask(listen, filled(expression)) is not None, where
                assert ask(listen, 'sightline_model_state{model="m"} > 0') == ["1"]
            finally:
                process.terminate()


def ask(listen: str, expression: str) -> list[str] | None:
    """The values that Prometheus finds now; None: it does not understand, or is not there yet."""
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"http://{listen}/api/v1/query?{query}", timeout=10) as reply:
            result = json.loads(reply.read())["data"]["result"]
    except OSError:
        return None
    return [row["value"][1] for row in result]


def until(is_so: Any) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
