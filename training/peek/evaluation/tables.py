"""A run's figures as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def to_table(run: Mapping[str, Any]) -> str:
    """What `report.summarise` gave: tasks, false refusals, conditions, photographs, the other runs."""
    parts = [_tasks(run), _conditions(run["conditions"])]
    if photographs := run["photographs"]:
        parts.append(
            f"photographs (apart): {photographs['refused']} of {photographs['n']} answers say that it cannot see them"
        )
    parts += [_compared(run, other) for other in run.get("compared", [])]
    return "\n\n".join(parts)


def _tasks(run: Mapping[str, Any]) -> str:
    lines = [f"{'task':<16} {'n':>5} {'right':>6} {'%':>6}   {'95 %':<13} {'floor':>5}"]
    for row in run["tasks"]:
        verdict = "reported" if row["floor"] is None else "pass" if row["passed"] else "FAIL"
        floor = "" if row["floor"] is None else f"{100 * row['floor']:.0f}"
        lines.append(
            f"{row['task']:<16} {row['n']:>5} {row['right']:>6} {100 * row['accuracy']:>6.1f}   "
            f"{_interval(row['interval_95']):<13} {floor:>5}  {verdict}"
        )
    if refusals := run["false_refusals"]:
        lines.append(
            f"{'false refusals':<16} {refusals['n']:>5} {refusals['refused']:>6} {100 * refusals['share']:>6.1f}   "
            f"{_interval(refusals['interval_95']):<13} {'<= 1':>5}  {'pass' if refusals['passed'] else 'FAIL'}"
        )
    return "\n".join(lines)


def _conditions(conditions: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Points are against what the same tasks get over all conditions."""
    lines = [f"{'condition':<17} {'':<23} {'n':>5} {'%':>6} {'points':>7}"]
    for name, classes in conditions.items():
        for label, count in classes.items():
            share, points = (100 * part / count["n"] for part in (count["right"], count["right"] - count["expected"]))
            lines.append(f"{name:<17} {label:<23} {count['n']:>5} {share:>6.1f} {points:>+7.1f}")
    return "\n".join(lines)


def _compared(run: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    mine = {row["task"]: row["accuracy"] for row in run["tasks"]}
    lines = [
        f"{'task':<16} {run['label'][:12]:>12} {other['name'][:12]:>12} {'points':>7}   only this / only other right"
    ]
    for row in other["tasks"]:
        pairs = f"   {row['only_this']} / {row['only_other']}" if "only_this" in row else ""
        shares = f"{100 * mine[row['task']]:>12.1f} {100 * row['accuracy']:>12.1f}"
        lines.append(f"{row['task']:<16} {shares} {row['difference']:>+7.1f}{pairs}")
    return "\n".join(lines)


def _interval(bounds: list[float]) -> str:
    low, high = bounds
    return f"{100 * low:.1f}..{100 * high:.1f}"
