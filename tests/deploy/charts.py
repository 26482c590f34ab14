"""Renders the chart by Helm into tests/deploy/rendered/, from which its tests read:

    python -m tests.deploy.charts [--helm helm]

Helm is not on every machine that runs the tests; what it has made is kept, with a digest of the chart by which the
tests know that it is still what Helm would make.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "sightline"
RENDERED = Path(__file__).parent / "rendered"
CASES = ("small", "large")


def digest(case: str) -> str:
    """Of everything that decides how a case is rendered."""
    files = [path for path in sorted(CHART.rglob("*")) if path.is_file()]
    parts = [f"{path.relative_to(CHART)}\0{path.read_text()}\0" for path in files]
    return hashlib.sha256("".join([*parts, values(case).read_text()]).encode()).hexdigest()


def values(case: str) -> Path:
    return RENDERED / f"{case}.values.yaml"


def rendered(case: str) -> Path:
    return RENDERED / f"{case}.yaml"


def render(helm: str, *arguments: str | Path) -> str:
    """Raises `CalledProcessError` where Helm refuses."""
    command = [helm, "template", "vision", CHART, "--namespace", "models", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Renders the chart for its tests.")
    parser.add_argument("--helm", default="helm", help="the program")
    helm = parser.parse_args().helm
    subprocess.run([helm, "lint", "--strict", CHART, "--values", values("small")], check=True)
    for case in CASES:
        text = render(helm, "--values", values(case))
        rendered(case).write_text(f"# Made by python -m tests.deploy.charts of the chart {digest(case)}\n{text}")
        print(rendered(case).relative_to(ROOT))


if __name__ == "__main__":
    main()
