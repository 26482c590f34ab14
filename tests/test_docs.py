"""Every command and snippet of the README and the docs runs, and prints what the page says it prints.

A fenced block marked `bash` or `python` is run from the repository's root against a running server (its port takes the
place of 8000). A `text` block right after it is the output that is expected; `text contains` a part of it. Blocks
marked otherwise (`shell`, indented) are not run: they install, or serve until they are stopped. Their flags are looked
at all the same, and so are the settings in `yaml` blocks.
"""

from __future__ import annotations

import os
import re
import runpy
import shlex
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from sightline.cli import to_parser
from sightline.configfile import check
from sightline.engines import find_entry
from sightline.engines.table import ENGINES

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


# --- what is not run ------------------------------------------------------------------------------------------------


def shell_lines() -> Iterator[tuple[str, str]]:
    """Page and command of every block that is not run, continued lines joined, without comments."""
    for page in PAGES:
        for block in re.findall(r"^```shell\n(.*?)^```", page.read_text(), re.M | re.S):
            for line in re.sub(r"<<(\w+)\n.*?^\1$", "", block.replace("\\\n", " "), flags=re.M | re.S).splitlines():
                if command := re.sub(r"(^|\s)#.*|\s&$", "", line).strip():
                    yield page.name, command


def words(command: str) -> list[str]:
    """Without variables that are set before it."""
    found = shlex.split(command)
    return found[next((i for i, word in enumerate(found) if not re.match(r"[A-Z_]+=", word)), 0) :]


SHELL = [(page, words(command)) for page, command in shell_lines()]


@pytest.mark.parametrize(("page", "command"), [each for each in SHELL if each[1][0] == "sightline"])
def test_commands_that_are_not_run_are_taken_by_the_command_line(page: str, command: list[str]) -> None:
    args = to_parser().parse_args(command[1:])  # ends the test with its usage
    if args.command == "serve" and args.engine not in ("parrot",):
        find_entry(args.engine)


def test_programs_that_are_not_run_are_there() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for page, command in SHELL:
        if command[0] == "make":
            assert command[1] in targets, f"{page}: {' '.join(command)}"
        if command[:2] == ["python", "-m"]:
            assert find_spec(command[2]) is not None, f"{page}: {' '.join(command)}"
        if command[:2] == ["pip", "install"]:
            extras = {
                name for word in command[2:] for name in re.findall(r"\[(.*)\]", word) for name in name.split(",")
            }
            assert extras <= EXTRAS, f"{page}: {' '.join(command)}"
            theirs = [word for word in command[2:] if re.match(r"sightline\b(?!-)", word)]
            assert not theirs, f"{page}: on PyPI, {theirs[0]} is another project; say '.[...]', in the clone"


EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


NOT_HERE = (
    r"needs .*pip install|does not exist|cannot be read|cannot be used|is not there|No such file|no Python|no directory"
)
"""What a page's configuration may lack on this machine: packages, models, certificates."""

OF_OTHER_PROGRAMS = {"docker.md", "kubernetes.md", "systemd.md"}
"""Pages whose `yaml` blocks are compose files and values of a chart."""


def configurations() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        if page.name in OF_OTHER_PROGRAMS:
            continue
        for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.M | re.S):
            yield page.name, block


@pytest.mark.parametrize(("page", "block"), list(configurations()))
def test_configurations_are_taken(page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they stand, but for what is not on this machine."""
    for name in re.findall(r"(?<!\$)\$\{(\w+)\}|env: (\w+)", block):
        monkeypatch.setenv(name[0] or name[1], "x" * 43)
    file = tmp_path / "sightline.yaml"
    file.write_text(block)
    _, problems = check(file)
    absent = re.compile(NOT_HERE)
    assert [each for each in problems if not absent.search(each.message)] == []


# --- links ----------------------------------------------------------------------------------------------------------

LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "examples").glob("**/*.md")), *sorted((ROOT / "deploy").glob("**/*.md"))]  # fmt: skip  # noqa: E501


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", prose(page), re.M)
    }


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Files and anchors that a page links to."""
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", prose(page)):
        file, _, anchor = target.partition("#")
        yield (page.parent / file).resolve() if file else page, anchor


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(target), f"{target} has no heading #{anchor}"


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    missing = set(PAGES) - {target for target, _ in links(index)} - {index}
    assert not missing, f"docs/README.md does not link {sorted(page.name for page in missing)}"


def test_every_engine_has_a_page() -> None:
    assert {name for name in ENGINES if not (ROOT / "docs" / f"engine-{name}.md").exists()} == set()


def test_generated_pages_are_current() -> None:
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    for name, page in generate["PAGES"].items():
        assert (ROOT / "docs" / name).read_text() == page(), f"docs/{name} is out of date: python docs/generate.py"
