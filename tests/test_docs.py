"""Every command and snippet of the README and the docs runs, and prints what the page says it prints.

A fenced block marked `bash` or `python` is run from the repository's root against a running server (its port takes the
place of 8000). A `text` block right after it is the output that is expected; `text contains` a part of it. Blocks
marked otherwise (`shell`, indented) are not run: they install, or serve until they are stopped.
"""

from __future__ import annotations

import os
import re
import runpy
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = {"sightline serve"}  # what the fixture below does
BLOCK = re.compile(r"^```(?P<language>bash|python)\n(?P<code>.*?)^```\n(?:\n```text(?P<part> contains)?\n(?P<output>.*?)^```\n)?", re.M | re.S)  # fmt: skip  # noqa: E501


@dataclass(frozen=True)
class Snippet:
    page: str
    language: str
    code: str
    output: str | None
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {self.code.strip().splitlines()[-1][:40]}"


def snippets() -> Iterator[Snippet]:
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text()):
            if match["code"].strip() not in NOT_RUN:
                yield Snippet(page.name, match["language"], match["code"], match["output"], match["part"] is None)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sightline.cli", "serve", "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                assert server.poll() is None, "the server ended"
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield port
        finally:
            server.terminate()


@pytest.mark.parametrize("snippet", list(snippets()), ids=str)
def test_snippet(snippet: Snippet, port: int) -> None:
    code = snippet.code.replace("8000", str(port))
    command = ["bash", "-euo", "pipefail", "-c", code] if snippet.language == "bash" else [sys.executable, "-c", code]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    if snippet.output is not None and snippet.whole:
        assert done.stdout.strip() == snippet.output.strip()
    elif snippet.output is not None:
        assert snippet.output.strip() in done.stdout


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_generated_pages_are_current() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for name, page in generate["PAGES"].items():
        assert (ROOT / "docs" / name).read_text() == page(), f"docs/{name} is out of date: python docs/generate.py"
