"""The code that the page shows makes the very request that the page made: it is run, against a server that listens."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sightline.client.pictures import to_url
from sightline.ui.conversation import Parameters, PictureFile, Turn, to_request
from sightline.ui.snippets import to_snippets

ODD = "Is this \"$HOME\", `id`, \\n or $(id)?\nWhat's '''this'''? Grün ☃ \u2028"
REPLY = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"content":"red"},"finish_reason":null}]}\n\ndata: [DONE]\n\n'
)


class Listener(http.server.BaseHTTPRequestHandler):
    heard: list[tuple[str, str | None, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.heard.append((self.path, self.headers.get("authorization"), body))
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        self.wfile.write(REPLY)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def heard() -> Iterator[tuple[str, list[tuple[str, str | None, Any]]]]:
    listener = type("Listener", (Listener,), {"heard": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", listener.heard
        server.shutdown()


@pytest.mark.parametrize("language", ["curl", "Python"])
@pytest.mark.parametrize("key", [None, "sk-1"])
def test_the_code_says_what_the_page_said(
    language: str, key: str | None, heard: tuple[str, list[tuple[str, str | None, Any]]], tmp_path: Path
) -> None:
    url, requests = heard
    picture = tmp_path / "it's a $(picture).png"
    picture.write_bytes(bytes(range(256)) * 50)
    turns = (
        Turn(ODD, (str(picture), "https://example.com/a.jpg"), text="A `red` $circle"),
        Turn("And now?", (str(picture),)),
    )
    parameters = Parameters("peek", system="Be $brief.", temperature=0.0, detail="low", max_pixels=10_000)
    code = to_snippets(to_request(turns, parameters, PictureFile), url, with_key=key is not None)[language]
    assert "base64" in code
    command = ["sh", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    environment = {**os.environ, "SIGHTLINE_API_KEY": key or "of somebody else"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "red" in done.stdout
    ((path, authorization, body),) = requests
    assert path == "/v1/chat/completions"
    assert body == to_request(turns, parameters, to_url)
    if key is not None:
        assert authorization == "Bearer sk-1"
    else:
        assert "of somebody else" not in str(authorization)


def test_python_without_pictures_reads_no_files() -> None:
    code = to_snippets(to_request((Turn("Hi"),), Parameters("m"), PictureFile), "http://a/v1", with_key=False)["Python"]
    assert "base64" not in code
    assert "extra_body" not in code
