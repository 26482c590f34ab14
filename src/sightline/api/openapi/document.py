"""The OpenAPI 3.1 document, from the routes of the application and the structs that they read and write.

    to_document(routes)   routes, with their rows in `operations.py` -> the document

Bodies of requests are described by the rules of their fields (`fields.py`), replies by their types (msgspec), both by
the texts below their fields. Not imported by a server: it reads source code.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import pairwise
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from starlette.routing import Route

from sightline import __version__
from sightline.access.gate import Gate
from sightline.api.app import to_dialects
from sightline.api.entrance import KEYLESS
from sightline.api.fields import Schema, to_rules, to_schema
from sightline.api.openapi.operations import APIS, Api, Operation
from sightline.api.ovms import ALIASES
from sightline.api.work import Work
from sightline.config import ModelConfig, Settings
from sightline.service import Service

Json = dict[str, Any]
Struct = type[msgspec.Struct]

_REF = "#/components/schemas/"
_ABOUT = """\
Vision-language models behind the APIs that programs already speak: any engine, one server. Pictures are understood
once, at the edge. Each API's errors have that API's shape; every answer has an `x-request-id`. Fields that are not
named here are ignored."""


def served_routes() -> list[Route]:
    """Every route of the application."""
    settings = Settings(models=(ModelConfig(name="m", engine="fake"),))
    dialects = to_dialects(Service(settings), settings, Work(settings), Gate(settings.access))
    return [route for dialect in dialects for route in dialect.routes]


def to_json() -> str:
    """The document of this version, as it lies in the package."""
    return json.dumps(to_document(served_routes()), indent=1, ensure_ascii=False) + "\n"


def to_document(routes: Iterable[Route]) -> Json:
    """Raises `LookupError` for a route without a row, and for a row without a route."""
    rows = dict(_rows(routes))
    schemas = Schemas(operation for _, operation in rows.values())
    paths: Json = {}
    for key, (api, operation) in rows.items():
        method, _, path = key.partition(" ")
        shown = re.sub(r"\{(\w+)(?::\w+)?\}", r"{\1}", path)
        paths.setdefault(shown, {})[method.lower()] = _to_operation(key, api, operation, schemas)
    _link(paths)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Sightline", "version": __version__, "description": _ABOUT, "license": _LICENSE},
        "servers": [{"url": "/"}],
        "tags": [{"name": api.name, "description": api.description} for api in APIS],
        "security": [{}, {"bearer": []}, {"x-api-key": []}],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "responses": {
                name: response
                for api in APIS
                for name, response in (
                    (api.error_name, _to_error_response(api, schemas)),
                    (f"{api.error_name}Limited", _to_limited_response(api, schemas)),
                )
            },
            "headers": {"x-request-id": _REQUEST_ID, **_RATE_HEADERS},
            "securitySchemes": _KEYS,
        },
    }


_LICENSE = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
_REQUEST_ID = {
    "description": "The request's id: the client's own, if it sent one; else a new one.",
    "schema": {"type": "string"},
}
_RATE_HEADERS = {
    "retry-after": {"description": "Seconds. Not there where waiting does not help.", "schema": {"type": "integer"}},
    **{
        name: {
            "description": f"Of the key: {what} of {kind} in a minute. Not there where it has no such limit.",
            "schema": {"type": "string"},
        }
        for kind in ("requests", "tokens")
        for what, suffix in (("the limit", "limit"), ("what is left", "remaining"), ("when all is back", "reset"))
        for name in (f"x-ratelimit-{suffix}-{kind}", f"anthropic-ratelimit-{kind}-{suffix}")
    },
}
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


# --- operations ------------------------------------------------------------------------------------------------------


def _rows(routes: Iterable[Route]) -> Iterator[tuple[str, tuple[Api, Operation]]]:
    """Every operation by its method and path. Those of OVMS that are ours under other paths have no rows of theirs."""
    table = {key: (api, operation) for api in APIS for key, operation in api.operations.items()}
    ovms = next(api for api in APIS if "GET /v1/config" in api.operations)
    ours = {alias: path for path, alias in ALIASES.items()}
    unused = set(table)
    for route in routes:
        for method in sorted((route.methods or set()) - {"HEAD"} or {"HEAD"}):
            key, path = f"{method} {route.path}", ours.get(route.path, route.path)
            unused.discard(key)
            if f"{method} {path}" not in table:
                raise LookupError(f"{key} has no row in operations.py; see Operation there.")
            api, operation = table[f"{method} {path}"]
            yield key, (ovms if route.path in ours else api, operation)
    if unused:
        raise LookupError(f"operations.py has rows for routes that are not there: {', '.join(sorted(unused))}.")


def _to_operation(key: str, api: Api, operation: Operation, schemas: Schemas) -> Json:
    method, _, path = key.partition(" ")
    shown: Json = {
        "operationId": re.sub(r"\W+", "_", method.lower() + re.sub(r":\w+", "", path)).strip("_"),
        "tags": [api.name],
        "summary": operation.summary,
    }
    if operation.description:
        shown["description"] = operation.description
    parameters = [_to_path_parameter(name) for name in re.findall(r"\{(\w+)", path)]
    parameters += [_to_query_parameter(name, schemas.of_read(schema)) for name, schema in operation.query.items()]
    if parameters:
        shown["parameters"] = parameters
    if operation.body is not None:
        shown["requestBody"] = {
            "required": True,
            "content": _content("application/json", schemas.of_read(operation.body)),
        }
    if operation.form is not None:
        shown["requestBody"] = {
            "required": True,
            "content": _content("multipart/form-data", _with_files(operation, schemas)),
        }
    own_error = {"$ref": f"#/components/responses/{api.error_name}"}
    limited = {"$ref": f"#/components/responses/{api.error_name}Limited"}
    if path in KEYLESS:
        shown["security"] = [{}]
    shown["responses"] = {
        **({} if operation.is_refused else {str(operation.status): _to_response(operation, schemas)}),
        **({} if path in KEYLESS else {"401": own_error, "403": own_error, "429": limited}),
        "4XX": own_error,
        "5XX": own_error,
    }
    return shown


def _link(paths: Json) -> None:
    """Says of what a POST makes, where there are operations on one of it by its `id`, which they are."""
    for path, methods in paths.items():
        below = [op for other, each in paths.items() if other.startswith(path + "/{id}") for op in each.values()]
        if "post" in methods and below:
            made = next(response for status, response in methods["post"]["responses"].items() if status < "3")
            made["links"] = {
                op["operationId"]: {"operationId": op["operationId"], "parameters": {"id": "$response.body#/id"}}
                for op in below
            }


def _to_path_parameter(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _to_query_parameter(name: str, schema: Json) -> Json:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _with_files(operation: Operation, schemas: Schemas) -> Json:
    """The form's text fields, those that may stand in the query among them, and its files."""
    fields = schemas.of_read(operation.form)
    files = {name: {"type": "string", "format": "binary"} for name in operation.files}
    return {"allOf": [fields, {"type": "object", "properties": files, "required": list(files)}]}


def _to_response(operation: Operation, schemas: Schemas) -> Json:
    content: Json = {}
    if operation.reply is not None:
        content |= _content(operation.reply_type, schemas.of_written(operation.reply))
    if operation.events is not None:
        event = schemas.of_written(operation.events)
        content[operation.events_type] = {"x-event-schema": event}  # OpenAPI has a place of its own for it from 3.2 on
    response: Json = {"description": operation.reply_description, "headers": _HEADERS}
    return {**response, "content": content} if content else response


def _to_error_response(api: Api, schemas: Schemas) -> Json:
    description = f"An error, as {api.name} tells it."
    return {
        "description": description,
        "headers": _HEADERS,
        "content": _content("application/json", schemas.of_written(api.error)),
    }


def _to_limited_response(api: Api, schemas: Schemas) -> Json:
    prefix = "anthropic-ratelimit" if api.name == "Anthropic" else "x-ratelimit"
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in _RATE_HEADERS if name.startswith(prefix)}
    waits = {"retry-after": {"$ref": "#/components/headers/retry-after"}}
    error = _to_error_response(api, schemas)
    return {
        **error,
        "description": "The key's rate or its budget of the day is used up, or too much runs.",
        "headers": {**error["headers"], **waits, **headers},
    }


_HEADERS = {"x-request-id": {"$ref": "#/components/headers/x-request-id"}}


def _content(media_type: str, schema: Json) -> Json:
    return {media_type: {"schema": schema}}


# --- schemas ---------------------------------------------------------------------------------------------------------


class Schemas:
    """The schemas of all bodies, each under the name of its struct; where two have one name, with their modules'."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        operations = list(operations)
        self._forms = {o.form for o in operations}
        requests = list(
            dict.fromkeys(structs_read(part for o in operations for part in (o.body, o.form, *o.query.values())))
        )
        written = [*(part for o in operations for part in (o.reply, o.events)), *(api.error for api in APIS)]
        replies = list(dict.fromkeys(structs_written(written)))
        taken = Counter(struct.__name__ for struct in {*requests, *replies})
        names = {s: s.__name__ if taken[s.__name__] == 1 else _long_name(s) for s in (*requests, *replies)}
        self._written_names = {struct: names[struct] for struct in replies}
        self._read_names = {s: f"{names[s]}Sent" if s in self._written_names else names[s] for s in requests}
        components = {name: self._to_object(s, self._read_fields(s)) for s, name in self._read_names.items()}
        components |= {name: self._to_object(s, self._written_fields(s)) for s, name in self._written_names.items()}
        self.components = dict(sorted(components.items()))

    def of_read(self, schema: Schema | None) -> Json:
        """The schema of what is sent here."""
        if isinstance(schema, type):
            return {"$ref": _REF + self._read_names[schema]}
        return {key: self._within(value) for key, value in (schema or {}).items()}

    def of_written(self, kind: Any) -> Json:
        """The schema of what is answered: of a type, as msgspec writes its values."""
        if isinstance(kind, Mapping):
            return dict(kind)
        origin, arguments = get_origin(kind), get_args(kind)
        if origin in (Union, UnionType):
            options = [self.of_written(each) for each in arguments if each is not msgspec.UnsetType]
            return options[0] if len(options) == 1 else {"anyOf": options}
        if origin is Annotated:
            return self.of_written(arguments[0])
        if origin is Literal:
            return {"enum": list(arguments)}
        if origin in (list, tuple):
            return {"type": "array", **({"items": self.of_written(arguments[0])} if arguments else {"maxItems": 0})}
        if origin in (dict, Mapping):
            return {"type": "object", "additionalProperties": self.of_written(arguments[1])}
        return {"$ref": _REF + self._written_names[kind]} if kind in self._written_names else dict(_PLAIN[kind])

    def _within(self, value: Any) -> Any:
        if isinstance(value, Mapping | type):
            return self.of_read(value)
        return [self._within(item) for item in value] if isinstance(value, list | tuple) else value

    def _read_fields(self, struct: Struct) -> Iterator[tuple[str, bool, Json]]:
        """Name, whether it must be there, and schema."""
        rules = to_rules(struct)
        is_form = struct in self._forms  # which has texts and files only, and lists by their names
        for field in msgspec.structs.fields(struct):
            if field.name in rules:
                taken = self.of_read(to_schema(rules[field.name]))
                schema = taken if field.required or is_form else _or_null(taken)
                if taken.get("type") == _KINDS.get(type(field.default), ""):
                    schema = {**schema, "default": field.default}
                is_list = is_form and taken.get("type") == "array"
                yield field.name + "[]" * is_list, field.required, schema

    def _written_fields(self, struct: Struct) -> Iterator[tuple[str, bool, Json]]:
        for field in msgspec.structs.fields(struct):
            schema = self.of_written(field.type)
            if field.name in ("type", "object") and isinstance(field.default, str):
                schema = {"const": field.default}
            yield field.encode_name, msgspec.UnsetType not in get_args(field.type), schema

    def _to_object(self, struct: Struct, fields: Iterator[tuple[str, bool, Json]]) -> Json:
        meanings = _meanings(struct)
        properties, required = Json(), list[str]()
        for name, is_required, schema in fields:
            properties[name] = {**schema, "description": meanings[name]} if name in meanings else schema
            required += [name] * is_required
        shown: Json = {"title": struct.__name__, "type": "object", "properties": properties}
        if struct.__doc__:
            shown["description"] = " ".join(struct.__doc__.split())
        return {**shown, "required": required} if required else shown


_KINDS = {str: "string", int: "integer", float: "number", bool: "boolean"}
"""Types of defaults that are told: of fields that hold what was sent, not what a rule has made of it."""
_PLAIN: Mapping[Any, Json] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
    dict: {"type": "object"},
    Any: {},
    object: {},
}


def _long_name(struct: Struct) -> str:
    module = struct.__module__.removeprefix("sightline.api.").replace(".", "_")
    return f"{module}.{struct.__name__}"


def _or_null(schema: Json) -> Json:
    """A field that may be left out may be null as well."""
    if not schema or schema.get("type") == "null":
        return schema
    if isinstance(schema.get("type"), str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def structs_read(schemas: Iterable[Any], seen: set[Struct] | None = None) -> Iterator[Struct]:
    """Every struct that requests are read by, those within others included."""
    seen = set() if seen is None else seen
    for schema in schemas:
        if isinstance(schema, Mapping):
            yield from structs_read(schema.values(), seen)
        elif isinstance(schema, list | tuple):
            yield from structs_read(schema, seen)
        elif isinstance(schema, type) and schema not in seen:
            seen.add(schema)
            yield schema
            yield from structs_read(map(to_schema, to_rules(schema).values()), seen)


def structs_written(kinds: Iterable[Any], seen: set[Struct] | None = None) -> Iterator[Struct]:
    """Every struct that replies are made of."""
    seen = set() if seen is None else seen
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in seen:
            seen.add(kind)
            yield kind
            yield from structs_written((field.type for field in msgspec.structs.fields(kind)), seen)
        elif get_origin(kind) is not Literal:
            yield from structs_written(get_args(kind), seen)


def _meanings(struct: Struct) -> dict[str, str]:
    """The texts below a struct's fields, those of its bases included."""
    found: dict[str, str] = {}
    for each in reversed(struct.__mro__):
        if issubclass(each, msgspec.Struct) and each is not msgspec.Struct:
            for field, text in pairwise(_classes(each.__module__)[each.__name__].body):
                match field, text:
                    case ast.AnnAssign(), ast.Expr(value=ast.Constant(value=str(meaning))):
                        found[ast.unparse(field.target)] = " ".join(meaning.split())
    return found


@cache
def _classes(module: str) -> dict[str, ast.ClassDef]:
    """The classes of a module as they are written."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
