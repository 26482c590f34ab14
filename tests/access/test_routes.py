"""Nothing is reached without a key: every route there is, by every method, and paths that look like one.

Made from the list of routes, so that a new one cannot escape.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.types import ASGIApp

from sightline.access.keys import new_secret
from sightline.api.entrance import KEYLESS
from sightline.api.ollama import routes as ollama
from sightline.api.openapi.document import served_routes
from sightline.config import CorsPolicy
from tests.access.keyed import Keyed, bearer
from tests.api.standin import Call, Reply

pytestmark = pytest.mark.anyio

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PATHS = sorted({route.path for route in served_routes()})
ADMIN = {path for path in PATHS if path == "/metrics" or path.startswith("/admin")}
UNKNOWN = ("/nothing", "/v1", "/v1/nothing", "/api/nothing", "/v1/messages/nothing", "/v3/nothing", "/admin/nothing")


def to_url(path: str) -> str:
    """A route's template with something in each place."""
    for name in ("{id:path}", "{name:path}", "{digest:path}", "{id}"):
        path = path.replace(name, "some-id")
    assert "{" not in path, f"{path}: say here what is to stand for it"
    return path


class Server:
    def __init__(self, directory: Path) -> None:
        keyed = Keyed(directory)
        self.right = keyed.key("right")
        self.admin = keyed.key("admin", admin=True)
        self.revoked = keyed.key("revoked", revoked_at=1)
        self.expired = keyed.key("expired", expires_at=1)
        _, self.app = keyed.make()

    @property
    def wrong(self) -> dict[str, dict[str, str]]:
        return {
            "none": {},
            "unknown": bearer(new_secret()),
            "nearly": bearer(self.right[:-1] + ("A" if self.right[-1] != "A" else "B")),
            "a part": bearer(self.right[:20]),
            "empty": bearer(""),
            "not a bearer": {"authorization": f"Basic {self.right}"},
            "in another header": {"api-key": self.right},
            "revoked": bearer(self.revoked),
            "expired": bearer(self.expired),
            "x-api-key, unknown": {"x-api-key": new_secret()},
        }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    return Server(tmp_path_factory.mktemp("keys"))


async def ask(app: ASGIApp, method: str, path: str, headers: dict[str, str]) -> Reply:
    sent = {"host": "localhost", "content-type": "application/json", **headers}
    return await Call(method, path, b"{}" if method in ("POST", "PUT", "PATCH") else b"", sent).run(app)


def test_only_these_paths_need_no_key() -> None:
    assert {"/", "/api/version", "/health", "/ready", "/v2/health/live", "/v2/health/ready"} == KEYLESS
    assert set(PATHS) >= KEYLESS


@pytest.mark.parametrize("path", [*PATHS, *UNKNOWN])
async def test_nothing_without_a_right_key(server: Server, path: str) -> None:
    for method in METHODS:
        for name, headers in server.wrong.items():
            reply = await ask(server.app, method, to_url(path), headers)
            told = f"{method} {path} with the key: {name}: {reply.status}"
            if path in KEYLESS:
                assert reply.status != 401, told
                continue
            assert reply.status == 401, told
            assert reply.headers["www-authenticate"] == "Bearer", told
            assert reply.headers["x-request-id"], told
            if method != "HEAD":
                assert server.right.encode() not in reply.body, told
                assert b"API key" in reply.body, told


@pytest.mark.parametrize("path", PATHS)
async def test_everything_with_one(server: Server, path: str) -> None:
    refused = {*(p for p in ollama.REFUSED)}
    for method in METHODS:
        for headers in (bearer(server.right), {"x-api-key": server.right}, {"authorization": f"bearer {server.right}"}):
            reply = await ask(server.app, method, to_url(path), headers)
            if path in ADMIN:
                assert reply.status == 403, f"{method} {path}: for admin keys"
            elif path not in refused:
                assert reply.status not in (401, 403), f"{method} {path}: {reply.body!r}"
        admin = await ask(server.app, method, to_url(path), bearer(server.admin))
        assert admin.status != 401
        assert path in refused or admin.status != 403, f"{method} {path}: {admin.body!r}"


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models", "/v1/models/", "/v1//models", "/V1/models", "/v1/models;a=b", "/v1/models/..",
        "/health/../v1/models", "/health/", "/health;", "/health/x", "/HEALTH", "//health", "/./health",
        "/health/../metrics", "/ready/../admin/status",
        "/\\v1/models", "/v1/models\x00", "/v1/models ", "/api/version/", "/api/version/../tags", "/v2/health/live/..",
        "/v2/health/liveness", "", "*", "v1/models", "http://localhost/v1/models",
    ],
)  # fmt: skip
async def test_tricks_with_paths(server: Server, path: str) -> None:
    for method in METHODS:
        reply = await ask(server.app, method, path, {})
        assert reply.status == 401, f"{method} {path!r}: {reply.status}"


async def test_a_head_is_as_public_as_its_get_and_no_more(server: Server) -> None:
    assert (await ask(server.app, "HEAD", "/health", {})).status == 200
    assert (await ask(server.app, "HEAD", "/v1/models", {})).status == 401
    assert (await ask(server.app, "HEAD", "/v1/models", bearer(server.right))).status == 200


async def test_two_keys_at_once_are_none(server: Server) -> None:
    headers = {"host": "localhost"}
    scope_headers = [(b"authorization", f"Bearer {server.right}".encode())] * 2
    call = Call("GET", "/v1/models", b"", headers)
    seen: list[int] = []

    async def doubled(scope, receive, send):  # type: ignore[no-untyped-def]
        scope["headers"] = [*scope["headers"], *scope_headers]
        await server.app(scope, receive, send)

    seen.append((await call.run(doubled)).status)
    assert seen == [401]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/models", {"error": {"type": "invalid_request_error", "param": None, "code": None}}),
        ("/v1/messages", {"type": "error", "error": {"type": "authentication_error"}}),
        ("/api/tags", {"error": str}),
        ("/v3/models", {"error": str}),
        ("/analyze", {"detail": str}),
    ],
)
async def test_each_dialect_tells_it_in_its_own_shape(server: Server, path: str, error: dict) -> None:  # type: ignore[type-arg]
    told = json.loads((await ask(server.app, "GET", path, {})).body)
    for key, value in error.items():
        if value is str:
            assert "API key" in told[key]
        elif isinstance(value, dict):
            assert told[key] | value == told[key]
        else:
            assert told[key] == value


async def test_a_wrong_key_has_a_code_and_none_has_none(server: Server) -> None:
    for headers, code in (
        ({}, None),
        (bearer("sl-wrong"), "invalid_api_key"),
        (bearer(server.expired), "invalid_api_key"),
    ):
        told = json.loads((await ask(server.app, "GET", "/v1/models", headers)).body)
        assert told["error"]["code"] == code


async def test_a_preflight_needs_no_key(tmp_path: Path) -> None:
    keyed = Keyed(tmp_path, settings={"cors": CorsPolicy(origins=("https://app.example.com",))})
    keyed.key()
    _, app = keyed.make()
    browser = {"origin": "https://app.example.com", "access-control-request-method": "POST"}
    allowed = await ask(app, "OPTIONS", "/v1/chat/completions", browser)
    assert allowed.status == 204
    assert (await ask(app, "OPTIONS", "/v1/chat/completions", {})).status == 401, "which is no preflight"
    refused = await ask(app, "POST", "/v1/chat/completions", {"origin": "https://app.example.com"})
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://app.example.com"), (
        "the page can read why"
    )
