"""The JSON schema of `sightline.yaml`, for editors."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import msgspec

from sightline.config import PEEK, ModelConfig, Settings
from sightline.engines import engine_names, find_entry
from sightline.errors import InvalidRequest


def options_type(where: str) -> type[msgspec.Struct]:
    """The struct of an engine's options: `where` is `EngineEntry.options`."""
    module, _, name = where.partition(":")
    found: type[msgspec.Struct] = getattr(import_module(module), name)
    return found


def _options_of(engine: str) -> str | None:
    try:
        return find_entry(engine).options
    except InvalidRequest:  # another package's, which cannot be used: whoever names it is told why
        return None


def schema() -> dict[str, Any]:
    """The file's JSON schema (2020-12), the options of each engine by the engine's name: of those that are here."""
    told = {name: where for name in engine_names() if (where := _options_of(name)) is not None}
    kinds = [Settings, *map(options_type, told.values())]
    schemas, parts = msgspec.json.schema_components(kinds, ref_template="#/$defs/{name}")
    model = parts["ModelConfig"]
    model["properties"]["engine"]["enum"] = sorted(engine_names())
    # The default engine is `openvino`: its rule holds where `engine` is left out, too; others want it written.
    model["allOf"] = [
        {
            "if": {
                "properties": {"engine": {"const": engine}},
                "required": [] if engine == ModelConfig(name=PEEK).engine else ["engine"],
            },
            "then": {"properties": {"options": options}},
        }
        for engine, options in zip(told, schemas[1:], strict=True)
    ]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sightline.yaml",
        **schemas[0],
        "$defs": dict(parts),
    }
