"""What a check of `sightline doctor` finds, and how checks are run: beside each other, and none of them for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the report."""

    status: Literal["ok", "warning", "problem"]
    """Warning: it works, and not as well as it could, or not for long. Problem: something will not work."""
    check: str
    message: str
    remedy: str | None = None
    """What to do, where it is not well."""


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    look: Callable[[], Iterable[tuple[str, ...]]]
    """Gives `ok(...)`, `warning(...)` and `problem(...)`. May block; called in a thread of its own."""


def ok(message: str) -> tuple[str, ...]:
    return ("ok", message)


def warning(message: str, remedy: str) -> tuple[str, ...]:
    return ("warning", message, remedy)


def problem(message: str, remedy: str) -> tuple[str, ...]:
    return ("problem", message, remedy)


def examine(checks: Sequence[Check], within_s: float) -> Iterator[Finding]:
    """Findings in the order of the checks, each as soon as those before it are told.

    A check that has not ended within `within_s` is a warning; one that breaks is a problem, and the others go on.
    """
    ends = time.monotonic() + within_s
    running = [(check, _begin(check)) for check in checks]
    for check, future in running:
        try:
            yield from future.result(max(0.0, ends - time.monotonic()))
        except TimeoutError:
            yield Finding(
                "warning",
                check.name,
                f"not known after {within_s:g} s.",
                "The machine may be busy: run this once more when it is not.",
            )


def _begin(check: Check) -> Future[list[Finding]]:
    """In a thread that does not keep the program from ending."""
    future: Future[list[Finding]] = Future()

    def look() -> None:
        try:
            found = [Finding(each[0], check.name, *each[1:]) for each in check.look()]  # type: ignore[arg-type]
        except Exception as error:  # whatever a strange machine does to one check
            message = f"could not be looked at: {type(error).__name__}: {error}"
            found = [Finding("problem", check.name, message, "This is a bug of `sightline doctor`: please report it.")]
        future.set_result(found)

    threading.Thread(target=look, daemon=True, name=f"doctor-{check.name}").start()
    return future
