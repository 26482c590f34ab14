"""Every example runs, as its first lines say, and gives the right answer."""

from __future__ import annotations

import functools
import http.server
import json
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
RUN_ELSEWHERE = {"demo.py", "make_pictures.py", "sightline.yaml", "README.md", "fallback.yaml"}
"""`make demo`; a tool; configuration files (`tests/test_configfile.py`, and below)."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def sightline(*arguments: str) -> Iterator[str]:
    """`sightline serve` with these arguments; its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "sightline.cli", "serve", *arguments, "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as server:
        try:
            deadline = time.monotonic() + 60
            while True:
                assert server.poll() is None, "the server ended"
                assert time.monotonic() < deadline
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except OSError:
                    time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


TELLS = """<script>
const watch = setInterval(() => {
  if (document.title !== "answered" && document.title !== "failed") return;
  clearInterval(watch);
  fetch("/told", {method: "POST", body: `${document.title}: ${document.querySelector("output").value}`});
}, 20);
</script>"""
"""What a page gets at its end here, so that it tells what became of it."""


@pytest.fixture(scope="module")
def told() -> queue.Queue[str]:
    return queue.Queue()


@pytest.fixture(scope="module")
def pages(told: queue.Queue[str]) -> Iterator[str]:
    """The examples' folder as a web server has it: pictures by URL, and a page of another origin, which also tells what
    it says in the end."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            name = self.path.partition("?")[0].removeprefix("/")
            if not name.endswith(".html"):
                super().do_GET()
                return
            page = ((EXAMPLES / name).read_text() + TELLS).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def do_POST(self) -> None:
            told.put(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(EXAMPLES)))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"localhost:{served.server_port}"
    served.shutdown()


@pytest.fixture(scope="module")
def server(pages: str) -> Iterator[str]:
    arguments = ["--fetch", pages, "--fetch-network", "127.0.0.0/8", "--fetch-network", "::1/128"]
    with sightline(*arguments, "--cors-origin", f"http://{pages}") as url:
        yield url


def run(command: list[str], url: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "SIGHTLINE_URL": f"{url}/v1", "PATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(name: str, url: str, *arguments: str) -> list[str]:
    return run([sys.executable, str(EXAMPLES / name), *arguments], url).splitlines()


def test_every_example_has_a_test_and_a_line_in_the_readme() -> None:
    names = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    tested = set(re.findall(r"\b([a-z0-9_]+\.(?:py|sh|html|yaml))", Path(__file__).read_text()))
    assert names <= tested | RUN_ELSEWHERE
    readme = (EXAMPLES / "README.md").read_text()
    assert all(f"]({name})" in readme for name in names - {"README.md"})


def test_client(server: str) -> None:
    said = python("client.py", server)
    assert said[0] == "a path: red"
    assert re.fullmatch(r"480 x 360 pixels were seen as \d+ x \d+", said[1])
    assert said[2:5] == ["a follow-up: circle", "a PIL picture: yellow", "a numpy array: blue"]
    assert "blue square" in said[5]


def test_picture_base64(server: str) -> None:
    assert python("picture_base64.py", server) == ["red"]
    assert python("picture_base64.py", server, "examples/pictures/blue-square.jpg", "What shape is it?") == ["square"]


def test_picture_url(server: str, pages: str) -> None:
    picture = f"http://{pages}/pictures/yellow-star.png"
    assert python("picture_url.py", server, picture, "What colour is the star?") == ["yellow"]
    with pytest.raises(AssertionError, match="invalid_image_url"):
        python("picture_url.py", server, "http://example.com/x.png", "?")


def test_streamed(server: str) -> None:
    said = python("streamed.py", server)
    assert "yellow star" in said[0]
    assert re.fullmatch(r"the picture: \d+ tokens of \d+ in the prompt", said[1])


def test_curl(server: str) -> None:
    reply = json.loads(run([str(EXAMPLES / "curl.sh")], server))
    assert reply["choices"][0]["message"]["content"] == "blue"


def test_fallback() -> None:
    with sightline(str(EXAMPLES / "fallback.yaml")) as url:
        assert python("fallback.py", url) == ["red", "tried: assistant@0, then peek@0"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browsers_page(server: str, pages: str, told: queue.Queue[str], tmp_path: Path) -> None:
    assert CHROMIUM is not None
    page = f"http://{pages}/browser.html?server={server}&picture=pictures/red-circle.png"
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path}"]
    port = ["--remote-debugging-port=0"]  # with one it stays until it is ended
    with subprocess.Popen([*command, *port, page], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            assert told.get(timeout=60) == "answered: red"
        finally:
            browser.terminate()
