"""Writes the pages that are made from the code: `python docs/generate.py` (a test fails when they are out of date)."""

from __future__ import annotations

from pathlib import Path

from sightline import metrics

METRICS = """\
# Metrics

`GET /metrics` answers in Prometheus' text format. Labels come from closed sets: configured model names, stages,
outcomes (`ok`, `cancelled`, an error's class, `bug`). This page is made from the code by `python docs/generate.py`.

| name | type | labels | meaning |
|---|---|---|---|
"""


def metrics_page() -> str:
    rows = []
    for collector in metrics.REGISTRY._collector_to_names:
        (family,) = collector.describe()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
        rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return METRICS + "\n".join(rows) + "\n"


PAGES = {"metrics.md": metrics_page}


def main() -> None:
    for name, page in PAGES.items():
        (Path(__file__).parent / name).write_text(page())


if __name__ == "__main__":
    main()
