"""What belongs to one tenant is nothing to another: by every route that takes an id, made from the list of routes."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from starlette.types import ASGIApp

from sightline.api.openapi.document import served_routes
from sightline.config import ModelConfig
from tests.access.keyed import Keyed, bearer, picture
from tests.access.test_batches import ended, line, submit
from tests.api.standin import JSON_HEADERS, Call, Reply, get, post

pytestmark = pytest.mark.anyio

SHARED = ("/v1/models", "/v3/models", "/v2/models", "/admin/models", "/api/blobs")
"""Ids below these are of what all have in common; rights to models are in `test_rights.py`."""
ROUTES = sorted(
    (method, route.path)
    for route in served_routes()
    for method in route.methods or ()
    if "{" in route.path and not route.path.startswith(SHARED)
)


@dataclass
class Two:
    app: ASGIApp
    owner: str
    other: str
    sharing: str
    ids: dict[str, str]
    """Of the owner's, by the beginning of their paths."""

    def id_for(self, path: str) -> str:
        return next(own for start, own in self.ids.items() if path.startswith(start))  # a new kind needs a row


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Two]:
    keyed = Keyed(tmp_path_factory.mktemp("keys"), models=(ModelConfig(name="own", engine="fake"),))
    owner, other = keyed.key("owner", tenant="a"), keyed.key("other")
    sharing = keyed.key("sharing", tenant="a")
    async with keyed.running() as app:
        batch = await submit(app, owner, [line(0)])
        told, _ = await ended(app, owner, batch)
        asked = {"prompt": "What?", "image_base64": picture()}
        job = (await post(app, asked, "/analyze/async", **bearer(owner))).json["job_id"]
        response = (await post(app, {"model": "own", "input": "hi"}, "/v1/responses", **bearer(owner))).json["id"]
        ids = {"/v1/files": told["output_file_id"], "/v1/batches": batch, "/job": job}
        yield Two(app, owner, other, sharing, {**ids, "/v1/responses": response, "/v3/responses": response})


async def ask(app: ASGIApp, method: str, path: str, secret: str) -> Reply:
    return await Call(method, path, b"", {**JSON_HEADERS, **bearer(secret)}).run(app)


def unknown(known: str) -> str:
    """An id of the same form."""
    head, _, tail = known.rpartition("_" if "_" in known else "-")
    return f"{head}{known[len(head)]}{re.sub('[0-9a-f]', '0', tail)}"


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_a_foreign_id_is_as_one_that_there_never_was(two: Two, method: str, path: str) -> None:
    own = two.id_for(path)
    foreign = await ask(two.app, method, path.replace("{id}", own), two.other)
    never = await ask(two.app, method, path.replace("{id}", unknown(own)), two.other)
    assert foreign.status == never.status == 404, foreign.body
    assert foreign.body.replace(own.encode(), b"ID") == never.body.replace(unknown(own).encode(), b"ID")
    assert foreign.headers.keys() == never.headers.keys()


@pytest.mark.parametrize(("method", "path"), [r for r in ROUTES if r[0] == "GET"])
async def test_its_owner_and_who_shares_the_tenant_have_it(two: Two, method: str, path: str) -> None:
    for secret in (two.owner, two.sharing):
        assert (await ask(two.app, method, path.replace("{id}", two.id_for(path)), secret)).status == 200


@pytest.mark.parametrize("path", ["/v1/files", "/v1/batches"])
async def test_lists(two: Two, path: str) -> None:
    assert (await get(two.app, path, **bearer(two.owner))).json["data"]
    assert (await get(two.app, path, **bearer(two.other))).json["data"] == []
    replies = [
        await Call("GET", path, b"", {**JSON_HEADERS, **bearer(two.other)}, query=f"after={cursor}").run(two.app)
        for cursor in (two.ids[path], unknown(two.ids[path]))
    ]
    assert [reply.status for reply in replies] == [400, 400]
    assert replies[0].body == replies[1].body


async def test_ids_inside_of_bodies(two: Two) -> None:
    response, file = two.ids["/v1/responses"], two.ids["/v1/files"]
    for known in (response, unknown(response)):
        body = {"model": "own", "input": "hi", "previous_response_id": known}
        assert (await post(two.app, body, "/v1/responses", **bearer(two.other))).status in (400, 404)
    told = []
    for known in (file, unknown(file)):
        part = {"type": "input_image", "file_id": known}
        body = {"model": "own", "input": [{"role": "user", "content": [part]}]}
        reply = await post(two.app, body, "/v1/responses", **bearer(two.other))
        told.append((reply.status, reply.json["error"]["code"], reply.json["error"]["message"].replace(known, "ID")))
        batch = {"input_file_id": known, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        reply = await post(two.app, batch, "/v1/batches", **bearer(two.other))
        told.append((reply.status, reply.json["error"]["param"], reply.json["error"]["message"].replace(known, "ID")))
    assert told[:2] == told[2:]
    assert [each[0] for each in told[:2]] == [400, 400]


async def test_an_idempotency_key_is_its_tenants(two: Two) -> None:
    asked = {"prompt": "What?", "image_base64": picture()}
    jobs = [
        (await post(two.app, asked, "/analyze/async", idempotency_key="same", **bearer(secret))).json["job_id"]
        for secret in (two.owner, two.other, two.owner, two.sharing)
    ]
    assert jobs[0] == jobs[2] == jobs[3] != jobs[1]
