"""How models write calls of tools: a table of formats, and which of them a checkpoint's template asks for.

| format | a call | of |
|---|---|---|
| `hermes` | `<tool_call>` `{"name": "f", "arguments": {...}}` `</tool_call>` | Hermes 2 Pro, Qwen2.5, Qwen3 |
| `qwen3-coder` | `<tool_call>` `<function=f>` `<parameter=a>` text, then the closing tags | Qwen3-Coder |
| `llama3` | `{"name": "f", "parameters": {...}}`, alone or after `<|python_tag|>`; more behind `;` | Llama 3.1 to 3.3 |
| `mistral` | `[TOOL_CALLS]` `[{"name": "f", "arguments": {...}}, ...]` | Mistral's tokenizers v3 |
| `mistral-args` | `[TOOL_CALLS]` `f` `[ARGS]` `{...}` | Mistral's tokenizers v11 and later |

A model whose template knows no tools is told of them in words (`instruction`), and asked for `hermes`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from sightline.types import Tool

FormatName = Literal["hermes", "qwen3-coder", "llama3", "mistral", "mistral-args"]
FormatChoice = Literal["auto", "hermes", "qwen3-coder", "llama3", "mistral", "mistral-args"]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    name: FormatName
    begin: str
    """The text that a call, or a list of them, begins with."""
    end: str = ""
    """The text that closes it."""
    arguments: str = "arguments"
    """The key of a call's arguments."""
    bare: bool = False
    """Whether an answer that is a call may do without `begin`."""
    markers: tuple[str, ...] = ()
    """Every text of the format that may be a token of its own in a vocabulary."""


FORMATS: Final[Mapping[str, ToolFormat]] = {
    f.name: f
    for f in (
        ToolFormat("hermes", "<tool_call>", "</tool_call>", markers=("<tool_call>", "</tool_call>")),
        ToolFormat("qwen3-coder", "<tool_call>", "</tool_call>", markers=("<tool_call>", "</tool_call>")),
        ToolFormat("llama3", "<|python_tag|>", arguments="parameters", bare=True, markers=("<|python_tag|>",)),
        ToolFormat("mistral", "[TOOL_CALLS]", markers=("[TOOL_CALLS]",)),
        ToolFormat("mistral-args", "[TOOL_CALLS]", markers=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")),
    )
}
GENERIC: Final = FORMATS["hermes"]
_SIGNS: Final = (
    ("[ARGS]", "mistral-args"), ("[TOOL_CALLS]", "mistral"), ("<function=", "qwen3-coder"), ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3"), ('"parameters":', "llama3"),
)  # fmt: skip
"""What a template that knows tools writes, most telling first."""


def format_of(template: str) -> ToolFormat:
    """The format that a chat template's source asks for."""
    return next((FORMATS[name] for sign, name in _SIGNS if sign in template), GENERIC)


def instruction(tools: Sequence[str]) -> str:
    """What a model is told whose template knows no tools. `tools`: as JSON, each what a client said of one."""
    return (
        "You may call functions. Each is given here as JSON, with a JSON schema of its arguments:\n<tools>\n"
        + "\n".join(tools)
        + "\n</tools>\nTo call one, give its name and its arguments as JSON between these tags:\n"
        + '<tool_call>\n{"name": "the name", "arguments": {}}\n</tool_call>\n'
        + "If none is of use, answer in words."
    )


def to_function(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates expect it."""
    parameters = dict(tool.parameters) or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": parameters},
    }


# --- as grammars -----------------------------------------------------------------------------------------------------

Mark = Callable[[str], str]
"""From a marker to its term in a grammar: the token, where the vocabulary has one, else its text."""


def quoted(text: str) -> str:
    """A text as a term of llguidance's Lark dialect, which escapes as JSON does."""
    return json.dumps(text)


def calls_rule(form: ToolFormat, tools: Sequence[Tool], arguments: Sequence[str], mark: Mark, *, parallel: bool) -> str:
    """Rules in which `calls` is one call or, with `parallel`, several. `arguments`: for each tool the rule of its
    arguments."""
    begin, end = mark(form.begin), mark(form.end) if form.end else ""

    def written(tool: Tool, rule: str) -> str:
        if form.name == "mistral-args":
            return f"{begin} {quoted(tool.name)} {mark('[ARGS]')} {rule}"
        if form.name == "qwen3-coder":
            return f"{quoted(f'<function={tool.name}>')} {rule} {quoted('</function>')}"
        head = f'{{"name": {json.dumps(tool.name)}, {json.dumps(form.arguments)}: '
        return f"{quoted(head)} {rule} {quoted('}')}"

    def several(separator: str) -> str:
        if not parallel:
            return "call"
        return f"call ({quoted(separator)} call)*" if separator else "call+"

    one = " | ".join(written(tool, rule) for tool, rule in zip(tools, arguments, strict=True))
    match form.name:
        case "hermes" | "qwen3-coder":
            line = quoted("\n")
            return f"calls: {several(chr(10))}\ncall: {begin} {line} written {line} {end}\nwritten: {one}\n"
        case "mistral":
            return f"calls: {begin} {quoted('[')} {several(', ')} {quoted(']')}\ncall: {one}\n"
        case "llama3":
            return f"calls: {several('; ')}\ncall: {one}\n"
        case _:
            return f"calls: {several('')}\ncall: {one}\n"
