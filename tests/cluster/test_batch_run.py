"""`sightline batch run --on ray` on a real Ray: whatever is killed, each row is answered once, in the input's order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

ray = pytest.importorskip("ray")
pytest.importorskip("pyarrow")
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

from ray.cluster_utils import Cluster as RayCluster  # noqa: E402  # it needs Ray

from tests.batch.kill import COLOURS, write_input  # noqa: E402
from tests.cluster.real import add_node  # noqa: E402

_PATIENCE_S = 300.0
"""For what takes seconds on a machine with nothing else to do."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """Of two machines. The driver is on the first; each has room for one engine."""
    started = RayCluster()
    add_node(started, include_dashboard=False, **machine())
    add_node(started, **machine())
    yield started
    started.shutdown()


def machine() -> dict[str, int]:
    return {"num_cpus": 2, "object_store_memory": 150 * 2**20}


class Driver:
    """The command, in a process of its own."""

    def __init__(self, cluster: RayCluster, folder: Path, out: str, *arguments: str, step_s: float = 0.02) -> None:
        self.out = folder / out
        self.partial = folder / f"{out}.partial"
        fake = ["--engine", "fake", "--option", f"step_s={step_s}"]
        self._command = [
            sys.executable, "-m", "sightline.cli", "batch", "run", "in.csv", "--prompt", "hello", "--out", out,
            "--on", "ray", "--ray-address", cluster.address, *(arguments or fake),
        ]  # fmt: skip
        self._folder = folder

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # Who runs tests in the background has it ignored, and so would what they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def rows(self) -> int:
        """In the journal."""
        return self.partial.read_bytes().count(b"\n") - 1 if self.partial.exists() else 0

    def works(self, since: int = 0) -> bool:
        assert self._process.poll() is None, self._process.communicate()[0]
        return self.rows() >= since + 8

    def kill(self, number: signal.Signals) -> str:
        self._process.send_signal(number)
        return self._process.communicate(timeout=_PATIENCE_S)[0]

    def ended(self) -> tuple[int, str]:
        said, _ = self._process.communicate(timeout=_PATIENCE_S)
        return self._process.returncode, said


def engines() -> list[psutil.Process]:
    """The actors that have one, of this process' Ray."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::MapWorker"):
                found.append(process)
    return found


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def assert_each_once(out: Path, total: int) -> None:
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"r-{number}" for number in range(total)]
    for number, row in enumerate(rows):
        assert row["answer"] == f"I see 1 picture: 56x56 mostly {COLOURS[number % 4]}. You said: hello"


def test_an_engine_and_the_driver_are_killed(cluster: RayCluster, tmp_path: Path) -> None:
    write_input(tmp_path, 700)
    driver = Driver(cluster, tmp_path, "out.jsonl")
    driver.start()
    until(driver.works, "it gets nowhere")
    lost, *_ = engines()
    os.kill(lost.pid, signal.SIGKILL)
    before = driver.rows()
    until(lambda: driver.works(since=before), "it does not go on without the engine that was killed")
    driver.kill(signal.SIGKILL)
    written = driver.rows()
    assert 0 < written < 700
    until(lambda: not engines(), "engines of a driver that is gone stay")
    driver.start()
    until(lambda: driver.works(since=written), "it does not go on")
    assert "stopped with" in driver.kill(signal.SIGINT)
    assert driver.rows() > written
    driver.start()
    code, said = driver.ended()
    assert code == 0, said
    assert "were done before" in said
    assert_each_once(driver.out, 700)


def test_a_machine_is_killed(cluster: RayCluster, tmp_path: Path) -> None:
    total = 500  # two minutes for one engine: the other has begun by then, however busy the machine
    write_input(tmp_path, total)
    driver = Driver(cluster, tmp_path, "out.jsonl", step_s=0.3)
    driver.start()
    until(lambda: driver.works() and len(engines()) == 2, "there is not an engine on each machine")
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    code, said = driver.ended()
    add_node(cluster, **machine())
    assert code == 0, said
    assert_each_once(driver.out, total)


def test_rows_that_fail_stand_beside_answers_in_a_table(cluster: RayCluster, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    write_input(tmp_path, 4)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with (tmp_path / "in.csv").open("a") as table:
        table.write("broken,broken.png\nmissing,missing.png\n")
    driver = Driver(cluster, tmp_path, "out.parquet")
    driver.start()
    code, said = driver.ended()
    assert code == 1, said
    rows = pq.read_table(driver.out).to_pylist()
    assert [row["error_code"] for row in rows] == [None] * 4 + ["invalid_image_format", "picture_unreadable"]
    assert [row["pictures"] for row in rows[:2]] == ["red.png", "blue.png"]
    assert rows[1]["answer"] == "I see 1 picture: 56x56 mostly blue. You said: hello"


def test_why_a_model_cannot_be_loaded_is_told(cluster: RayCluster, tmp_path: Path) -> None:
    write_input(tmp_path, 4)
    (tmp_path / "sightline.yaml").write_text(
        "models: [{name: m, engine: fake, options: {startup: error}, max_concurrent: 4}]\n"
    )
    driver = Driver(cluster, tmp_path, "out.jsonl", "-c", "sightline.yaml")
    driver.start()
    code, said = driver.ended()
    assert code == 1, said
    assert "failed to load" in said


def test_what_no_machine_has_is_told(cluster: RayCluster, tmp_path: Path) -> None:
    write_input(tmp_path, 4)
    driver = Driver(cluster, tmp_path, "out.jsonl", "--engine", "fake", "--gpus", "3")
    driver.start()
    code, said = driver.ended()
    assert code == 1, said
    assert "No machine of the cluster has what an engine is to have: CPU 1, GPU 3." in said
