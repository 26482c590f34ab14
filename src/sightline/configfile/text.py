"""YAML to values, each with the line in which it stands, `${NAME}` filled in by the environment.

PyYAML's safe subset without anchors (a file cannot unfold into gigabytes) and without repeated keys. What is wrong is
told in words of ours: PyYAML's are about its tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sightline.config import variable

_VARIABLE = re.compile(r"\$(\$\{)|\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_ONLY_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_SECRET = re.compile(r"(?i)(?!.*_per_token$)(?:.*[_-])?(?:api[_-]?key|token|secret|secret[_-]access[_-]key|password)")
"""Names of what must not be written down; `api_key_env`, `step_tokens` and `prefill_s_per_token` are none."""
_PASSWORD = re.compile(r"[a-z0-9+]+://[^/@]*:(?!\$\{[A-Za-z_][A-Za-z0-9_]*\}@)[^/@]+@")
"""A URL with a password that is written out, not named: `redis://:secret@host`."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a file."""

    message: str
    line: int | None = None
    """From 1 on."""
    path: str = ""
    """`models[1].engine`; empty: the file as a whole."""
    column: int | None = None
    """From 1 on; of what is not even YAML."""

    def show(self, file: str) -> str:
        place = ":".join(str(each) for each in (file, self.line, self.column) if each is not None)
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


@dataclass(slots=True)
class Reading:
    """A file on its way: where each value stands, and what was found wrong so far."""

    directory: Path
    lines: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    filled: dict[str, str] = field(default_factory=dict)
    """Values that came from the environment, and `${NAME}` for each: maybe secrets, so no message repeats one."""

    def wrong(self, path: str, message: str) -> None:
        for value, name in self.filled.items():
            message = message.replace(value, name)
        place = path
        while place and place not in self.lines:  # a field that was left out stands where its parent does
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        self.problems.append(Problem(message, self.lines.get(place), path))


# ---- text to nodes


def compose(text: str) -> yaml.Node | Problem | None:
    """The document, None where there is none, or why it cannot be read."""
    try:
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        return _in_our_words(error)
    except yaml.YAMLError:
        return Problem("is not YAML: it holds characters that no text has.")
    return node


def dump(values: Mapping[str, Any]) -> str:
    """What `compose` reads as these values."""
    return yaml.dump(dict(values), Dumper=_Dumper)


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not; write the value out", problem_mark=mark)
        return super().compose_node(parent, index)


class _Dumper(yaml.SafeDumper):
    """Writes out what a program names twice: `_Loader` takes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_KEYS = "Keys beside each other begin in the same column; text with a colon and a space in it is quoted"
_WORDS = (
    (r"mapping values", f"a key and a value cannot stand here. {_KEYS}"),
    (
        r"block mapping.*block end",
        "expected a key in column {column}, like the first of the block that begins in line {line}",
    ),
    (
        r"block collection.*block end",
        "expected '- ' in column {column}, like the first of the list that begins in line {line}",
    ),
    (r"flow sequence", "expected a comma or the ] of the list that begins in line {line}, column {column}"),
    (r"flow mapping", "expected a comma or the }} of the mapping that begins in line {line}, column {column}"),
    (r"end of stream", "expected the other quote of the text that begins in line {line}, column {column}"),
    (r"expected ':'", "expected a colon and a value behind the key that stands in line {line}"),
    (
        r"escape (?:character '(.+)'|sequence)",
        "a backslash in double quotes begins an escape that there is not; in single quotes it is itself",
    ),
    (r"character '\\t'", "expected spaces: lines are not indented by tabs"),
    (r"character '(.)'", "no value begins with {found}; text that does is quoted"),
    (r"node content.*'(.+)'", "expected a value, not {found}"),
    (r"single document", "expected the end of the file, which is one document: no second ---"),
)
"""What PyYAML says, its context before its problem, and what it means. `line` and `column`: of what was begun."""


def _in_our_words(error: yaml.MarkedYAMLError) -> Problem:
    at, begun = error.problem_mark, error.context_mark or error.problem_mark
    said = " ".join(filter(None, (error.context, error.problem)))
    words = error.problem or said
    for pattern, meaning in _WORDS:
        if (match := re.search(pattern, said)) is not None:
            found = match[1] if match.re.groups else ""
            words = meaning.format(line=begun.line + 1, column=begun.column + 1, found=found) if begun else meaning
            break
    if at is None:
        return Problem(f"is not YAML that is taken here: {words}.")
    return Problem(f"is not YAML that is taken here: {words}.", at.line + 1, column=at.column + 1)


# ---- nodes to values


_CONSTRUCTOR = yaml.constructor.SafeConstructor()


def to_value(reading: Reading, node: yaml.Node, path: str) -> Any:
    reading.lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        return _to_mapping(reading, node, path)
    if isinstance(node, yaml.SequenceNode):
        return [to_value(reading, child, f"{path}[{index}]") for index, child in enumerate(node.value)]
    try:
        value = _CONSTRUCTOR.construct_object(node)
    except (yaml.YAMLError, ValueError):
        reading.wrong(path, f"cannot be read as {node.tag.removeprefix('tag:yaml.org,2002:')}; quote it if it is text.")
        return None
    return _fill_in(reading, value, path) if isinstance(value, str) else value


def _to_mapping(reading: Reading, node: yaml.MappingNode, path: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = str(key_node.value)
        below = f"{path}.{key}" if path else key
        if not isinstance(key_node, yaml.ScalarNode) or key == "<<":
            reading.problems.append(Problem("keys are plain words here.", key_node.start_mark.line + 1, path))
        elif key in values:
            line = key_node.start_mark.line + 1
            reading.problems.append(Problem(f"is written twice, first in line {reading.lines[below]}.", line, below))
        else:
            reading.lines[below] = key_node.start_mark.line + 1
            if _holds_secret(path, key, value_node):
                reading.wrong(
                    below,
                    "a secret must not stand in this file, which is copied and committed. Name a variable of the "
                    f"environment that holds it: {key}: ${{{key.upper()}}}, or the option that takes a name.",
                )
            values[key] = to_value(reading, value_node, below)
    return values


def _holds_secret(path: str, key: str, node: yaml.Node) -> bool:
    values = node.value if isinstance(node, yaml.SequenceNode) else [node]
    literal = any(
        isinstance(each, yaml.ScalarNode) and each.value and not _ONLY_VARIABLE.fullmatch(each.value) for each in values
    )
    return bool(literal and ".options" in path and _SECRET.fullmatch(key)) or any(
        isinstance(each, yaml.ScalarNode) and _PASSWORD.match(each.value) for each in values
    )


def _fill_in(reading: Reading, text: str, path: str) -> str:
    """`${NAME}` by the environment's value; `$${` is a plain `${`."""

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return match[1]
        if (found := variable(match[2])) is None:
            reading.wrong(
                path, f"the environment variable {match[2]} is not set. Set it, or write $${{ for a plain ${{."
            )
        if found:
            reading.filled[found] = match[0]
        return found or ""

    return _VARIABLE.sub(value, text)
