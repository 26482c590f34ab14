"""A dashboard as Grafana writes it: places, ids, queries and variables of the panels that `dashboard.py` names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 24
"""Columns of Grafana's grid."""
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
PROCESS = 'job=~"$job", instance=~"$instance"'
MODEL = f'{PROCESS}, model=~"$model"'


@dataclass(frozen=True)
class Panel:
    title: str
    meaning: str
    unit: str
    queries: Sequence[tuple[str, str]]
    """Expression and legend."""
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False
    most: float | None = None
    """Where the axis ends: 1 for shares."""
    thresholds: Sequence[tuple[str, float | None]] = (("green", None),)


# --- as Grafana writes it --------------------------------------------------------------------------------------------


def to_dashboard(rows: Mapping[str, Sequence[Panel]]) -> dict[str, Any]:
    """Grafana's dashboard JSON model, of schema 39 (Grafana 10.3); later ones read it.
    https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/"""
    return {
        "uid": "sightline",
        "title": "Sightline",
        "description": "Models, pictures, queues, caches and errors of Sightline servers.",
        "tags": ["sightline"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "links": [],
        "annotations": {"list": []},
        "templating": {"list": list(_variables())},
        "panels": list(_panels(rows)),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {
        "name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "current": {},
        "hide": 0, "refresh": 1, "regex": "", "options": [], "multi": False, "includeAll": False,
    }  # fmt: skip
    of = {
        "job": "label_values(sightline_build_info, job)",
        "instance": 'label_values(sightline_build_info{job=~"$job"}, instance)',
        "model": f"label_values(sightline_slots{{{PROCESS}}}, model)",
    }
    for name, query in of.items():
        yield {
            "name": name, "label": name.capitalize(), "type": "query", "datasource": DATASOURCE,
            "query": {"query": query, "refId": name, "qryType": 1}, "refresh": 2, "sort": 1, "hide": 0, "regex": "",
            "multi": True, "includeAll": True, "allValue": ".*", "options": [],
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        }  # fmt: skip


def _panels(rows: Mapping[str, Sequence[Panel]]) -> Iterator[dict[str, Any]]:
    number, top = 1, 0
    for title, panels in rows.items():
        place = {"h": 1, "w": WIDTH, "x": 0, "y": top}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": place, "panels": []}
        number, top, left, tallest = number + 1, top + 1, 0, 0
        for panel in panels:
            if left + panel.width > WIDTH:
                top, left, tallest = top + tallest, 0, 0
            yield _panel(panel, number, {"h": panel.height, "w": panel.width, "x": left, "y": top})
            number, left, tallest = number + 1, left + panel.width, max(tallest, panel.height)
        top += tallest


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    steps = [{"color": colour, "value": value} for colour, value in panel.thresholds]
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "min": 0,
        "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [],
    }
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        fill = 40 if panel.stacked else 8
        defaults["custom"] = {"fillOpacity": fill, "lineWidth": 1, "showPoints": "never", "stacking": stacking}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.meaning,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + index), "datasource": DATASOURCE, "expr": expression, "legendFormat": legend,
                "range": panel.kind == "timeseries", "instant": panel.kind == "stat", "editorMode": "code",
            }
            for index, (expression, legend) in enumerate(panel.queries)
        ],
    }  # fmt: skip


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        calculated = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        return {"reduceOptions": calculated, "colorMode": "value", "graphMode": "none", "textMode": "auto"}
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
