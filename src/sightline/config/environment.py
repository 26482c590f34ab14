"""What the environment says. The only file that reads it."""

from __future__ import annotations

import os
from pathlib import Path


def environment(name: str, default: str | None = None) -> str | None:
    """The value of `SIGHTLINE_<NAME>`, or the default. Every variable of ours goes through here."""
    return os.environ.get(f"SIGHTLINE_{name}", default)


def variable(name: str) -> str | None:
    """The value of any other: one that an operator names in a configuration file (`${NAME}`), or OpenTelemetry's."""
    return os.environ.get(name)


def state_dir() -> Path:
    """Where programs keep what should outlive them (XDG Base Directory Specification 0.8)."""
    given = variable("XDG_STATE_HOME") or ""
    base = Path(given) if given.startswith("/") else Path.home() / ".local" / "state"
    return base / "sightline"
