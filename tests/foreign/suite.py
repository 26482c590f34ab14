"""What the runners of other people's test suites share: a server to point them at, what we decline, the table.

Their code is fetched or installed when it is run, into a folder that git ignores; none of it is here. A test that fails
must stand in `declined.toml` with the reason, or the run fails; and so it does when a reason excuses nothing.
"""

from __future__ import annotations

import fnmatch
import os
import re
import socket
import subprocess
import sys
import tarfile
import time
import tomllib
import urllib.request
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WORK = ROOT / "runs" / "foreign"
"""What is fetched."""


@dataclass(frozen=True)
class Declined:
    """A row of `declined.toml`: tests by their ids, what they fail with, or both."""

    reason: str
    tests: tuple[str, ...] = ("*",)
    """Patterns (`fnmatch`) of ids: `*/test_models.py::*::test_method_delete*`."""
    error: str = ""
    """A regular expression that the first line of the failure holds."""

    def holds(self, test: str, error: str) -> bool:
        return bool(re.search(self.error, error)) and any(fnmatch.fnmatchcase(test, p) for p in self.tests)


def declined(suite: str) -> list[Declined]:
    rows = tomllib.loads((HERE / "declined.toml").read_text())[suite]
    return [Declined(row["reason"], tuple(row.get("tests", ("*",))), row.get("error", "")) for row in rows]


@contextmanager
def server(configuration: str, folder: Path, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """`sightline serve` on a configuration file of this text, its models ready; the address."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "sightline.yaml"
    file.write_text(configuration)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sightline.cli", "serve", str(file), "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, **(environment or {})}
    ) as run:
        try:
            deadline = time.monotonic() + 120
            while True:
                if run.poll() is not None or time.monotonic() > deadline:
                    sys.exit("the server did not become ready")
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            run.terminate()


def fetch_source(project: str, version: str, folder: Path, part: str = "") -> Path:
    """A project's source distribution, unpacked in `folder` unless it is there; only what has `part` in its path."""
    name = f"{project.replace('-', '_')}-{version}"
    if not (folder / name).exists():
        folder.mkdir(parents=True, exist_ok=True)
        download = ["pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", f"{project}=={version}"]
        subprocess.run([sys.executable, "-m", *download, "--dest", str(folder)], check=True)
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            members = [member for member in archive.getmembers() if part in member.name]
            archive.extractall(folder, members, filter="data")
    return folder / name


def virtual_environment(folder: Path, requirements: Sequence[str]) -> Path:
    """Its Python; made where there is none with just these."""
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(requirements)
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"installing {' '.join(requirements)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        stamp.write_text(wanted)
    return python


def read_junit(file: Path) -> dict[str, str]:
    """Test id -> `passed`, `skipped`, or the first line of what went wrong."""
    results = {}
    for case in ET.parse(file).getroot().iter("testcase"):
        *folders, last = (case.get("classname") or "").split(".")
        test_class = f"::{last}" if last[:1].isupper() else ""
        path = "/".join(folders if test_class else [*folders, last])
        problem = next((child for child in case if child.tag in ("failure", "error")), None)
        skipped = case.find("skipped") is not None
        said = (problem.get("message") or "?").splitlines()[0] if problem is not None else ""
        results[f"{path}.py{test_class}::{case.get('name')}"] = said or ("skipped" if skipped else "passed")
    return results


def report(suite: str, results: Mapping[str, str]) -> int:
    """Prints the counts and whatever is not as expected; the exit status."""
    rows = declined(suite)
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    unexpected = []
    for test, result in sorted(results.items()):
        if result in ("passed", "skipped"):
            counts[result] += 1
        elif row := next((row for row in rows if row.holds(test, result)), None):
            counts["declined"] += 1
            reasons[row.reason] += 1
        else:
            counts["failed"] += 1
            unexpected.append(f"{test}: {result[:200]}")
    unused = [row.reason for row in rows if not reasons[row.reason]]
    unexpected += [f"declined, and fails no more: {reason}" for reason in unused]
    print("\n".join(unexpected))
    print(f"\n{suite}: {len(results)} tests: " + ", ".join(f"{n} {name}" for name, n in sorted(counts.items())))
    for reason, n in reasons.most_common():
        print(f"  {n:5} declined: {reason}")
    return 1 if unexpected else 0
