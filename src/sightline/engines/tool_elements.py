"""Arguments as elements of text, one for each (`<parameter=a>`): how Qwen3-Coder writes them, and what they mean.

A text stands there as it is; everything else, and a text whose schema says more than that it is one, as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from sightline.types import Tool

_PARAMETER: Final = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_CLOSING: Final = "\n</parameter>"
_MORE_THAN_TEXT: Final = frozenset({"pattern", "format", "minLength", "maxLength"})

RULES: Final = (
    f"text_element[lazy]: /(.|\\n)*/ {json.dumps(_CLOSING)}\n"
    'any_element: "\\n<parameter=" /[^>\\n]+/ ">\\n" text_element\n'
)
"""What `to_rule` refers to."""


def to_json(text: str, tool: Tool) -> str:
    """The elements of a call as one JSON object."""
    properties = _properties(tool.parameters)

    def value(name: str, written: str) -> Any:
        schema = properties.get(name)
        if _is_text(schema):
            return written
        try:
            return json.loads(written)
        except (ValueError, RecursionError):
            return written

    found = ((match[1].strip(), match[2]) for match in _PARAMETER.finditer(text))
    return json.dumps({name: value(name, written) for name, written in found}, ensure_ascii=False)


def to_rule(parameters: Mapping[str, Any], to_schema_rule: Callable[[Mapping[str, Any]], str]) -> str:
    """A grammar's rule of the elements that a schema asks for, in its order. `to_schema_rule`: makes a rule of what
    stands as JSON."""
    if not (properties := _properties(parameters)):
        return 'any_element* "\\n"'
    required = parameters.get("required") or ()
    shared = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    elements = []
    for name, schema in properties.items():
        element = f"{json.dumps(f'{chr(10)}<parameter={name}>{chr(10)}')} {_content(schema, shared, to_schema_rule)}"
        elements.append(element if name in required else f"({element})?")
    return " ".join(elements) + ' "\\n"'


def _content(schema: Any, shared: Mapping[str, Any], to_schema_rule: Callable[[Mapping[str, Any]], str]) -> str:
    if _is_text(schema):
        choices = [schema["const"]] if "const" in schema else schema.get("enum")
        if choices is None:
            return "text_element"
        return f"({' | '.join(json.dumps(str(choice)) for choice in choices)}) {json.dumps(_CLOSING)}"
    described = {**schema, **shared} if isinstance(schema, Mapping) else {}
    return f"{to_schema_rule(described)} {json.dumps(_CLOSING)}"


def _properties(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = parameters.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _is_text(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "string" and not _MORE_THAN_TEXT & schema.keys()
