"""JSON schemas that clients send, for an answer's shape or a tool's arguments: looked at before any engine sees them.

What is checked here is cheap and the same for every engine: how large a schema is, how deep, where its references
point, and that its keywords have the types that JSON Schema (2020-12, draft 7) gives them. Whether an engine can make a
grammar of it is that engine's to say (`engines/constraint.py`), with the same error.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

import msgspec

from sightline.errors import SchemaInvalid
from sightline.types import ChatRequest

MAX_BYTES: Final = 64 * 1024
"""Of one schema as compact JSON."""
MAX_TOTAL_BYTES: Final = 256 * 1024
"""Of all schemas of a request."""
MAX_DEPTH: Final = 16
"""Schemas inside each other; and levels of a value in `enum` or `const`."""
MAX_PATTERN: Final = 1000
"""Characters of a regular expression."""
MAX_LEAST: Final = 65_536
"""Of `minItems` and its kin: more fits into no answer."""

_TYPES: Final = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
_ONE: Final = (
    "items", "additionalItems", "additionalProperties", "unevaluatedItems", "unevaluatedProperties", "not", "if",
    "then", "else", "contains", "propertyNames", "contentSchema",
)  # fmt: skip
_LISTS: Final = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS: Final = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_COUNTS: Final = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_NUMBERS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


def verify_schemas(request: ChatRequest) -> None:
    """Every schema of a request. Raises `SchemaInvalid`."""
    total = 0
    for schema, param in _schemas(request):
        total += verify(schema, param)
        if total > MAX_TOTAL_BYTES:
            raise SchemaInvalid(
                f"The schemas of this request are larger than {MAX_TOTAL_BYTES // 1024} KiB together.", param=param
            )


def verify(schema: Mapping[str, Any], param: str) -> int:
    """One schema, which stands at `param`; its size in bytes. Raises `SchemaInvalid`, whose message says where in the
    schema the fault is."""
    try:
        size = len(msgspec.json.encode(schema))
    except RecursionError:
        raise SchemaInvalid(_told(f"it is nested deeper than {MAX_DEPTH} levels"), param=param) from None
    if size > MAX_BYTES:
        raise SchemaInvalid(_told(f"it is larger than {MAX_BYTES // 1024} KiB"), param=param)
    try:
        _verify_node(schema, "", MAX_DEPTH, schema)
    except _FaultError as fault:
        raise SchemaInvalid(_told(fault.what, fault.place), param=param) from None
    return size


def _schemas(request: ChatRequest) -> Iterator[tuple[Mapping[str, Any], str]]:
    wanted = request.response_format
    if wanted.kind == "json_schema":
        yield wanted.schema or {}, wanted.param
    for index, tool in enumerate(request.tools):
        yield tool.parameters, tool.param or f"tools[{index}].function.parameters"


class _FaultError(Exception):
    def __init__(self, what: str, place: str) -> None:
        super().__init__(what)
        self.what = what
        self.place = place


def _told(what: str, place: str = "") -> str:
    """The message; `place` is a path into the schema, of which a client's own names are part."""
    return f"This JSON schema cannot be used: {f'at {place[:128]!r}, ' if place else ''}{what}."


def _verify_node(node: Any, place: str, levels: int, root: Mapping[str, Any]) -> None:
    if isinstance(node, bool):
        return
    if not isinstance(node, Mapping):
        raise _FaultError("a schema is wanted, which is an object or a boolean", place)
    if levels == 0:
        raise _FaultError(f"it is nested deeper than {MAX_DEPTH} levels", place)
    _verify_keywords(node, place)
    _verify_reference(node, place, root)
    for child, where in _children(node, place):
        _verify_node(child, where, levels - 1, root)


def _children(node: Mapping[str, Any], place: str) -> Iterator[tuple[Any, str]]:
    for name in _ONE:
        if name in node:
            if name == "items" and isinstance(node[name], list | tuple):
                yield from ((child, _at(place, name, str(i))) for i, child in enumerate(node[name]))
            else:
                yield node[name], _at(place, name)
    for name in _LISTS:
        if name in node:
            if not isinstance(node[name], list | tuple) or not node[name]:
                raise _FaultError("an array of one schema or more is wanted", _at(place, name))
            yield from ((child, _at(place, name, str(i))) for i, child in enumerate(node[name]))
    for name in _MAPS:
        if name in node:
            if not isinstance(node[name], Mapping):
                raise _FaultError("an object of schemas is wanted", _at(place, name))
            yield from ((child, _at(place, name, key)) for key, child in node[name].items())


def _verify_keywords(node: Mapping[str, Any], place: str) -> None:
    if "type" in node:
        kinds = node["type"] if isinstance(node["type"], list | tuple) else [node["type"]]
        if not kinds or not all(isinstance(kind, str) and kind in _TYPES for kind in kinds):
            raise _FaultError(f"one or more of {', '.join(sorted(_TYPES))} is wanted", _at(place, "type"))
    for name in _COUNTS:
        if name in node:
            value = node[name]
            if not _is_number(value) or value < 0 or value != int(value):
                raise _FaultError("an integer of 0 or more is wanted", _at(place, name))
            if name.startswith("min") and value > MAX_LEAST:
                raise _FaultError(f"no answer has room for more than {MAX_LEAST}", _at(place, name))
    for name in _NUMBERS:
        # Draft 4 had booleans for the exclusive bounds.
        if name in node and not (_is_number(node[name]) or (name.startswith("exclusive") and node[name] in (0, 1))):
            raise _FaultError("a number is wanted", _at(place, name))
    if "pattern" in node:
        _verify_pattern(node["pattern"], _at(place, "pattern"))
    if isinstance(node.get("patternProperties"), Mapping):
        for pattern in node["patternProperties"]:
            _verify_pattern(pattern, _at(place, "patternProperties"))
    if "required" in node and not (
        isinstance(node["required"], list | tuple) and all(isinstance(name, str) for name in node["required"])
    ):
        raise _FaultError("an array of property names is wanted", _at(place, "required"))
    if "enum" in node:
        if not isinstance(node["enum"], list | tuple) or not node["enum"]:
            raise _FaultError("an array of one value or more is wanted", _at(place, "enum"))
        _verify_value(node["enum"], _at(place, "enum"), MAX_DEPTH + 1)
    if "const" in node:
        _verify_value(node["const"], _at(place, "const"), MAX_DEPTH)


def _verify_reference(node: Mapping[str, Any], place: str, root: Mapping[str, Any]) -> None:
    for name in ("$dynamicRef", "$recursiveRef"):
        if name in node:
            raise _FaultError("only '$ref' is supported", _at(place, name))
    if place and "$id" in node and isinstance(node["$id"], str):
        raise _FaultError("only the whole schema may have an '$id'", _at(place, "$id"))
    if "$ref" not in node:
        return
    target = node["$ref"]
    if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
        raise _FaultError(
            "a reference may only point into the schema itself ('#/$defs/...'): nothing is fetched", _at(place, "$ref")
        )
    found: Any = root
    for step in target.split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, Mapping) and key in found:
            found = found[key]
        elif isinstance(found, list | tuple) and key.isdecimal() and len(key) < 6 and int(key) < len(found):
            found = found[int(key)]
        else:
            raise _FaultError("there is nothing where the reference points", _at(place, "$ref"))
    if not isinstance(found, Mapping | bool):
        raise _FaultError("there is no schema where the reference points", _at(place, "$ref"))


def _verify_pattern(pattern: Any, place: str) -> None:
    if not isinstance(pattern, str):
        raise _FaultError("a regular expression is wanted", place)
    if len(pattern) > MAX_PATTERN:
        raise _FaultError(f"a regular expression may have {MAX_PATTERN} characters", place)


def _verify_value(value: Any, place: str, levels: int) -> None:
    if isinstance(value, Mapping | list | tuple):
        if levels == 0:
            raise _FaultError(f"a value is nested deeper than {MAX_DEPTH} levels", place)
        children: Sequence[Any] = list(value.values()) if isinstance(value, Mapping) else value
        for child in children:
            _verify_value(child, place, levels - 1)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at(place: str, *steps: str) -> str:
    return ".".join((place, *steps) if place else steps)
