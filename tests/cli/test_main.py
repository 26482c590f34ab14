"""The command line as a shell has it: pipes that close, disks that are full, terminals of another time, odd numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sightline.cli import main

PICTURE = str(Path(__file__).parent.parent.parent / "examples" / "pictures" / "red-circle.png")


def run(
    *arguments: str | bytes, stdout: int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "sightline", *arguments]
    return subprocess.run(
        command,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
        timeout=60,
        check=False,
    )


def test_without_a_command_the_commands_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().err
    assert "serve" in shown
    assert "Ask a question about pictures" in shown


def test_the_page_is_not_offered_to_whom_asks_for_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ui", "--help"])
    assert "--ui" not in capsys.readouterr().out


def test_a_reader_that_has_seen_enough() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run("engine", "list", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_reader_that_leaves_in_mid_answer() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run("ask", "--engine", "fake", PICTURE, "[[fake: length 500]]", stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_disk_that_is_full() -> None:
    with open("/dev/full", "wb") as full:
        done = run("engine", "list", stdout=full.fileno())
    assert done.returncode == 1
    assert done.stderr.decode() == "sightline: What it writes cannot be kept: No space left on device.\n"


def test_a_terminal_without_these_characters() -> None:
    done = run("ask", "--engine", "fake", "[[fake: say 日本]]", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stdout) == (0, rb"\u65e5\u672c" + b"\n")


def test_a_question_in_utf8_whatever_the_locale_says() -> None:
    question = "[[fake: say 日本]]".encode()
    done = run("ask", "--engine", "fake", question, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert (done.returncode, done.stdout.strip()) == (0, rb"\u65e5\u672c"), done.stderr


def test_a_question_that_is_no_text() -> None:
    done = run("ask", "--engine", "fake", b"colour \xff?")
    assert (done.returncode, done.stderr) == (1, b"sightline: The question is not text in UTF-8.\n")


def test_ctrl_c_while_its_code_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sightline.cli.import_module", interrupted)
    assert main(["ask", "?"]) == 130


def test_a_command_reads_no_other_commands_code() -> None:
    seen = "import sys, sightline.cli as c; c.to_parser(only='check'); print('sightline.cli.drift' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", seen], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "argv",
    [
        ["serve", "--port", "99999"],
        ["serve", "--port", "-1"],
        ["serve", "--port", "http"],
        ["keys", "list", "--port", "70000"],
        ["ask", "?", "--max-tokens", "0"],
        ["ask", "?", "--max-tokens", "-3"],
        ["ask", "?", "--temperature", "nan"],
        ["ask", "?", "--temperature", "99"],
        ["ask", "?", "--temperature", "warm"],
        ["ask", "?", "--seed", "99999999999999999999999"],
        ["batch", "run", "x", "--out", "y.csv", "--concurrency", "0"],
        ["batch", "run", "x", "--out", "y.csv", "--retries", "-1"],
    ],
    ids=" ".join,
)
def test_numbers_that_cannot_be_meant(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert argv[-2] in told
    assert "takes a" in told


def test_a_variable_that_is_no_port(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SIGHTLINE_PORT", "http")
    monkeypatch.setattr("sightline.cli.doctor.machine_checks", lambda: ())
    assert main(["doctor"]) == 1
    assert "not 'http'" in capsys.readouterr().out
