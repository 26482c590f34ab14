"""`sightline doctor [FILE]`: what somebody who helps you would ask first, looked up; each line with what to do."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from sightline import __version__, logs
from sightline.cli.doctor_findings import Finding, examine
from sightline.cli.doctor_machine import machine_checks
from sightline.cli.doctor_settings import settings_checks

WITHIN_S = 9.0
"""For all of it: the checks run beside each other, and what takes longer is told as such."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="the configuration to look at, such as sightline.yaml (default: what `sightline serve` alone would do)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")


def run(args: argparse.Namespace) -> int:
    """Exit status 1 where something is a problem; warnings alone are none."""
    logs.set_up("error")
    found = []
    for finding in examine([*machine_checks(), *settings_checks(args.file)], WITHIN_S):
        found.append(finding)
        if not args.json:
            print(to_line(finding), flush=True)
    counts = Counter(str(finding.status) for finding in found)
    if args.json:
        checks = [{"check": f.check, "status": f.status, "message": f.message, "remedy": f.remedy} for f in found]
        print(json.dumps({"sightline": __version__, "ok": not counts["problem"], "checks": checks}, indent=2))
    else:
        print(_summary(counts))
    return 1 if counts["problem"] else 0


def to_line(finding: Finding) -> str:
    """The message, and below it what to do."""
    remedy = f"\n{'':24}-> {finding.remedy}" if finding.remedy else ""
    return f"{finding.status:9}{finding.check:15}{finding.message}{remedy}"


def _summary(counts: Counter[str]) -> str:
    told = [f"{counts[s]} {s}{'' if counts[s] == 1 else 's'}" for s in ("problem", "warning") if counts[s]]
    return f"\n{', '.join(told)}." if told else "\nAll is well."
