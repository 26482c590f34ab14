"""The OpenAPI document: true to the routes, to what they read and to what they answer; and the page made of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from typing import Annotated, Any

import msgspec
import pytest
from jsonschema import Draft202012Validator
from starlette.routing import Route

from sightline.api.fields import (
    anything,
    array,
    described,
    integer,
    number,
    one_of,
    read,
    refused,
    string,
    struct,
    to_rules,
    to_schema,
)
from sightline.api.openapi import served as openapi
from sightline.api.openapi.document import Schemas, served_routes, structs_read, to_document, to_json
from sightline.api.openapi.operations import APIS, Operation
from sightline.errors import RequestError
from sightline.models import ModelStatus
from tests.api.standin import HELLO, INFO, ScriptedService, app_of, chat, get, post

pytestmark = pytest.mark.anyio

DOCUMENT = json.loads(openapi.FILE.read_text())


def validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator({**schema, "components": DOCUMENT["components"]})


def walk(value: Any) -> Iterator[Any]:
    yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(item)


# --- the document ----------------------------------------------------------------------------------------------------


def test_it_is_up_to_date() -> None:
    assert openapi.FILE.read_text() == to_json(), (
        "src/sightline/api/openapi/openapi.json is old: python docs/generate.py"
    )


def test_every_route_is_in_it_and_nothing_else() -> None:
    served = {
        (method, re.sub(r":\w+", "", route.path))
        for route in served_routes()
        for method in (route.methods or set()) - {"HEAD"}
    }
    told = {(method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods}
    assert told == served


def test_a_route_without_a_row_is_an_error_and_so_is_a_row_without_a_route() -> None:
    routes = served_routes()
    with pytest.raises(LookupError, match="POST /v1/new has no row"):
        to_document([*routes, Route("/v1/new", lambda request: None, methods=["POST"])])
    with pytest.raises(LookupError, match=r"not there: GET /health\.$"):
        to_document([route for route in routes if route.path != "/health"])


def test_every_reference_leads_somewhere_and_every_object_is_used() -> None:
    used = {value["$ref"] for value in walk(DOCUMENT) if isinstance(value, dict) and isinstance(value.get("$ref"), str)}
    there = {f"#/components/{kind}/{name}" for kind, each in DOCUMENT["components"].items() for name in each}
    assert used <= there
    assert {name for name in there if name.startswith("#/components/schemas/")} <= used
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


def test_what_is_made_is_linked_to_what_can_be_done_with_it() -> None:
    links = DOCUMENT["paths"]["/v1/responses"]["post"]["responses"]["200"]["links"]
    assert links["get_v1_responses_id"]["parameters"] == {"id": "$response.body#/id"}
    assert "delete_v1_responses_id" in links


def test_every_default_is_what_its_field_takes() -> None:
    defaults = [value for value in walk(DOCUMENT) if isinstance(value, dict) and "default" in value]
    assert len(defaults) > 50
    for schema in defaults:
        validator(schema).validate(schema["default"])


def test_operations_have_names_of_their_own() -> None:
    names = [operation["operationId"] for methods in DOCUMENT["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


# --- what is read ----------------------------------------------------------------------------------------------------


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    at: Annotated[int, integer(0, 9)]


@described({"anyOf": [{"type": "string"}, Inner]})
def either(value: Any, at: str) -> Any:
    return value if isinstance(value, str) else read(Inner, value, at)


class Outer(msgspec.Struct, frozen=True, kw_only=True):
    """An example."""

    name: Annotated[str, string(min_length=1, max_length=5)]
    """What it is called."""
    part: Annotated[Any, one_of("a", "b")] = "a"
    share: Annotated[float, number(0, 1, above=True)] = 0.5
    inner: Annotated[Inner | None, struct(Inner)] = None
    many: Annotated[tuple[Inner, ...], array(struct(Inner), min_length=1, max_length=2)] = ()
    any: Annotated[Any, anything] = None
    either: Annotated[Any, either] = None
    old: Annotated[None, refused("use 'name'.")] = None


SCHEMAS = Schemas([Operation(summary="", body=Outer)])


@pytest.mark.parametrize(
    "value",
    [
        {"name": "n"}, {}, {"name": ""}, {"name": "abcdef"}, {"name": None}, {"name": 5}, {"name": "n", "more": 1},
        {"name": "n", "part": "b"}, {"name": "n", "part": "c"}, {"name": "n", "part": None},
        {"name": "n", "share": 0}, {"name": "n", "share": 1}, {"name": "n", "share": True},
        {"name": "n", "inner": {"at": 9}}, {"name": "n", "inner": {"at": 10}}, {"name": "n", "inner": {}},
        {"name": "n", "many": []}, {"name": "n", "many": [{"at": 1}]}, {"name": "n", "many": [{"at": 1}] * 3},
        {"name": "n", "any": [1]}, {"name": "n", "old": 1}, {"name": "n", "old": None},
        {"name": "n", "either": "x"}, {"name": "n", "either": {"at": 1}}, {"name": "n", "either": {"at": "1"}},
        {"name": "n", "either": 5}, [], "text",
    ],
)  # fmt: skip
def test_a_body_is_described_as_it_is_read(value: Any) -> None:
    schema = {**SCHEMAS.of_read(Outer), "components": {"schemas": SCHEMAS.components}}
    try:
        read(Outer, value)
    except RequestError:
        assert not Draft202012Validator(schema).is_valid(value)
    else:
        assert Draft202012Validator(schema).is_valid(value)


def test_a_field_of_a_form_cannot_be_null() -> None:
    form = Schemas([Operation(summary="", form=Outer)])
    assert "many[]" in form.components["Outer"]["properties"]
    assert form.components["Outer"]["properties"]["part"] == {"type": "string", "enum": ["a", "b"], "default": "a"}


def test_every_field_says_what_it_takes() -> None:
    """Or the document would say that anything is taken. A rule of your own says so by `@described`."""
    operations = [operation for api in APIS for operation in api.operations.values()]
    structs = set(structs_read(part for o in operations for part in (o.body, o.form, *o.query.values())))
    silent = [
        f"{struct.__module__}.{struct.__name__}.{name}"
        for struct in structs
        for name, rule in to_rules(struct).items()
        if {} in (to_schema(rule), *walk(to_schema(rule)))
    ]
    assert not silent


def test_what_fields_mean_is_told() -> None:
    outer = SCHEMAS.components["Outer"]
    assert outer["description"] == "An example."
    assert outer["properties"]["name"]["description"] == "What it is called."
    assert outer["properties"]["share"]["default"] == 0.5
    assert "use 'name'." in outer["properties"]["old"]["description"]


# --- what is answered ------------------------------------------------------------------------------------------------


def reply_of(method: str, path: str, status: int) -> Draft202012Validator:
    responses = DOCUMENT["paths"][path][method.lower()]["responses"]
    response = responses.get(str(status)) or responses[f"{status // 100}XX"]
    if "$ref" in response:
        response = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
    return validator(response["content"]["application/json"]["schema"])


MESSAGE = {"role": "user", "content": "hi"}
ANTHROPIC = {"model": "m", "max_tokens": 5, "messages": [MESSAGE]}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat()), ("/v1/chat/completions", chat(temperature=9)),
        ("/v1/chat/completions/input_tokens", chat()), ("/v3/chat/completions", chat()),
        ("/v3/chat/completions", chat(model=5)), ("/v1/responses", {"model": "m", "input": "hi"}),
        ("/v1/messages", ANTHROPIC), ("/v1/messages", {}), ("/v1/messages/count_tokens", ANTHROPIC),
        ("/api/chat", {"model": "m", "messages": [MESSAGE], "stream": False}), ("/api/chat", {}),
        ("/api/generate", {"model": "m", "prompt": "hi", "stream": False}), ("/api/show", {"model": "m"}),
        ("/analyze", {"prompt": "a", "image_base64": "aGk="}), ("/analyze", {}),
    ],
)  # fmt: skip
async def test_replies_are_as_described(path: str, body: Any) -> None:
    reply = await post(app_of(ScriptedService(HELLO)), body, path)
    schema = reply_of("POST", path, reply.status)
    schema.validate(reply.json)
    assert not schema.is_valid({}), "the description says something"


async def test_what_may_be_left_out_of_a_reply_need_not_be_there() -> None:
    silent = ModelStatus("m", "ready", "scripted", 1, replace(INFO, weights_digest=None))
    reply = await post(app_of(ScriptedService(HELLO, statuses=(silent,))), chat())
    assert "system_fingerprint" not in reply.json
    reply_of("POST", "/v1/chat/completions", 200).validate(reply.json)


@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/v3/models", "/v1/config", "/v2", "/health", "/ready", "/api/tags", "/api/ps", "/api/version"],
)
async def test_lists_are_as_described(path: str) -> None:
    reply = await get(app_of(ScriptedService()), path)
    assert reply.status == 200
    reply_of("GET", path, 200).validate(reply.json)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", chat(stream=True, stream_options={"include_usage": True})),
        ("/v3/chat/completions", chat(stream=True)),
        ("/v1/responses", {"model": "m", "input": "hi", "stream": True}),
        ("/v1/messages", {**ANTHROPIC, "stream": True}),
    ],
)
async def test_streams_are_as_described(path: str, body: Any) -> None:
    reply = await post(app_of(ScriptedService(HELLO)), body, path)
    content = DOCUMENT["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
    events = [json.loads(line[6:]) for line in reply.body.decode().splitlines() if line.startswith("data: {")]
    assert len(events) > 3
    for event in events:
        validator(content["x-event-schema"]).validate(event)


# --- the page --------------------------------------------------------------------------------------------------------


async def test_both_are_served() -> None:
    app = app_of(ScriptedService())
    document, page = await get(app, "/openapi.json"), await get(app, "/docs")
    assert document.json == DOCUMENT
    assert document.headers["content-type"] == "application/json"
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in DOCUMENT["paths"]:
        assert path in page.body.decode()


def test_the_page_loads_nothing_and_its_links_lead_somewhere() -> None:
    tags, links, anchors = set[str](), set[str](), set[str]()

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            tags.add(tag)
            assert not {"src", "srcset", "onclick", "onload", "action"} & set(given)
            if tag == "a":
                links.add(given["href"] or "")
            if "id" in given:
                assert given["id"] not in anchors
                anchors.add(given["id"] or "")

    page = openapi.page()
    Reader().feed(page)
    assert not tags & {"script", "link", "img", "iframe", "object", "form", "base"}
    assert "url(" not in page
    assert "@import" not in page
    assert links - {"openapi.json"} <= {f"#{anchor}" for anchor in anchors}
