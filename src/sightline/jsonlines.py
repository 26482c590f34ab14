"""JSON on one line, as it stands in streams (server-sent events, Ollama's lines) and in the files of batches.

U+0085, U+2028 and U+2029 may stand unescaped in JSON, and end a line for Python's `str.splitlines` and for what is
built on it: httpx's `iter_lines`, and so Ollama's client. Here they are escaped, as Ollama's own server does with the
last two.
"""

from __future__ import annotations

from typing import Any

import msgspec

_encode = msgspec.json.Encoder().encode


def to_json(value: Any) -> bytes:
    """A value as one line, whoever splits it, without its line break. Strings alone can hold such characters, so an
    escape is right wherever one is found."""
    line = _encode(value)
    if b"\xe2\x80" in line:
        line = line.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    if b"\xc2\x85" in line:
        line = line.replace(b"\xc2\x85", b"\\u0085")
    return line


def to_line(value: Any) -> bytes:
    """With its line break."""
    return to_json(value) + b"\n"
