"""`sightline serve` in a process of its own, as a driver of this folder measures it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.reliability.client import once

_ADDRESS = re.compile(r"on https?://[^:]+:(\d+)")


@dataclass
class Served:
    port: int
    process: asyncio.subprocess.Process
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children(recursive=True)

    def engine(self) -> psutil.Process | None:
        """The process of its (one) isolated engine."""
        return next(iter(self._running("sightline.engines.worker")), None)

    def decoders(self) -> list[psutil.Process]:
        return self._running("sightline.images.decoder_process")

    def _running(self, module: str) -> list[psutil.Process]:
        found = []
        for child in self.children():
            with contextlib.suppress(psutil.Error):
                if module in " ".join(child.cmdline()):
                    found.append(child)
        return found

    async def metric(self, name: str, **labels: str) -> float:
        """The sum over all rows of that name with these labels."""
        total = 0.0
        for line in (await once(self.port, "GET", "/metrics")).body.decode().splitlines():
            key, _, value = line.rpartition(" ")
            if key.partition("{")[0] == name and all(f'{label}="{text}"' in key for label, text in labels.items()):
                total += float(value)
        return total

    async def busy(self) -> float:
        """Requests that hold a slot or wait for one."""
        return await self.metric("sightline_requests_running") + await self.metric("sightline_requests_waiting")

    async def until_ready(self, timeout_s: float = 60.0) -> None:
        await until(lambda: self._is_ready(), timeout_s)

    async def _is_ready(self) -> bool:
        return (await once(self.port, "GET", "/ready")).status == 200

    async def end(self, timeout_s: float = 40.0) -> int:
        """By SIGTERM. The exit status."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.wait_for(self.process.wait(), timeout_s)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            return await self.process.wait()


async def until(condition: Any, timeout_s: float, *, every_s: float = 0.01) -> float:
    """Waits until the coroutine function returns something true; the seconds that took."""
    began = time.perf_counter()
    while not await condition():
        assert time.perf_counter() - began < timeout_s, f"not within {timeout_s} s"
        await asyncio.sleep(every_s)
    return time.perf_counter() - began


@asynccontextmanager
async def serving(
    *models: dict[str, Any], level: str = "warning", ready: bool = True, **settings: Any
) -> AsyncIterator[Served]:
    """A server with a configuration of these models; ended at the end, if it lives."""
    with tempfile.TemporaryDirectory(prefix="sightline-reliability-") as folder:
        file, log = Path(folder) / "sightline.yaml", Path(folder) / "log"
        file.write_text(json.dumps({"models": models, "data_dir": f"{folder}/data", **settings}))
        command = [sys.executable, "-m", "sightline.cli", "serve", str(file), "--port", "0", "--log-level", level]
        with log.open("w") as out:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=subprocess.PIPE, stderr=out, env={**os.environ, "XDG_STATE_HOME": folder}
            )
        assert process.stdout is not None
        served = None
        try:
            found = _ADDRESS.search((await process.stdout.readline()).decode())
            assert found is not None, f"it does not say where it serves: {log.read_text()[-2000:]}"
            served = Served(int(found[1]), process, log)
            if ready:
                await served.until_ready()
            yield served
        finally:
            if served is not None:
                await served.end(10.0)
            elif process.returncode is None:
                process.kill()
                await process.wait()


def fake(name: str = "m", *, slots: int = 64, **options: Any) -> dict[str, Any]:
    """A model of the fake engine."""
    return {"name": name, "engine": "fake", "max_concurrent": slots, "options": options}
