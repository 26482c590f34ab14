"""A process of a server, as it begins."""

from __future__ import annotations

import logging

import pytest

from sightline.config import Settings
from sightline.frontends import orders
from sightline.frontends.processes import Process, in_words

pytestmark = pytest.mark.anyio


async def test_a_program_that_was_replaced_on_the_disk_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    order = orders.Start(Settings(log_level="error"), 2, version="0.0.1")
    core = await Process.start("core", "the core", order)
    assert not await core.is_up(20)
    assert core.exited.result() == 1
    core.close()


async def test_whoever_does_not_end_in_time_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    core = await Process.start("core", "the core", orders.Start(Settings(log_level="error"), 2))
    with caplog.at_level(logging.ERROR):
        assert not await core.ends(0.0)
    assert in_words(core.exited.result()) == "SIGKILL"
    assert "the core has not ended within 0 s" in caplog.text
