"""Texts that clients wrote, on their way through a chat template: each stands there as an unguessable sentinel, so that
what the template wrote and what a person wrote can be told apart afterwards, whatever the template did in between.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

_KEYWORDS: Final = frozenset(
    {
        "type", "properties", "required", "description", "title", "enum", "items", "default", "const", "format",
        "anyOf", "allOf", "oneOf", "not", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
        "minLength", "maxLength", "pattern", "minItems", "maxItems", "uniqueItems", "prefixItems", "nullable",
        "additionalProperties", "patternProperties", "$ref", "$defs", "definitions", "examples", "return",
    }
)  # fmt: skip
_NAMES: Final = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_TYPES: Final = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
"""Of JSON Schema: words that a template may ask for and that no special token is made of."""


@dataclass(frozen=True, slots=True)
class Written:
    """A run of a prompt, and who wrote it."""

    text: str
    by_template: bool


class Texts:
    """The clients' texts of one rendering."""

    def __init__(self) -> None:
        self._mark = secrets.token_hex(16)
        self._texts: list[str] = []
        self._places: dict[str, str] = {}
        self._find = re.compile(rf"{self._mark}:(\d+);", re.IGNORECASE)  # a template may ask for capitals

    def sentinel(self, text: str) -> str:
        """Stands for the text; the same for the same text, so that templates may compare."""
        text = _well_formed(text)
        if text not in self._places:
            self._places[text] = f"{self._mark}:{len(self._texts)};"
            self._texts.append(text)
        return self._places[text]

    def value(self, value: Any) -> Any:
        """A JSON value with sentinels for every key and string."""
        match value:
            case str():
                return self.sentinel(value)
            case Mapping():
                return {self.sentinel(key): self.value(child) for key, child in value.items()}
            case list() | tuple():
                return [self.value(child) for child in value]
            case _:
                return value

    def schema(self, schema: Any) -> Any:
        """A JSON schema with sentinels for everything but JSON Schema's own words."""
        if not isinstance(schema, Mapping):
            return [self.schema(child) for child in schema] if isinstance(schema, list | tuple) else self.value(schema)
        out: dict[str, Any] = {}
        for key, child in schema.items():
            if key in _NAMES and isinstance(child, Mapping):
                out[key] = {self.sentinel(name): self.schema(described) for name, described in child.items()}
            elif key == "type" and _TYPES.issuperset(child if isinstance(child, list | tuple) else (child,)):
                out[key] = child
            else:
                out[key if key in _KEYWORDS else self.sentinel(key)] = self.schema(child)
        return out

    def to_json(self, value: Any, **options: Any) -> str:
        """What the filter `tojson` gives: texts escaped as JSON has them. Brackets are the template's, which may cut
        them off."""
        options = {"ensure_ascii": False, **options}
        ascii_only = bool(options["ensure_ascii"])

        def escaped(found: re.Match[str]) -> str:
            return self.sentinel(json.dumps(self._texts[int(found[1])], ensure_ascii=ascii_only)[1:-1])

        return self._find.sub(escaped, json.dumps(value, **options))

    def split(self, rendered: str) -> list[Written]:
        """What was rendered, with the texts in their places."""
        return [
            Written(self._texts[int(piece)], by_template=False) if number % 2 else Written(piece, by_template=True)
            for number, piece in enumerate(self._find.split(rendered))
        ]

    def hidden(self, message: str) -> str:
        """A message of the template's, without sentinels."""
        return self._find.sub("…", message)


def _well_formed(text: str) -> str:
    """Half of a surrogate pair, which JSON can hold and UTF-8 cannot, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
