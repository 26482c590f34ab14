"""The table of `make test-engines`: engine x clause of the contract, and engines that must not be skipped.

`SIGHTLINE_ENGINES_REQUIRED` names those, between spaces; then a skipped clause of theirs is a failure, and so is an
engine of theirs that no test tried. Without the variable, as in `make test`, nothing here does anything.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator

import pytest

REQUIRED = frozenset(os.environ.get("SIGHTLINE_ENGINES_REQUIRED", "").split())
ALLOWED_SKIPS = ("runs in this process",)
"""Reasons that are no shortcoming of an engine."""
_ORDER = ("failed", "skipped", "passed")
_OUTCOMES: dict[tuple[str, str], str] = {}
"""By clause and engine."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if not REQUIRED or not {"subject", "clause"} <= set(parameters):
        return report
    engine = parameters["subject"].name
    if report.skipped and engine in REQUIRED and not _is_allowed(report):
        report.outcome, report.longrepr = "failed", f"{engine} must not be skipped: {report.longrepr}"
    cell = parameters["clause"].__name__, engine
    if report.when == "call" or report.outcome != "passed":
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
        cells = (f"{_OUTCOMES.get((clause, engine), '-'):{len(engine)}}" for engine in engines)
        terminalreporter.write_line(f"{clause:{width}}  " + "  ".join(cells))
    totals: dict[str, list[str]] = defaultdict(list)
    for (_, engine), outcome in _OUTCOMES.items():
        totals[engine].append(outcome)
    for engine, outcomes in totals.items():
        told = ", ".join(f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "skipped"))
        terminalreporter.write_line(f"{engine}: {told}")
    for engine in _untried():
        terminalreporter.write_line(f"{engine}: FAILED, no clause was tried")


def _untried() -> list[str]:
    """Required engines of which this run, if it was one of the contract, tried nothing."""
    return sorted(REQUIRED - {engine for _, engine in _OUTCOMES}) if _OUTCOMES else []


def _is_allowed(report: pytest.TestReport) -> bool:
    return any(reason in str(report.longrepr) for reason in ALLOWED_SKIPS)
