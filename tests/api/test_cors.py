"""Web pages: which may use this server, and a real one that does."""

from __future__ import annotations

import argparse
import http.server
import shutil
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from starlette.types import ASGIApp

from sightline.api.app import create_app
from sightline.cli import main
from sightline.cli.serve import add_arguments, to_settings
from sightline.config import CorsPolicy, ModelConfig, Settings
from sightline.configfile import check
from sightline.errors import EngineFailed, InvalidRequest
from sightline.items import ChoiceEvent, Item
from sightline.service import Service
from sightline.types import ChatRequest, TextDelta
from tests.api.serving import serving
from tests.api.standin import PREPARED, ScriptedService, chat, get, post

pytestmark = pytest.mark.anyio

PAGE = "https://app.example.com"
OTHER = "https://evil.example"
CHAT = "/v1/chat/completions"
JSON = "content-type, authorization, x-stainless-lang"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def app_of(*origins: str, script: Any = None) -> ASGIApp:
    service = ScriptedService() if script is None else ScriptedService(script=script)
    settings = Settings(models=(ModelConfig(name="m", engine="fake"),), cors=CorsPolicy(origins=origins))
    return create_app(cast(Service, service), settings)


def preflight(origin: str, **more: str) -> dict[str, str]:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": JSON}
    return {"origin": origin, **asked, **more}


def cors_headers(headers: dict[str, str]) -> set[str]:
    return {name for name in headers if name.startswith("access-control-") or name == "vary"}


# --- headers ---------------------------------------------------------------------------------------------------------


async def test_off_it_says_nothing() -> None:
    app = app_of()
    assert (await get(app, CHAT, "OPTIONS", **preflight(PAGE))).status == 405
    reply = await post(app, chat(), origin=PAGE)
    assert reply.status == 200
    assert not cors_headers(reply.headers)


async def test_a_page_that_is_named_may_ask() -> None:
    app = app_of("http://localhost:5173", PAGE)
    asked = await get(app, CHAT, "OPTIONS", **preflight(PAGE, **{"access-control-request-private-network": "true"}))
    assert (asked.status, asked.body) == (204, b"")
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert asked.headers["access-control-allow-headers"] == JSON
    assert "POST" in asked.headers["access-control-allow-methods"]
    assert asked.headers["access-control-allow-private-network"] == "true"
    assert asked.headers["vary"] == "Origin"
    assert asked.headers["x-request-id"]
    for body in (chat(), chat(stream=True), chat(temperature=9), b"{"):
        reply = await post(app, body, origin=PAGE)
        assert reply.headers["access-control-allow-origin"] == PAGE
        exposed = reply.headers["access-control-expose-headers"]
        assert {"x-request-id", "x-sightline-engine", "retry-after"} <= set(exposed.split(", "))
        assert reply.headers["vary"] == "Origin"
    lost = await get(app, "/v3/elsewhere", origin=PAGE)
    assert (lost.status, lost.headers["access-control-allow-origin"]) == (404, PAGE)
    late = await post(app_of(PAGE, script=broken), chat(stream=True), origin=PAGE)
    assert late.headers["access-control-allow-origin"] == PAGE
    assert "error" in late.events[-1]


async def broken(request: ChatRequest) -> AsyncIterator[Item]:
    yield PREPARED
    yield ChoiceEvent(0, TextDelta("A "))
    raise EngineFailed("The engine broke.")


@pytest.mark.parametrize(
    "origin", [OTHER, "null", PAGE + ".evil.example", PAGE + ":8443", "http://app.example.com", PAGE.upper(), ""]
)
async def test_other_pages_may_not(origin: str) -> None:
    app = app_of(PAGE)
    asked = await get(app, CHAT, "OPTIONS", **preflight(origin))
    assert asked.status == 403
    assert "origin" in asked.json["error"]["message"]
    for reply in (asked, await post(app, chat(), origin=origin), await get(app, "/v1/models")):
        assert cors_headers(reply.headers) == {"vary"}, "but caches are told"


async def test_any_page_may_where_that_is_said_but_never_with_credentials() -> None:
    app = app_of("*")
    asked = await get(app, CHAT, "OPTIONS", **preflight(OTHER))
    reply = await post(app, chat(), origin=OTHER)
    for answer in (asked, reply):
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
        assert "vary" not in answer.headers


async def test_a_preflight_allows_no_more_than_names_of_headers() -> None:
    asked = await get(app_of(PAGE), CHAT, "OPTIONS", **preflight(PAGE) | {"access-control-request-headers": "a\tb; c"})
    assert asked.status == 204
    assert "access-control-allow-headers" not in asked.headers
    plain = await get(app_of(PAGE), CHAT, "OPTIONS", origin=PAGE)
    assert plain.status == 405, "not a preflight"


async def test_a_preflight_is_answered_under_our_own_names_only() -> None:
    assert (await get(app_of(PAGE), CHAT, "OPTIONS", **preflight(PAGE), host="rebound.example")).status == 421


@pytest.mark.parametrize("origins", [(), (PAGE,)])
@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=x", "text/plain", ""])
async def test_a_foreign_pages_form_is_refused(origins: tuple[str, ...], content_type: str) -> None:
    """A browser sends it without asking first."""
    app = app_of(*origins)
    for foreign in (OTHER, "null"):
        refused = await post(app, b"--x--", "/analyze/upload", origin=foreign, content_type=content_type)
        assert (refused.status, set(refused.json)) == (403, {"detail"})
    for own in ({}, {"origin": "http://localhost:8000"}, *({"origin": page} for page in origins)):
        taken = await post(app, b"--x--", "/analyze/upload", content_type=content_type, **own)
        assert taken.status in (400, 415)


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    ["app.example.com", "https://app.example.com/", "https://App.example.com", "https://a.example:443", "null", "",
     "http://a.example:80", "https://*.example.com", "file://", "https://user@a.example", "https://a.example:0"],
)  # fmt: skip
def test_what_no_browser_sends_is_refused(origin: str) -> None:
    with pytest.raises(InvalidRequest, match="origin"):
        CorsPolicy(origins=(origin,))


@pytest.mark.parametrize(
    "origin",
    ["*", "http://localhost:5173", "https://a.example", "http://127.0.0.1:8080", "http://[::1]:3000", "http://a:8081",
     "https://a.example:80", "http://a.example:443", "https://xn--bcher-kva.example", "http://a.example:8443"],
)  # fmt: skip
def test_what_browsers_send_is_taken(origin: str) -> None:
    assert CorsPolicy(origins=(origin,)).origins == (origin,)


def test_the_file_and_the_command_line_name_origins(tmp_path: Path) -> None:
    file = tmp_path / "sightline.yaml"
    file.write_text("models: [{name: m, engine: fake}]\ncors:\n  origins: [http://localhost:5173]\n")
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    settings = to_settings(parser.parse_args([str(file), "--cors-origin", PAGE]))
    assert settings.cors.origins == ("http://localhost:5173", PAGE)
    file.write_text("models: [{name: m, engine: fake}]\ncors:\n  origins: [localhost]\n")
    _, (problem,) = check(file)
    assert (problem.line, problem.path) == (2, "cors")
    assert "'localhost' is no origin" in problem.message


def test_a_wrong_origin_is_told_at_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--engine", "fake", "--cors-origin", "app.example.com/"]) != 0
    assert "app.example.com/" in capsys.readouterr().err


# --- a browser -------------------------------------------------------------------------------------------------------

SCRIPT = """<!doctype html><meta charset="utf-8"><pre id="out">waiting</pre><script type="module">
const out = [], base = "BASE", say = (...words) => out.push(words.join(" "));
const headers = {"Content-Type": "application/json", "Authorization": "Bearer none"};
const canvas = document.createElement("canvas");
canvas.width = 64; canvas.height = 48;
const brush = canvas.getContext("2d"); brush.fillStyle = "blue"; brush.fillRect(0, 0, 64, 48);
const image = canvas.toDataURL("image/png").split(",")[1];
const messages = [{role: "user", content: [{type: "image", image}, {type: "text", text: "hello"}]}];
const ask = body => fetch(base + "/v1/chat/completions", {method: "POST", headers, body: JSON.stringify(body)});
try {
  const whole = await ask({model: "fake", messages});
  say("whole", whole.status, (await whole.json()).choices[0].message.content);
  say("exposed", whole.headers.get("x-request-id") !== null, whole.headers.get("x-sightline-engine"));
  const refused = await ask({model: "other", messages});
  say("refused", refused.status, (await refused.json()).error.code);
  const streamed = await ask({model: "fake", messages, stream: true});
  const text = await new Response(streamed.body).text();
  say("streamed", text.trimEnd().endsWith("data: [DONE]"));
  const form = new FormData(); form.set("prompt", "hello");
  form.set("file", await new Promise(done => canvas.toBlob(done)), "a.png");
  const uploaded = await fetch(base + "/analyze/upload", {method: "POST", body: form});
  say("uploaded", uploaded.status);
  await fetch("ELSEWHERE/v1/models");
} catch (error) { say("failed", error); }
document.getElementById("out").textContent = out.join("\\n");
document.title = "done";
</script>"""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def page_at(html: list[str]) -> Iterator[str]:
    """A web server with one page, which may be written later. Gives its origin."""

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(html[0].encode())

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def shown_by_a_browser(url: str) -> list[str]:
    """The lines that the page's script leaves in its <pre>."""
    lines: list[str] = []

    class Reader(HTMLParser):
        def handle_data(self, data: str) -> None:
            if self.lasttag == "pre":
                lines.extend(data.splitlines())

    with tempfile.TemporaryDirectory() as profile:
        command = [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--no-first-run", "--virtual-time-budget=20000", f"--user-data-dir={profile}", "--dump-dom", url,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    Reader().feed(done.stdout)
    return [line for line in lines if line.strip()]


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_page_in_a_browser() -> None:
    base = Settings(models=(ModelConfig(name="fake", engine="fake"),))
    html = [""]
    with page_at(html) as origin:
        settings = msgspec.structs.replace(base, cors=CorsPolicy(origins=(origin,)))
        app = create_app(Service(settings), settings, wait=True)
        with serving(app) as port, serving(app_of(PAGE)) as elsewhere:
            html[0] = SCRIPT.replace("BASE", f"http://127.0.0.1:{port}")
            html[0] = html[0].replace("ELSEWHERE", f"http://127.0.0.1:{elsewhere}")
            shown = shown_by_a_browser(origin)
    assert shown[0].startswith("whole 200 I see 1 picture: 64x48 mostly blue")
    assert shown[1:] == [
        "exposed true fake",
        "refused 404 model_not_found",
        "streamed true",
        "uploaded 200",
        "failed TypeError: Failed to fetch",
    ]
