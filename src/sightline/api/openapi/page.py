"""The OpenAPI document as one page of HTML: no scripts, and nothing that is loaded from anywhere. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Json = Mapping[str, Any]

_REF = "#/components/schemas/"
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 62rem; padding: 1.5rem; }
code, .path { font: .92em ui-monospace, monospace; overflow-wrap: anywhere; }
h1, h2, h3 { line-height: 1.25; } h2 { margin-top: 3rem; border-bottom: 1px solid var(--line); }
nav ul { columns: 2 20rem; padding-left: 1.2rem; } nav li { break-inside: avoid; }
table { border-collapse: collapse; width: 100%; font-size: .92em; }
td, th { border-top: 1px solid var(--line); padding: .35rem .6rem .35rem 0; text-align: left; vertical-align: top; }
details { border: 1px solid var(--line); border-radius: .4rem; margin: .6rem 0; padding: .4rem .8rem; }
summary { cursor: pointer; } summary b { display: inline-block; min-width: 4.2rem; }
p { margin: .4rem 0; }
.must::after { content: " *"; color: #c33; }
"""


def to_page(document: Json) -> str:
    info, schemas = document["info"], document["components"]["schemas"]
    body = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>",
        _paragraph(info["description"]),
        '<p>For programs: <a href="openapi.json">openapi.json</a>. Fields marked with * must be there.</p>',
        *_contents(document),
    ]
    for tag in document["tags"]:
        body += [f'<h2 id="{_anchor(tag["name"])}">{escape(tag["name"])}</h2>', _paragraph(tag["description"])]
        for method, path, operation in _operations(document, tag["name"]):
            body += _operation(document, method, path, operation)
    body.append('<h2 id="schemas">Objects</h2>')
    for name, schema in schemas.items():
        body += [f'<h3 id="schema-{escape(name)}"><code>{escape(name)}</code></h3>', *_object(schema)]
    title = escape(info["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


# --- operations ------------------------------------------------------------------------------------------------------


def _operations(document: Json, tag: str) -> Iterator[tuple[str, str, Json]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if tag in operation["tags"]:
                yield method.upper(), path, operation


def _contents(document: Json) -> Iterator[str]:
    yield "<nav>"
    for tag in document["tags"]:
        yield f'<p><a href="#{_anchor(tag["name"])}"><b>{escape(tag["name"])}</b></a></p><ul>'
        for method, path, operation in _operations(document, tag["name"]):
            yield f'<li><a class="path" href="#{operation["operationId"]}">{method} {escape(path)}</a></li>'
        yield "</ul>"
    yield "</nav>"


def _operation(document: Json, method: str, path: str, operation: Json) -> Iterator[str]:
    yield (
        f'<details open id="{operation["operationId"]}"><summary><b>{method}</b> '
        f'<span class="path">{escape(path)}</span><br>{escape(operation["summary"])}</summary>'
    )
    if "description" in operation:
        yield _paragraph(operation["description"])
    if "parameters" in operation:
        yield "<p><b>In the address</b></p>"
        fields = {each["name"]: each["schema"] for each in operation["parameters"]}
        yield from _fields(fields, {each["name"] for each in operation["parameters"] if each["required"]})
    if "requestBody" in operation:
        yield from _contents_of("Body", operation["requestBody"]["content"])
    for status, response in operation["responses"].items():
        if "$ref" in response:  # of errors, which are the same for every status
            continue
        if "content" in response:
            yield from _contents_of(status, response["content"])
        else:
            yield f"<p><b>{status}</b>, an empty body</p>"
    error = document["components"]["responses"][operation["responses"]["4XX"]["$ref"].rpartition("/")[2]]
    yield from _contents_of("Errors", error["content"])
    yield "</details>"


def _contents_of(title: str, content: Json) -> Iterator[str]:
    for media_type, media in content.items():
        what = _type(media["schema"]) if "schema" in media else f"a stream of {_type(media['x-event-schema'])}"
        yield f"<p><b>{escape(title)}</b>, <code>{escape(media_type)}</code>: {what}</p>"


# --- schemas ---------------------------------------------------------------------------------------------------------


def _object(schema: Json) -> Iterator[str]:
    if "description" in schema:
        yield _paragraph(schema["description"])
    yield from _fields(schema.get("properties", {}), set(schema.get("required", ())))


def _fields(fields: Json, required: set[str]) -> Iterator[str]:
    if fields:
        yield "<table>"
        for name, schema in fields.items():
            must = ' class="must"' if name in required else ""
            default = "" if "default" not in schema else f" Default: <code>{escape(str(schema['default']))}</code>."
            meaning = _inline(schema.get("description", "")) + default
            yield f"<tr><td><code{must}>{escape(name)}</code></td><td>{_type(schema)}</td><td>{meaning}</td></tr>"
        yield "</table>"


def _type(schema: Json) -> str:
    """What a value may be, in a few words of HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].removeprefix(_REF))
        return f'<a href="#schema-{name}"><code>{name}</code></a>'
    for several, word in (("anyOf", " or "), ("oneOf", " or "), ("allOf", " with ")):
        if several in schema:
            return word.join(_type(each) for each in schema[several])
    if "const" in schema:
        return f"<code>{escape(str(schema['const']))}</code>"
    if "enum" in schema:
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in schema["enum"])
    kinds = schema.get("type", "anything")
    shown = kinds if isinstance(kinds, str) else " or ".join(kinds)
    if schema.get("format") == "binary":
        shown = "a file"
    if "items" in schema:
        shown = shown.replace("array", f"array of {_type(schema['items'])}")
    elif isinstance(schema.get("additionalProperties"), Mapping):
        shown = f"object of {_type(schema['additionalProperties'])}"
    elif "properties" in schema:
        names = (f"<code>{escape(name)}</code>: {_type(each)}" for name, each in schema["properties"].items())
        shown = f"object ({', '.join(names)})"
    return shown + _bounds(schema)


def _bounds(schema: Json) -> str:
    words = {
        "minimum": "from {}",
        "exclusiveMinimum": "above {}",
        "maximum": "to {}",
        "minLength": "{} characters or more",
        "maxLength": "at most {} characters",
        "minItems": "{} or more",
        "maxItems": "at most {}",
    }
    said = [text.format(f"{schema[key]:g}") for key, text in words.items() if key in schema]
    return f" ({', '.join(said)})" if said else ""


# --- text ------------------------------------------------------------------------------------------------------------


def _paragraph(text: str) -> str:
    return f"<p>{_inline(text)}</p>"


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name.lower())
