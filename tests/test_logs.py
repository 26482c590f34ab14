"""The log: one record is one line, nothing can forge another, and exceptions do not quote what a client sent."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sightline import logs
from sightline.logs import Facts, Formatter, LogFormat, to_trace

FORGED = "x\r\n2026-01-01 00:00:00.000 ERROR   sightline: pwned\x1b[2J\x07\x7f\x85\u2028\u2029\u202e\u200b\ud800"
STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ +\S+: ")


def record(message: Any, *args: Any, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("sightline.x", logging.WARNING, __file__, 1, message, args, exc_info)
    made.created, made.msecs = 1_700_000_000.25, 250.0
    return made


def test_a_record_as_json() -> None:
    line = Formatter("json").format(record("model %s is ready after %.1f s", "peek", 2.5))
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "sightline.x",
        "message": "model peek is ready after 2.5 s",
    }


def test_a_record_for_people() -> None:
    line = Formatter("human").format(record("model %s is ready", "peek"))
    assert line == "2023-11-14 22:13:20.250 WARNING sightline.x: model peek is ready"


def test_facts_are_fields_and_what_is_none_is_left_out() -> None:
    facts = Facts("POST /v1", {"status": 200, "key": None, "model": "two words", "path": ["a@0"], "s": 0.5})
    line = json.loads(Formatter("json").format(record(facts)))
    assert (line["message"], line["status"], line["model"], line["path"]) == ("POST /v1", 200, "two words", ["a@0"])
    assert "key" not in line
    human = Formatter("human").format(record(facts))
    assert human.endswith('sightline.x: POST /v1 status=200 model="two words" path=["a@0"] s=0.5')


def test_long_texts_are_cut() -> None:
    assert len(json.loads(Formatter("json").format(record(Facts("m", {"model": "x" * 5000}))))["model"]) == 256


def every_way(text: str) -> Iterator[logging.LogRecord]:
    """All the ways in which a client's text could get into a record."""
    yield record("%s", text)
    yield record(text)
    yield record(text, "one argument too many")
    yield record(Facts(text, {"model": text, "list": [text], "n": 1}))
    try:
        raise KeyError(text)
    except KeyError as error:
        yield record("%s", text, error=error)


@given(st.text() | st.text("\r\n\x1b\x85\u2028{}\"'% 0:-sE"))
def test_no_record_forges_a_line_in_json(text: str) -> None:
    for made in every_way(text):
        line = Formatter("json").format(made)
        assert line.isascii()
        assert line.isprintable()
        json.loads(line)


@pytest.mark.parametrize("text", [FORGED, FORGED * 3, "\n", "a\nb\n\nc", "\n" + FORGED])
def test_no_record_forges_a_line_for_people(text: str) -> None:
    for made in every_way(text):
        first, *rest = Formatter("human").format(made).split("\n")
        assert STAMP.match(first)
        assert all(line.startswith("    | ") for line in rest), "what follows is set in: no record begins like that"
        for line in (first, *rest):
            assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202e\u200b\ud800]", line)
            line.encode()


def test_exceptions_tell_classes_and_places_but_not_what_they_quote() -> None:
    quoted = "hunter" + "2"
    try:
        try:
            raise KeyError(quoted)
        except KeyError as error:
            raise ValueError(quoted) from error
    except ValueError as error:
        caught = error
    for log_format in ("json", "human"):
        text = Formatter(log_format).format(record("it failed", error=caught))
        assert quoted not in text
        assert "ValueError" in text
        assert "KeyError" in text
        assert "test_logs.py" in text


def test_exceptions_that_cause_each_other_end() -> None:
    first, second = KeyError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert to_trace(first) == "KeyError\nValueError"


def test_everybodys_records_are_in_one_format_and_levels_hold() -> None:
    out = io.StringIO()
    logs.set_up("info", None, out)
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.\n%s", FORGED)
    logging.getLogger("some.library").debug("too quiet")
    logging.getLogger("asyncio").info("said")
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [(line["logger"], line["level"]) for line in lines] == [("uvicorn.error", "warning"), ("asyncio", "info")]


def test_a_request_that_ends_with_the_server_leaves_no_trace() -> None:
    out = io.StringIO()
    logs.set_up("info", "json", out)
    for error in (asyncio.CancelledError(), KeyError()):
        logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=error)
    assert ["KeyError" in line for line in out.getvalue().splitlines()] == [True]


@pytest.mark.parametrize(("terminal", "asked", "json_wanted"), [(True, None, False), (False, None, True), (True, "json", True), (False, "human", False)])  # fmt: skip  # noqa: E501
def test_the_format_is_for_who_reads(terminal: bool, asked: LogFormat | None, json_wanted: bool) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    out = Stream()
    logs.set_up("info", asked, out)
    logging.getLogger("x").info("hello")
    assert out.getvalue().startswith("{") == json_wanted


def test_warnings_are_records_too() -> None:
    code = (
        "import warnings; from sightline import logs; logs.set_up('info', 'json'); "
        "warnings.warn('forged\\nline', stacklevel=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["logger"] == "py.warnings"


@pytest.mark.parametrize("value", ["é", "\x7f", "\ud800", 2**70, float("nan"), b"x", {1: 2}, object])
def test_any_field_can_be_written(value: Any) -> None:
    line = Formatter("json").format(record(Facts("m", {"value": value})))
    assert line.isascii()
    assert line.isprintable()
    assert "value" in json.loads(line)
    assert "value=" in Formatter("human").format(record(Facts("m", {"value": value})))
