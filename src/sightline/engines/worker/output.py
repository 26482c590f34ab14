"""What a child prints, made fit for a log: a line at a time, of bounded length, nothing in it that a terminal obeys."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator

MAX_LINE_CHARS = 2_000
_CONTROL = (*range(32), *range(127, 160), 0x2028, 0x2029)
_ESCAPED = {code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" for code in _CONTROL if code != ord("\t")}


async def printable_lines(output: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines that are not empty; of one that is too long the beginning. Ends when the child's output does."""
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    line, overlong = "", False
    while data := await output.read(65_536):
        *complete, rest = decode(data).split("\n")
        for part in complete:
            if not overlong and (text := _printable(line + part)):
                yield text
            line, overlong = "", False
        line += rest
        if len(line) > MAX_LINE_CHARS and not overlong:  # it may never end
            yield _printable(line)
            overlong = True
        if overlong:
            line = ""
    if not overlong and (text := _printable(line)):
        yield text


def _printable(line: str) -> str:
    return line.rstrip()[:MAX_LINE_CHARS].translate(_ESCAPED)
