"""Which models a key may be used for: by every route that asks one, under every name, and by no way round."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

from sightline.api.openapi.operations import APIS
from sightline.config import ModelConfig
from tests.access.keyed import Keyed, bearer, picture
from tests.api.standin import JSON_HEADERS, Call, Reply, get

pytestmark = pytest.mark.anyio

MODELS = (
    ModelConfig(name="own", engine="fake", aliases=("own-alias",), fallbacks=("foreign",)),
    ModelConfig(name="foreign", engine="fake", aliases=("foreign-alias",)),
    ModelConfig(name="third", engine="fake"),
)
MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: Mapping[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/chat/completions/input_tokens": {"messages": MESSAGES},
    "/v1/responses": {"input": "hi"},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/v1/responses/compact": {"input": "hi"},
    "/v1/completions": {"prompt": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 5},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/api/chat": {"messages": MESSAGES},
    "/api/generate": {"prompt": "hi"},
    "/api/embed": {"input": "hi"},
    "/api/embeddings": {"prompt": "hi"},
    "/api/show": {},
    "/analyze": {"prompt": "What?", "image_base64": picture()},
    "/analyze/optimized": {"prompt": "What?", "image_base64": picture()},
    "/analyze/async": {"prompt": "What?", "image_base64": picture()},
}
STREAMED = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/messages", "/api/chat", "/api/generate")
FORMS = {
    "/v1/audio/transcriptions": {},
    "/v1/audio/translations": {},
    "/analyze/upload": {"prompt": "What?"},
}
"""A row for each route that takes a `model`; the test below says which is missing."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[ASGIApp, str]]:
    keyed = Keyed(tmp_path_factory.mktemp("keys"), models=MODELS)
    secret = keyed.key("limited", models=("own-alias", "third"))
    async with keyed.running() as app:
        yield app, secret


async def ask(server: tuple[ASGIApp, str], path: str, body: dict[str, Any]) -> Reply:
    app, secret = server
    return await Call("POST", path, json.dumps(body).encode(), {**JSON_HEADERS, **bearer(secret)}).run(app)


async def send(server: tuple[ASGIApp, str], path: str, fields: dict[str, str]) -> Reply:
    app, secret = server
    parts = [f'--b\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    parts.append('--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nx\r\n--b--\r\n')
    headers = {"host": "localhost", "content-type": "multipart/form-data; boundary=b", **bearer(secret)}
    return await Call("POST", path, "".join(parts).encode(), headers).run(app)


def test_every_route_that_takes_a_model_is_asked_here() -> None:
    taking = set()
    for api in APIS:
        for key, operation in api.operations.items():
            fields = {
                *getattr(operation.body, "__struct_fields__", ()),
                *getattr(operation.form, "__struct_fields__", ()),
            }
            if "model" in fields:
                taking.add(key.partition(" ")[2])
    assert taking == {*BODIES, *FORMS}


@pytest.mark.parametrize("name", ["foreign", "foreign-alias"])
@pytest.mark.parametrize("path", BODIES)
async def test_a_model_that_the_key_may_not_use(server: tuple[ASGIApp, str], path: str, name: str) -> None:
    reply = await ask(server, path, {"model": name, **BODIES[path]})
    assert reply.status == 403, reply.body
    assert b"may not use the model" in reply.body
    if path in STREAMED:
        assert (await ask(server, path, {"model": name, "stream": True, **BODIES[path]})).status == 403
    if path.startswith("/v1/") and path.replace("/v1/", "/v3/") != path and path not in ("/v1/responses/compact",):
        other = await ask(server, path.replace("/v1/", "/v3/"), {"model": name, **BODIES[path]})
        assert other.status == (404 if path.startswith("/v1/messages") else 403)


@pytest.mark.parametrize("path", FORMS)
async def test_and_in_a_form(server: tuple[ASGIApp, str], path: str) -> None:
    reply = await send(server, path, {"model": "foreign", **FORMS[path]})
    assert reply.status == 403, reply.body


@pytest.mark.parametrize("name", ["own", "own-alias", "third"])
@pytest.mark.parametrize("path", BODIES)
async def test_one_that_it_may_by_all_its_names(server: tuple[ASGIApp, str], path: str, name: str) -> None:
    reply = await ask(server, path, {"model": name, **BODIES[path]})
    assert reply.status == (202 if path == "/analyze/async" else 200), reply.body


async def test_with_ollamas_tag_too(server: tuple[ASGIApp, str]) -> None:
    assert (await ask(server, "/api/chat", {"model": "foreign:latest", "messages": MESSAGES})).status == 403
    assert (await ask(server, "/api/chat", {"model": "nothing:latest", "messages": MESSAGES})).status == 404


async def test_in_the_background_too(server: tuple[ASGIApp, str]) -> None:
    assert (await ask(server, "/v1/responses", {"model": "foreign", "input": "hi", "background": True})).status == 403


@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/v3/models", "/api/tags", "/api/ps", "/v1/config", "/v1/models/foreign", "/v2/models/foreign"],
)
async def test_listings_show_only_those(server: tuple[ASGIApp, str], path: str) -> None:
    app, secret = server
    for headers in (bearer(secret), {**bearer(secret), "anthropic-version": "2023-06-01"}):
        reply = await get(app, path, **headers)
        assert reply.status in (200, 404)
        assert b'"foreign' not in reply.body
        assert reply.status == 404 or b'"third' in reply.body


async def test_who_names_no_model_gets_one_of_them(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, models=MODELS)
    secret = keyed.key("third", models=("third",))
    async with keyed.running() as app:
        assert (await ask((app, secret), "/analyze", BODIES["/analyze"])).status == 200
        upload = await send((app, secret), "/analyze/upload", {"prompt": "What?"})
        assert upload.status == 400, "the picture is none, and the model was found"


async def test_a_fallback_leads_to_no_model_that_the_key_may_not_use(tmp_path: Path) -> None:
    broken = ModelConfig(name="own", engine="fake", fallbacks=("foreign", "third"), options={"startup": "error"})
    keyed = Keyed(tmp_path, models=(broken, *MODELS[1:]))
    limited, alone, anyone = keyed.key("a", models=("own", "third")), keyed.key("b", models=("own",)), keyed.key("c")
    body = {"model": "own", "messages": MESSAGES}
    async with keyed.running() as app:
        by_other = await ask((app, limited), "/v1/chat/completions", body)
        assert (by_other.status, by_other.headers["x-sightline-path"]) == (200, "own@0, third@0")
        assert (await ask((app, alone), "/v1/chat/completions", body)).status == 503
        first = await ask((app, anyone), "/v1/chat/completions", body)
        assert first.headers["x-sightline-path"] == "own@0, foreign@0"
