"""The table of `make test-engines`: engine x clause of the contract, and engines that must not be skipped.

`SIGHTLINE_ENGINES_REQUIRED` names those, between spaces; then a skipped clause of theirs is a failure, and so is an
engine of theirs that no test tried. Without the variable, as in `make test`, there is no table.

`allowed_skips.toml` names the clauses that an engine cannot keep, with the error that shows it.
"""

from __future__ import annotations

import os
import tomllib
from collections import defaultdict
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

REQUIRED = frozenset(os.environ.get("SIGHTLINE_ENGINES_REQUIRED", "").split())
_ORDER = ("failed", "skipped", "passed")
_OUTCOMES: dict[tuple[str, str], str] = {}
"""By clause and engine."""


class AllowedSkip(NamedTuple):
    engine: str
    clause: str
    reason: str
    error: str
    """Part of what pytest tells of it."""


def read_allowed_skips(text: str) -> dict[tuple[str, str], AllowedSkip]:
    """By clause and engine. Raises `ValueError` for one that is listed twice or says too little."""
    allowed: dict[tuple[str, str], AllowedSkip] = {}
    for entry in tomllib.loads(text).get("skip", []):
        if set(entry) != set(AllowedSkip._fields) or not all(entry.values()):
            raise ValueError(f"allowed_skips.toml: {entry} must have engine, clause, reason and error")
        skip = AllowedSkip(**entry)
        if (skip.clause, skip.engine) in allowed:
            raise ValueError(f"allowed_skips.toml: {skip.engine}, {skip.clause} is listed twice")
        allowed[skip.clause, skip.engine] = skip
    return allowed


ALLOWED_SKIPS = read_allowed_skips((Path(__file__).parent / "allowed_skips.toml").read_text())


class Verdict(NamedTuple):
    outcome: str
    why: str | None = None
    """None: as pytest tells it."""


def judge(outcome: str, told: str, allowed: AllowedSkip | None, *, required: bool) -> Verdict:
    """What a clause that ended with `outcome`, of which pytest tells `told`, counts as."""
    if allowed is None:
        return (
            Verdict("failed", f"must not be skipped: {told}") if outcome == "skipped" and required else Verdict(outcome)
        )
    if outcome == "passed":
        return Verdict("failed", f"passes, but allowed_skips.toml says it cannot: {allowed.reason}. Take it out there.")
    if allowed.error not in told:
        return Verdict("failed", f"allowed_skips.toml expects the error {allowed.error!r}, and it was: {told}")
    return Verdict("skipped", f"Skipped: {allowed.reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    parameters: Mapping[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    if not {"subject", "clause"} <= set(parameters):
        return report
    engine = parameters["subject"].name
    cell = parameters["clause"].__name__, engine
    if report.when == "call" or report.outcome != "passed":
        allowed = ALLOWED_SKIPS.get(cell) if report.when == "call" else None
        verdict = judge(report.outcome, str(report.longrepr), allowed, required=engine in REQUIRED)
        if verdict.why is not None:
            path, line, _ = item.location
            told = f"{engine}: {verdict.why}"
            report.longrepr = (path, line or 0, verdict.why) if verdict.outcome == "skipped" else told
        report.outcome = verdict.outcome  # type: ignore[assignment]  # one of the three
        if REQUIRED:
            _OUTCOMES[cell] = min(report.outcome, _OUTCOMES.get(cell, "passed"), key=_ORDER.index)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _untried() and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not REQUIRED or not _OUTCOMES:
        return
    engines = list(dict.fromkeys(engine for _, engine in _OUTCOMES))
    clauses = list(dict.fromkeys(clause for clause, _ in _OUTCOMES))
    width = max(map(len, clauses))
    terminalreporter.section("the engine contract")
    terminalreporter.write_line(f"{'':{width}}  " + "  ".join(engines))
    for clause in clauses:
        cells = (f"{_OUTCOMES.get((clause, engine), '-'):{max(7, len(engine))}}" for engine in engines)
        terminalreporter.write_line(f"{clause:{width}}  " + "  ".join(cells))
    totals: dict[str, list[str]] = defaultdict(list)
    for (_, engine), outcome in _OUTCOMES.items():
        totals[engine].append(outcome)
    for engine, outcomes in totals.items():
        told = ", ".join(f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "skipped"))
        terminalreporter.write_line(f"{engine}: {told}")
    for (clause, engine), outcome in _OUTCOMES.items():
        if outcome == "skipped" and (allowed := ALLOWED_SKIPS.get((clause, engine))) is not None:
            terminalreporter.write_line(f"{engine} cannot keep {clause}: {allowed.reason}")
    for engine in _untried():
        terminalreporter.write_line(f"{engine}: FAILED, no clause was tried")


def _untried() -> list[str]:
    """Required engines of which this run, if it was one of the contract, tried nothing."""
    return sorted(REQUIRED - {engine for _, engine in _OUTCOMES}) if _OUTCOMES else []
