"""What an answer must look like, as a grammar in llguidance's Lark dialect. Pure text; `constraint.py` compiles it.

| request | grammar |
|---|---|
| `response_format` json_object, json_schema | a JSON value, on one line, and nothing around it |
| `tool_choice` required, or tools named | one call or more, of those tools, arguments by their schemas |
| `tool_choice` auto, a tool that is `strict` | words or calls of tools, arguments by the schema if the tool is strict |
| both of the first two, `tool_choice` auto | the JSON value or calls |
| anything else | none |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sightline.engines import tool_elements
from sightline.engines.tool_formats import Mark, ToolFormat, calls_rule, quoted
from sightline.types import EngineRequest, Tool

_ANY_OBJECT: Final[Mapping[str, Any]] = {"type": "object"}
_ONE_LINE: Final[Mapping[str, Any]] = {
    # Where white space is free, a model that is not sure of itself writes it until the context is full.
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON schema that is part of a grammar."""

    text: str
    """As llguidance takes it."""
    param: str
    """Where it stood in the request."""
    instead: str | None = None
    """What takes its place if no grammar can be made of it; None: then the request is refused."""


@dataclass(frozen=True, slots=True)
class Grammar:
    rules: str
    """All but the rules of the schemas, `schema_0` and so on."""
    schemas: tuple[Schema, ...]

    def lark(self, texts: Sequence[str]) -> str:
        """`texts`: of the schemas, each its own or what takes its place."""
        return self.rules + "".join(f"schema_{index}: %json {text}\n" for index, text in enumerate(texts))


def to_grammar(request: EngineRequest, form: ToolFormat, mark: Mark) -> Grammar | None:
    """None where an answer may be anything. `form`: how the model writes calls."""
    words = _words(request, form, mark)
    calls, schemas = _calls(request, form, words.mark)
    body = _body(request)
    if body is not None and request.tool_choice.mode != "required":
        start = f"schema_{len(schemas)}"
        schemas.append(body)
        return Grammar(f"start: {start} | calls\n{calls}" if calls else f"start: {start}\n", tuple(schemas))
    if not calls:
        return None
    if request.tool_choice.mode == "required":
        return Grammar(f"start: calls\n{calls}", tuple(schemas))
    return Grammar(words.rules + calls, tuple(schemas))


def _body(request: EngineRequest) -> Schema | None:
    wanted = request.response_format
    match wanted.kind:
        case "json_object":
            return Schema(_to_text(_ANY_OBJECT, strict=True), "response_format")
        case "json_schema":
            return Schema(_to_text(wanted.schema or {}, strict=wanted.strict), wanted.param)
        case _:
            return None


def _calls(request: EngineRequest, form: ToolFormat, mark: Mark) -> tuple[str, list[Schema]]:
    """The rules of calls, if any are to be enforced, and the schemas of their arguments."""
    choice, tools = request.tool_choice, request.tools
    if not tools or choice.mode == "none":
        return "", []
    is_bound = request.response_format.kind != "text" or any(tool.strict for tool in tools)
    if choice.mode == "auto" and not is_bound:
        return "", []
    allowed = [tool for tool in tools if not choice.names or tool.name in choice.names]
    schemas: list[Schema] = []

    def arguments(tool: Tool) -> str:
        """By the schema if the tool is strict or a call is enforced; then, if it is not strict, as far as can be."""
        param = tool.param or f"tools[{request.tools.index(tool)}].function.parameters"
        wanted = tool.parameters if tool.strict or choice.mode == "required" else {}

        def rule(schema: Mapping[str, Any], otherwise: Mapping[str, Any]) -> str:
            instead = None if tool.strict else _to_text(otherwise, strict=True)
            schemas.append(Schema(_to_text(schema, strict=tool.strict), param, instead))
            return f"schema_{len(schemas) - 1}"

        if form.name == "qwen3-coder":
            return tool_elements.to_rule(wanted, lambda schema: rule(schema, {}))
        is_typed = wanted.keys() & {"type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"}
        return rule(wanted if is_typed else {**wanted, **_ANY_OBJECT}, _ANY_OBJECT)

    rules = calls_rule(form, allowed, [arguments(tool) for tool in allowed], mark, parallel=choice.parallel)
    return rules + (tool_elements.RULES if form.name == "qwen3-coder" else ""), schemas


@dataclass(frozen=True, slots=True)
class _Words:
    """How an answer may be words or calls."""

    rules: str
    mark: Mark


def _words(request: EngineRequest, form: ToolFormat, mark: Mark) -> _Words:
    """Words, then calls, or either. Where calls begin with a token of their own, no word can be taken for one; where
    they begin with a text, that text ends the words."""
    if form.bare:
        return _Words("start: WORDS? | calls\nWORDS: /[^{ \\t\\r\\n](.|\\n)*/\n", mark)
    if mark(form.begin) != quoted(form.begin):
        return _Words("start: WORDS? calls?\nWORDS: /(.|\\n)+/\n", mark)
    if request.tool_choice.mode == "required" or request.response_format.kind != "text":
        return _Words("", mark)
    rules = f"start: calls | WORDS?\nWORDS: /(.|\\n)+/\nopening[lazy]: /(.|\\n)*/ {quoted(form.begin)}\n"
    return _Words(rules, lambda text: "opening" if text == form.begin else mark(text))


def _to_text(schema: Mapping[str, Any], *, strict: bool) -> str:
    """A schema as llguidance takes it. Its own options there may be are a client's, and go."""
    plain = {key: value for key, value in schema.items() if key not in ("x-guidance", "$schema", "$id")}
    return json.dumps({**plain, "x-guidance": {**_ONE_LINE, "lenient": not strict}})
