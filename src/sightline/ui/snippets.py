"""A request as code that does the same again: curl, and OpenAI's SDK for Python. Pure.

A picture's bytes stand there as its file, which is read where the code runs.
"""

from __future__ import annotations

import json
import pprint
import shlex
from collections.abc import Mapping
from typing import Any

from sightline.ui.conversation import PictureFile

_OPENAIS = {"model", "messages", "stream", "stream_options", "temperature", "max_tokens"}
"""Arguments of the SDK; all else goes through its `extra_body`."""


def to_snippets(body: Mapping[str, Any], base_url: str, *, with_key: bool) -> dict[str, str]:
    return {
        "curl": to_curl(body, base_url, with_key=with_key),
        "Python": to_python(body, base_url, with_key=with_key),
    }


def to_curl(body: Mapping[str, Any], base_url: str, *, with_key: bool) -> str:
    """For a POSIX shell. The body is a here-document, in which the shell puts pictures and leaves all else alone."""
    files: list[PictureFile] = []

    def mark(value: Any) -> str:
        files.append(value)
        return f"\0{len(files) - 1}\0"  # JSON writes NUL as \u0000, and nobody types it

    text = json.dumps(body, indent=1, ensure_ascii=False, default=mark)
    for character in "\\$`":
        text = text.replace(character, "\\" + character)
    for index, file in enumerate(files):
        there = f"data:;base64,$(base64 < {shlex.quote('./' + file.name)} | tr -d '\\n')"
        text = text.replace(f"\\\\u0000{index}\\\\u0000", there)
    key = ' \\\n  -H "Authorization: Bearer $SIGHTLINE_API_KEY"' if with_key else ""
    url = shlex.quote(f"{base_url}/chat/completions")
    return f"curl -N {url} \\\n  -H 'Content-Type: application/json'{key} \\\n  --data-binary @- <<END\n{text}\nEND"


def to_python(body: Mapping[str, Any], base_url: str, *, with_key: bool) -> str:
    has_files = _has_files(body)
    key = 'os.environ["SIGHTLINE_API_KEY"]' if with_key else '"none"'
    own = {name: value for name, value in body.items() if name not in _OPENAIS}
    arguments = {name: value for name, value in body.items() if name in _OPENAIS}
    if own:
        arguments["extra_body"] = own
    imports = [*(["import base64"] if has_files else []), *(["import os"] if with_key else [])]
    lines = [*imports, *([""] if imports else []), "from openai import OpenAI", ""]
    if has_files:
        lines += [
            "",
            "def picture(path):",
            '    with open(path, "rb") as file:',
            '        return "data:;base64," + base64.b64encode(file.read()).decode()',
            "",
            "",
        ]
    lines += [f"client = OpenAI(base_url={base_url!r}, api_key={key})", "stream = client.chat.completions.create("]
    lines += [_argument(name, value) for name, value in arguments.items()]
    lines += [
        ")",
        "for chunk in stream:",
        "    for choice in chunk.choices:",
        '        print(choice.delta.content or "", end="")',
    ]
    return "\n".join(lines)


def _argument(name: str, value: Any) -> str:
    shown = pprint.pformat(value, width=100, sort_dicts=False)
    return f"    {name}={shown},".replace("\n", "\n    " + " " * (len(name) + 1))


def _has_files(value: Any) -> bool:
    match value:
        case PictureFile():
            return True
        case Mapping():
            return any(map(_has_files, value.values()))
        case list():
            return any(map(_has_files, value))
        case _:
            return False
