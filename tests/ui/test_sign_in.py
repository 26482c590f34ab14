"""The page's doors, with a stand-in for Gradio behind them: what is shown to whom, on a server and on its own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from sightline.cli import main
from sightline.cli.serve import add_arguments, to_settings
from sightline.client import ApiError
from sightline.config import ModelConfig, Settings
from sightline.errors import UnsupportedFeature
from sightline.service import Service
from sightline.ui import mount
from sightline.ui.asking import Connect
from sightline.ui.sign_in import COOKIE
from tests.access.keyed import KeyFile as Keys
from tests.access.keyed import add_key
from tests.api.serving import serving
from tests.api.standin import Call, Reply, get

pytestmark = pytest.mark.anyio
FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class StandIn:
    """In Gradio's place: tells what it was asked for, and keeps the way to the server."""

    made: list[StandIn]

    def __init__(self, connect: Connect, *, max_file_bytes: int) -> None:
        self.connect = connect
        self.scope: Scope = {}
        self.made.append(self)

    def end(self) -> None: ...

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        await PlainTextResponse(f"the page at {scope['path']}")(scope, receive, send)


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    monkeypatch.setattr(StandIn, "made", [], raising=False)
    monkeypatch.setattr(mount, "Application", StandIn)
    return StandIn.made


def server_of(directory: Path, **settings: Any) -> ASGIApp:
    models = (ModelConfig(name="m", engine="fake"),)
    given = Settings(models=models, data_dir=str(directory), **settings)
    return mount.to_server_page(Service(given), given).app


async def sign_in(app: ASGIApp, key: str, **headers: str) -> Reply:
    sent = {"host": "localhost", "content-type": FORM, **headers}
    return await Call("POST", "/ui/sign-in", urlencode({"key": key}).encode(), sent).run(app)


async def test_without_keys_the_page_is_open_to_who_may_use_the_server(tmp_path: Path) -> None:
    app = server_of(tmp_path)
    assert (await get(app, "/ui")).headers["location"] == "/ui/"
    assert (await get(app, "/ui/")).body == b"the page at /ui/"
    assert (await get(app, "/ui/", host="rebound.example")).status == 421
    assert (await get(app, "/ui/", method="DELETE")).status == 405
    assert (await get(app, "/v1/models")).status == 200


async def test_with_keys_nothing_of_the_page_is_shown_without_one(tmp_path: Path, made: list[StandIn]) -> None:
    key = add_key(Keys(tmp_path / "keys.db"))
    app = server_of(tmp_path)
    for path in ("/ui", "/ui/", "/ui/config", "/ui/gradio_api/upload", "/ui/nothing"):
        for headers in ({}, {"cookie": f"{COOKIE}=sl-wrong"}, {"cookie": f"{COOKIE}=; {COOKIE}=a\tb"}):
            reply = await get(app, path, **headers)
            assert reply.status == 401, path
            assert b"the page" not in reply.body
    assert not made[0].scope
    form = await get(app, "/ui/")
    assert b'name="key"' in form.body
    assert "default-src 'none'" in form.headers["content-security-policy"]
    shown = await get(app, "/ui/", cookie=f"other=1; {COOKIE}={key}")
    assert (shown.status, shown.body) == (200, b"the page at /ui/")
    assert (await get(app, "/ui/config", cookie=f"{COOKIE}={key}")).status == 200
    assert (await get(app, "/v1/models", cookie=f"{COOKIE}={key}")).status == 401, "a cookie is for the page alone"


async def test_a_key_becomes_a_cookie_out_of_reach_of_scripts_and_other_sites(tmp_path: Path) -> None:
    key = add_key(Keys(tmp_path / "keys.db"))
    app = server_of(tmp_path)
    wrong = await sign_in(app, "sl-wrong")
    assert (wrong.status, b"not taken" in wrong.body) == (401, True)
    assert "set-cookie" not in wrong.headers
    right = await sign_in(app, f" {key} ")
    assert (right.status, right.headers["location"]) == (303, "/ui/")
    cookie = right.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}={key};")
    assert {"HttpOnly", "Path=/ui", "SameSite=strict"} <= set(cookie.split("; "))
    assert (await sign_in(app, key, origin="http://localhost")).status == 303
    for foreign in ("https://evil.example", "null"):
        refused = await sign_in(app, key, origin=foreign)
        assert refused.status == 401
        assert "set-cookie" not in refused.headers
    for bad in ("", "a b", "ü", "x" * 600, "x" * 9000, '";,'):
        assert (await sign_in(app, bad)).status == 401


async def test_what_the_page_asks_is_asked_with_the_readers_key_and_no_other(
    tmp_path: Path, made: list[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = add_key(Keys(tmp_path / "keys.db"))
    app = server_of(tmp_path)
    await get(app, "/ui/", cookie=f"{COOKIE}={key}")
    monkeypatch.setenv("SIGHTLINE_API_KEY", key)  # the operator's own
    reader = mount.HTTPConnection(made[0].scope)
    server = made[0].connect(reader)
    assert (server.url, server.with_key) == ("http://localhost/v1", True)
    assert await server.client.models() == ["m"]
    stranger = made[0].connect(mount.HTTPConnection({**made[0].scope, "headers": [(b"host", b"localhost")]}))
    assert not stranger.with_key
    with pytest.raises(ApiError, match="API key"):
        await stranger.client.models()


# --- the page of a server elsewhere ----------------------------------------------------------------------------------


async def test_on_its_own_it_asks_for_a_key_that_the_other_server_takes(tmp_path: Path, made: list[StandIn]) -> None:
    key = add_key(Keys(tmp_path / "keys.db"))
    with serving(server_of(tmp_path)) as port:
        url = f"http://127.0.0.1:{port}"
        page = mount.to_standalone(url, None, ["localhost"])
        assert page.server_url == f"{url}/v1"
        assert (await get(page.app, "/")).headers["location"] == "/ui/"
        assert (await get(page.app, "/ui/")).status == 401
        assert (await sign_in(page.app, "sl-wrong")).status == 401
        assert (await sign_in(page.app, key)).status == 303
        assert (await get(page.app, "/ui/", cookie=f"{COOKIE}={key}")).status == 200
        server = made[-1].connect(mount.HTTPConnection(made[-1].scope))
        assert await server.client.models() == ["m"]
        known = mount.to_standalone(url, key, ["localhost"])
        assert (await get(known.app, "/ui/")).status == 200, "the operator's key is everybody's"
        assert (await get(known.app, "/ui/", host="rebound.example")).status == 400


async def test_a_server_that_is_away_is_for_the_page_to_tell() -> None:
    page = mount.to_standalone("http://127.0.0.1:9", None, ["localhost"])
    assert (await get(page.app, "/ui/")).body == b"the page at /ui/"


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, argparse.Namespace]]:
    def run(*arguments: str) -> tuple[str, argparse.Namespace]:
        started: list[tuple[str, argparse.Namespace]] = []
        monkeypatch.setattr("sightline.cli.ui.serving.run", lambda args: started.append(("server", args)) or 0)
        monkeypatch.setattr("sightline.cli.ui._run_page", lambda args: started.append(("page", args)) or 0)
        assert main(["ui", *arguments]) == 0
        return started[0]

    return run


def test_a_page_alone_or_with_a_server(
    ran: Callable[..., tuple[str, argparse.Namespace]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGHTLINE_WORKERS", "1")
    for alone in ((), ("--url", "http://a:1"), ("--port", "1"), ("--host", "::1", "--log-level", "info")):
        assert ran(*alone)[0] == "page"
    for inside in (("--model", "peek"), ("sightline.yaml",), ("--engine", "fake"), ("--fetch", "any-public")):
        what, args = ran(*inside)
        assert (what, args.port, args.ui, args.workers) == ("server", 7860, True, 1)
    assert ran("--port", "1", "--model", "peek")[1].port == 1


def test_what_would_be_dropped_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ui", "--url", "http://a:1", "--fetch", "any-public"]) == 1
    assert "--fetch is about one that is started here" in capsys.readouterr().err
    assert main(["ui", "--url", "ftp://a"]) == 1
    assert "no address of a server" in capsys.readouterr().err
    assert main(["ui", "--host", "0.0.0.0"]) == 1
    assert "--open-to-anyone" in capsys.readouterr().err


def test_the_file_asks_for_the_page_too(tmp_path: Path) -> None:
    file = tmp_path / "sightline.yaml"
    file.write_text("models: [{name: m, engine: fake}]\nui: true\n")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert to_settings(parser.parse_args([str(file)])).ui
    assert not Settings().ui


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from sightline.ui.application import Application

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UnsupportedFeature, match=r"pip install 'sightline\[ui\]'"):
        Application(lambda reader: pytest.fail(str(reader)), max_file_bytes=1)
    assert main(["serve", "--engine", "fake", "--port", "0", "--ui", "--workers", "2"]) == 1
    assert "pip install 'sightline[ui]'" in capsys.readouterr().err


def test_its_pictures_are_those_of_the_examples() -> None:
    root = Path(mount.__file__).parent
    examples = Path(__file__).parent.parent.parent / "examples" / "pictures"
    assert {p.name: p.read_bytes() for p in (root / "pictures").iterdir()} == {
        p.name: p.read_bytes() for p in examples.iterdir()
    }
