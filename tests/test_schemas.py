"""What a client may send as a JSON schema: every message names the place, and no schema takes long to refuse."""

from __future__ import annotations

import time
from typing import Any

import pytest

from sightline.errors import SchemaInvalid
from sightline.schemas import MAX_BYTES, MAX_DEPTH, verify, verify_schemas
from sightline.types import ChatRequest, ResponseFormat, Tool

PARAM = "response_format.json_schema.schema"


def nested(levels: int) -> dict[str, Any]:
    """That many schemas inside each other."""
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels - 1):
        schema = {"type": "array", "items": schema}
    return schema


GOOD: list[dict[str, Any]] = [
    {},
    {"type": "object", "properties": {"a": {"type": ["string", "null"]}}, "required": ["a"]},
    {"$ref": "#/$defs/node", "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}}},
    {"$ref": "#/$defs/a~1b%20c", "$defs": {"a/b c": True}},
    {"properties": {"$ref": {"type": "string"}, "type": {"enum": [1]}, "pattern": {}}},  # names, not keywords
    {"$id": "https://example.com/mine", "items": False},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1e300},
    {"unheard-of": {"$ref": "https://example.com"}},
    nested(MAX_DEPTH),
]


@pytest.mark.parametrize("schema", GOOD, ids=str)
def test_what_is_a_schema_is_let_through(schema: dict[str, Any]) -> None:
    assert verify(schema, PARAM) > 0


BAD: list[tuple[dict[str, Any], str]] = [
    ({"type": "strong"}, "at 'type', one or more of"),
    ({"properties": {"age": {"type": 7}}}, "'properties.age.type'"),
    ({"properties": ["a"]}, "'properties', an object of schemas"),
    ({"anyOf": []}, "'anyOf', an array of one schema or more"),
    ({"allOf": [{}, "no"]}, "'allOf.1', a schema is wanted"),
    ({"items": 3}, "'items', a schema is wanted"),
    ({"$ref": "https://example.com/schema.json"}, "nothing is fetched"),
    ({"$ref": "file:///etc/passwd"}, "nothing is fetched"),
    ({"$ref": "other.json#/a"}, "nothing is fetched"),
    ({"$ref": "#anchor"}, "nothing is fetched"),
    ({"$ref": 7}, "nothing is fetched"),
    ({"$ref": "#/$defs/gone"}, "there is nothing where the reference points"),
    ({"$ref": "#/type", "type": "object"}, "there is no schema"),
    ({"$dynamicRef": "#/a"}, "only '$ref'"),
    ({"items": {"$id": "https://example.com/inner"}}, "'$id'"),
    ({"minItems": 10**9}, "no answer has room"),
    ({"minLength": -1}, "an integer of 0 or more"),
    ({"maxLength": "9"}, "an integer of 0 or more"),
    ({"minimum": "1"}, "a number is wanted"),
    ({"pattern": 5}, "a regular expression is wanted"),
    ({"pattern": "a" * 1001}, "1000 characters"),
    ({"patternProperties": {"a" * 1001: {}}}, "1000 characters"),
    ({"required": "a"}, "an array of property names"),
    ({"enum": []}, "an array of one value or more"),
    ({"const": "x" * MAX_BYTES}, "larger than 64 KiB"),
    (nested(MAX_DEPTH + 1), "nested deeper than 16"),
    (nested(400), "nested deeper than 16"),
    ({"const": [[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}, "nested deeper than 16"),
]


@pytest.mark.parametrize(("schema", "told"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_be_used_is_told_with_its_place(schema: dict[str, Any], told: str) -> None:
    with pytest.raises(SchemaInvalid) as caught:
        verify(schema, PARAM)
    assert told in caught.value.message
    assert (caught.value.param, caught.value.code) == (PARAM, "invalid_json_schema")


def test_the_largest_schema_is_looked_at_in_no_time() -> None:
    many = {"properties": {f"p{i}": {"type": "string", "minLength": 1} for i in range(1400)}}
    began = time.perf_counter()
    assert verify(many, PARAM) > MAX_BYTES * 0.8
    assert time.perf_counter() - began < 0.5


def test_tools_are_looked_at_too() -> None:
    tools = (Tool("good"), Tool("bad", parameters={"type": "zork"}))
    with pytest.raises(SchemaInvalid) as caught:
        verify_schemas(ChatRequest("id", "model", (), tools=tools))
    assert caught.value.param == "tools[1].function.parameters"


def test_a_dialect_says_where_its_schema_stood() -> None:
    wanted = ResponseFormat("json_schema", {"type": "zork"}, param="text.format.schema")
    with pytest.raises(SchemaInvalid) as caught:
        verify_schemas(ChatRequest("id", "model", (), response_format=wanted))
    assert caught.value.param == "text.format.schema"


def test_all_schemas_of_a_request_have_a_bound_together() -> None:
    large = {"description": "x" * (MAX_BYTES - 100)}
    with pytest.raises(SchemaInvalid, match="256 KiB together"):
        verify_schemas(ChatRequest("id", "model", (), tools=tuple(Tool(f"t{i}", parameters=large) for i in range(5))))
