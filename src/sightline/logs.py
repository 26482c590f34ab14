"""How every line of the log is written: ours, uvicorn's, the libraries'; as JSON or for people.

One formatter for all of them, so that nothing that a client, a model or a child process says can forge a line or speak
to a terminal: in JSON a record is one line of ASCII, for people every control character is escaped and what follows a
line break is set in. Of exceptions it tells classes and places. Not their messages, which may quote what a client sent.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, TextIO

import msgspec

LogFormat = Literal["json", "human"]

MAX_FIELD: Final = 256
"""Characters of any text that a client chose."""
_SET_IN: Final = "    | "
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]")  # fmt: skip  # noqa: E501
"""C0 and C1 controls, line separators, and what turns or hides text: the bidirectional controls of Unicode UAX #9
("Trojan Source", CVE-2021-42574), zero-width characters, lone surrogates."""
_PLAIN: Final = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is logged of something as fields: `log.info(Facts("what happened", {...}))`."""

    message: str
    fields: Mapping[str, Any]
    """Numbers, texts, lists of them; None is left out. Texts are cut after `MAX_FIELD` characters."""

    def to_fields(self) -> dict[str, Any]:
        return {k: v[:MAX_FIELD] if isinstance(v, str) else v for k, v in self.fields.items() if v is not None}

    def __str__(self) -> str:
        """The fields as JSON, for whatever formats records in its own way."""
        return to_json(self.to_fields())


def set_up(level: str, log_format: LogFormat | None = None, stream: TextIO | None = None) -> None:
    """From now on this process's records of `level` or above go to `stream` (standard error), in this format; None:
    for people where the stream is a terminal, else JSON. May be called again."""
    out = sys.stderr if stream is None else stream
    handler = _StandardError() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(Formatter(log_format or ("human" if out.isatty() else "json")))
    handler.addFilter(_is_no_cancellation)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """A request that ends with the server is no fault of its code, but uvicorn tells its whole trace."""
    return record.exc_info is None or not isinstance(record.exc_info[1], asyncio.CancelledError)


class _StandardError(logging.StreamHandler[TextIO]):
    """To whatever standard error is when something is said: programs put another in its place."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class Formatter(logging.Formatter):
    """One record to one line of JSON, or to one or more lines for people. Times are UTC."""

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._format = _to_json_line if log_format == "json" else _to_human_lines

    def format(self, record: logging.LogRecord) -> str:
        """Never raises: a record whose arguments do not fit its message is told as it stands."""
        try:
            message = record.msg.message if isinstance(record.msg, Facts) else record.getMessage()
        except Exception:
            message = f"{record.msg!r} {record.args!r}"
        return self._format(record, message)


def _to_json_line(record: logging.LogRecord, message: str) -> str:
    line: dict[str, Any] = {
        "time": _to_time(record, "T") + "Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "message": message,
    }
    if isinstance(record.msg, Facts):
        line |= record.msg.to_fields()
    if trace := _to_trace(record):
        line["exception"] = trace
    return to_json(line)


def _to_human_lines(record: logging.LogRecord, message: str) -> str:
    text = f"{_to_time(record, ' ')} {record.levelname:<7} {record.name}: {message}"
    if isinstance(record.msg, Facts):
        text = " ".join([text, *(f"{key}={_to_word(value)}" for key, value in record.msg.to_fields().items())])
    if trace := _to_trace(record):
        text += "\n" + trace
    first, *rest = (escape(line) for line in text.split("\n"))
    return "\n".join([first, *(_SET_IN + line for line in rest)])


def escape(text: str) -> str:
    """With every character that a terminal or a reader of lines would obey in its escaped form: `\\u001b`."""
    if text.isprintable():  # none of them is, and nearly every text is
        return text
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def to_json(value: Any) -> str:
    """One line of ASCII, whatever the texts in it hold."""
    try:
        line = _ENCODER.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError):  # lone surrogates, numbers of many digits
        line = b""
    if line and line.isascii() and b"\x7f" not in line:
        return line.decode("ascii")
    return json.dumps(value, separators=(",", ":"), default=str).replace("\x7f", "\\u007f")


_ENCODER: Final = msgspec.json.Encoder(enc_hook=str)
"""Ten times as fast as `json`, and right for nearly every record: it escapes nothing above ASCII."""


def to_trace(error: BaseException) -> str:
    """Where an error came from: classes and places, the error itself first, then what caused it."""
    lines: list[str] = []
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        lines += [type(cause).__qualname__, *traceback.format_tb(cause.__traceback__)]
        cause = cause.__cause__ or cause.__context__
    return "\n".join(line.rstrip() for line in lines)


def _to_trace(record: logging.LogRecord) -> str:
    error = record.exc_info[1] if record.exc_info else None
    return "" if error is None else to_trace(error)


def _to_time(record: logging.LogRecord, separator: str) -> str:
    """RFC 3339, in UTC, to the millisecond."""
    return f"{_to_second(int(record.created), separator)}.{int(record.msecs):03d}"


@lru_cache(maxsize=4)
def _to_second(second: int, separator: str) -> str:
    return time.strftime(f"%Y-%m-%d{separator}%H:%M:%S", time.gmtime(second))


def _to_word(value: Any) -> str:
    """A field's value without a space in it that is not quoted: `key=value` can be told apart by eye and by `awk`."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and '"' not in value:
        return value
    if isinstance(value, int | float):
        return str(value)
    return to_json(value)
