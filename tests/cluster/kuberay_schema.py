"""Makes rayservice.schema.json of KubeRay's own: `python tests/cluster/kuberay_schema.py CRD.yaml`.

The file is ray-operator/config/crd/bases/ray.io_rayservices.yaml of https://github.com/ray-project/kuberay, which is
under the Apache License 2.0. Made of it is its `ray.io/v1` as JSON Schema: without status, parts that are alike told
once, and with no field allowed that Kubernetes would silently drop.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

RELEASE = "v1.7.0-rc.0"
OUT = Path(__file__).with_name("rayservice.schema.json")
KEPT = ("type", "required", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems")
ALIKE = 200
"""Characters from which on parts that are alike are told once."""


def strict(node: dict[str, Any]) -> dict[str, Any]:
    """Kubernetes' structural schema as JSON Schema 2020-12."""
    made: dict[str, Any] = {key: node[key] for key in KEPT if key in node}
    if "properties" in node:
        made["properties"] = {name: strict(child) for name, child in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    if "items" in node:
        made["items"] = strict(node["items"])
    if isinstance(node.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(node["additionalProperties"])
    if node.get("x-kubernetes-int-or-string"):
        made.pop("type", None)
        made["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return made


def shared(node: Any, definitions: dict[str, dict[str, Any]]) -> Any:
    """The same schema, its larger parts in `definitions` by what they say."""
    if isinstance(node, list):
        return [shared(child, definitions) for child in node]
    if not isinstance(node, dict):
        return node
    made = {key: shared(child, definitions) for key, child in node.items()}
    text = json.dumps(made, sort_keys=True)
    if len(text) < ALIKE or not {"type", "properties"} & made.keys() or not isinstance(made.get("type"), str):
        return made
    name = f"d{len(definitions)}"
    return {"$ref": f"#/$defs/{definitions.setdefault(text, {'name': name, 'schema': made})['name']}"}


def main(crd: Path) -> None:
    (version,) = (v for v in yaml.safe_load(crd.read_text())["spec"]["versions"] if v["name"] == "v1")
    whole = strict(version["schema"]["openAPIV3Schema"])
    del whole["properties"]["status"]
    whole["properties"]["metadata"] = {"type": "object"}
    whole["required"] = ["apiVersion", "kind", "metadata", "spec"]
    definitions: dict[str, dict[str, Any]] = {}
    parts = {name: shared(child, definitions) for name, child in whole["properties"].items()}
    made = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$comment": f"Of KubeRay {RELEASE}, Copyright the KubeRay Authors, Apache-2.0. Made by kuberay_schema.py.",
        **whole,
        "properties": parts,
        "$defs": {definition["name"]: definition["schema"] for definition in definitions.values()},
    }
    OUT.write_text(json.dumps(made, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
