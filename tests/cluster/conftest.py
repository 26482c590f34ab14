"""Tests of a real Ray are marked; the others here need none."""

from __future__ import annotations

import os
import secrets

import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Ray's library reads these once, when it is imported; a token it has by default.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")  # as `sightline cluster up` has it
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
