"""Schemathesis against a server on the fake engine: `python -m tests.foreign.schemathesis_run`.

By our own document (`/openapi.json`), every operation; by OpenAI's, those that are served here:

    python -m tests.foreign.schemathesis_run --openai FILE      openapi.yaml or .json of openai/openai-openapi

Every case must be answered without a server error, with a status and a body that the document has; by our document,
what breaks its schemas must be refused, too. What is found all the same stands in `ACCEPTED`, with the reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.foreign.suite import WORK, server, virtual_environment

VERSION = "4.32.5"
MODEL = "m"
CONFIGURATION = f"""
models:
  - name: {MODEL}
    engine: fake
"""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)
OUR_CHECKS = (
    *CHECKS,
    "unsupported_method",
    "allow_header_conformance",
    "negative_data_rejection",
    "use_after_free",
    "ensure_resource_availability",
)
SETTINGS = """
[checks.negative_data_rejection]
# 412 is what OVMS answers to a body that it cannot read far enough to see which model it is for.
expected-statuses = [400, 401, 403, 404, 405, 409, 412, 413, 415, 422, 429]
"""
NOT_SERVED: Mapping[str, str] = {
    "GET /chat/completions": "chat completions are not kept; /responses are",
    "DELETE /models/{model}": "models are the operator's",
    "/files": "files come with batches",
    "/batches": "batches come with the jobs",
}
"""Operations of OpenAI's document that we decline, or a beginning of their paths, and why."""
_EMPTY = "of an empty list the first and last id are null"
_FILE = "the purpose 'evals' may be sent, but not told; a file that does not expire says null"
ACCEPTED: Mapping[tuple[str, str], str] = {
    ("POST /embeddings", "ST108"): "a vector asked for in base64 is a text; OpenAI's document has arrays only",
    ("POST /analyze/async", "ST201"): "whether there is such a model is told by the job, which fails",
    ("GET /batches", "ST108"): _EMPTY,
    ("GET /files", "ST108"): f"{_EMPTY}; {_FILE}",
    ("GET /files/{file_id}", "ST108"): _FILE,
    ("POST /files", "ST108"): _FILE,
    ("GET /files/{file_id}/content", "ST105"): "a file's content is its bytes, not JSON",
}
"""What may be found: (operation, code of the finding) and why."""

Json = dict[str, Any]


# --- documents, made ready for a run ---------------------------------------------------------------------------------


def ask_for_our_model(document: Json) -> Json:
    """With the one model that there is in place of any text, or nearly every case would be a 404."""
    for schema in _sent(document):
        properties = schema.get("properties", {})
        if "model" in properties:
            may_be_null = "null" in properties["model"].get("type", ())
            properties["model"] = {"enum": [MODEL, None] if may_be_null else [MODEL]}
    return document


def _sent(document: Json) -> Iterator[Json]:
    """The schemas of bodies of requests, references followed."""
    waiting = [
        media["schema"]
        for methods in document["paths"].values()
        for operation in methods.values()
        for media in operation.get("requestBody", {}).get("content", {}).values()
    ]
    seen: set[str] = set()
    while waiting:
        schema = waiting.pop()
        if (name := schema.get("$ref")) is not None:
            if name not in seen:
                seen.add(name)
                waiting.append(document["components"]["schemas"][name.rpartition("/")[2]])
            continue
        yield schema
        waiting += [part for key in ("allOf", "anyOf", "oneOf") for part in schema.get(key, ())]


def cut_to_served(document: Json, ours: Json) -> tuple[Json, dict[str, str]]:
    """OpenAI's document with the operations that are served here, and those that are not, with the reason.

    Its operations name few errors, and one of them without its wrapper: each gets all, as the SDKs read them. Its own
    example of a batch has nulls that its schema forbids: they are allowed.
    """
    batch = document["components"]["schemas"].get("Batch", {"properties": {}})
    for name in batch["properties"].keys() - set(batch.get("required", ())):
        batch["properties"][name] = {"anyOf": [batch["properties"][name], {"type": "null"}]}
    declined: dict[str, str] = {}
    paths: Json = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            name = f"{method.upper()} {path}"
            shown = {key.replace("{id}", "{}") for key in ours["paths"] if method in ours["paths"][key]}
            if f"/v1{path.partition('{')[0]}{'{}' if '{' in path else ''}{path.partition('}')[2]}" in shown:
                answered = {status: r for status, r in operation["responses"].items() if status.startswith("2")}
                errors = {"4XX": _ERROR, "5XX": _ERROR}
                paths.setdefault(path, {})[method] = {**operation, "responses": {**answered, **errors}}
            else:
                reasons = (why for what, why in NOT_SERVED.items() if name == what or path.startswith(what))
                declined[name] = next(reasons, "not served here")
    return {**document, "paths": paths, "servers": [{"url": "/v1"}], "security": []}, declined


_ERROR = {
    "description": "error",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
}


# --- runs ------------------------------------------------------------------------------------------------------------


def run(name: str, document: Json, url: str, checks: tuple[str, ...], args: argparse.Namespace) -> int:
    """Prints the counts, and what was found; 1 for anything that is not accepted."""
    folder = WORK / "schemathesis"
    python = virtual_environment(folder / "venv", [f"schemathesis=={VERSION}"])
    (folder / "schemathesis.toml").write_text(SETTINGS)
    file, result = folder / f"{name}.json", folder / f"{name}-result.json"
    file.write_text(json.dumps(document))
    result.unlink(missing_ok=True)
    command = [
        *(str(python.with_name("schemathesis")), "--config-file", str(folder / "schemathesis.toml"), "run", str(file)),
        *("--url", url, "--phases", args.phases, "--max-examples", str(args.examples), "--seed", str(args.seed)),
        *("--checks", ",".join(checks), "--continue-on-failure", "--no-color", "--warnings", "off"),
        *("--report", "json", "--report-json-path", str(result)),
    ]
    with (folder / f"{name}.log").open("w") as log:
        subprocess.run(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=False)
    if not result.exists():
        sys.exit(f"schemathesis did not run: see {folder / f'{name}.log'}")
    return tell(name, json.loads(result.read_text()))


def tell(name: str, result: Json) -> int:
    """Prints the counts; the exit status."""
    wrong, accepted = 0, 0
    for failure in result["failures"]:
        for operation in failure["operations"]:
            label = operation if isinstance(operation, str) else operation["label"]
            reason = ACCEPTED.get((label, failure["code"]))
            accepted += reason is not None
            wrong += reason is None
            print(f"{'accepted' if reason else 'FOUND'}: {label}: {failure['code']} {failure['title']} {reason or ''}")
    operations, cases = result["operations"], result["test_cases"]
    print(
        f"{name}: {operations['tested']} operations, {cases['generated']} cases: {wrong} findings, "
        f"{accepted} accepted, {len(result['errors'])} errors, {result['running_time']:.0f} s"
    )
    return 1 if wrong or result["errors"] or not cases["generated"] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openai", type=Path, metavar="FILE", help="OpenAI's document, instead of ours")
    parser.add_argument("--phases", default="coverage,fuzzing,stateful", help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=50, help="fuzzed cases an operation (default: 50)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with server(CONFIGURATION, WORK / "schemathesis") as url:
        ours: Json = json.load(urllib.request.urlopen(f"{url}/openapi.json"))
        if args.openai is None:
            return run("ours", ask_for_our_model(ours), url, OUR_CHECKS, args)
        document, declined = cut_to_served(yaml.safe_load(args.openai.read_text()), ours)
        for operation, reason in declined.items():
            print(f"declined: {operation}: {reason}")
        return run("openai", ask_for_our_model(document), f"{url}/v1", CHECKS, args)


if __name__ == "__main__":
    sys.exit(main())
