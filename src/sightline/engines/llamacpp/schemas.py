"""JSON schemas that llama.cpp may be given: it makes a grammar of each, in time that grows faster than the schema.

Measured: an object of 2,000 optional properties takes it 40 seconds, a choice between 20,000 texts more than 22; at the
limits here it is a tenth of a second. What is in a schema is a client's to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sightline.errors import InvalidRequest

MAX_BYTES = 64 * 1024
MAX_DEPTH = 32
"""Objects and lists inside each other, of JSON: two for each level of what is described."""
MAX_WIDTH = 256
"""Properties of an object, values to choose from."""


def check(schema: Mapping[str, Any] | None, param: str) -> None:
    """Raises `InvalidRequest` for a schema that is too much, or points elsewhere."""
    if schema is None:
        return
    _check_node(schema, MAX_DEPTH, param)
    if len(msgspec.json.encode(schema)) > MAX_BYTES:
        raise _too_much(f"is larger than {MAX_BYTES // 1024} KiB", param)


def _check_node(node: Any, levels: int, param: str) -> None:
    if not isinstance(node, Mapping | list | tuple):
        return
    if levels == 0:
        raise _too_much(f"is nested deeper than {MAX_DEPTH} levels", param)
    if len(node) > MAX_WIDTH:
        raise _too_much(f"has more than {MAX_WIDTH} properties or values in one place", param)
    children: Sequence[Any] = list(node.values()) if isinstance(node, Mapping) else node
    if isinstance(node, Mapping) and isinstance(target := node.get("$ref"), str) and not target.startswith("#"):
        raise InvalidRequest("A schema may refer to its own parts only ('$ref': '#/$defs/...').", param=param)
    for child in children:
        _check_node(child, levels - 1, param)


def _too_much(how: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"This schema {how}; this model's engine takes simpler ones.", param=param)
