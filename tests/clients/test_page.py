"""The page in a real browser: what a person does there, and what they read."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.clients.chromium import CHROMIUM, Browser, Page, chromium

pytest.importorskip("gradio")
pytestmark = [
    pytest.mark.clients,
    pytest.mark.timeout(300),  # a server and a browser, on a machine that may be busy
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here"),
]
ROOT = Path(__file__).parent.parent.parent
PICTURES = ROOT / "examples" / "pictures"
RED, STAR, BLUE = (PICTURES / name for name in ("red-circle.png", "yellow-star.png", "blue-square.jpg"))
CONFIGURATION = """
models:
  - {name: peek}
  - {name: fake, engine: fake}
ui: true
"""


@contextmanager
def command(*arguments: str, state: Path) -> Iterator[str]:
    """A `sightline` command that listens; its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {**os.environ, "XDG_STATE_HOME": str(state)}
    environment.pop("SIGHTLINE_API_KEY", None)
    line = [sys.executable, "-m", "sightline.cli", *arguments, "--port", str(port), "--log-level", "error"]
    with subprocess.Popen(line, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: status(f"http://127.0.0.1:{port}/ready") in (200, 404), process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


def until(what: Any, process: subprocess.Popen[bytes] | None = None, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert process is None or process.poll() is None, "the server ended"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def status(url: str, **headers: str) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return 0


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as reply:
        return str(reply.read().decode())


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def server(state: Path) -> Iterator[str]:
    file = state / "sightline.yaml"
    file.write_text(CONFIGURATION)
    with command("serve", str(file), state=state) as url:
        yield url


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: str) -> Iterator[Page]:
    with browser.page() as page:
        opened(page, f"{server}/ui/")
        yield page


def opened(page: Page, url: str) -> None:
    page.open(url)
    page.until("!!document.querySelector('#composer textarea')")
    page.until("document.querySelector('#model input')?.value.length > 0")


def answers(page: Page) -> list[str]:
    script = "[...document.querySelectorAll('#conversation .bot-row')].map(row => row.innerText)"
    return list(page.run(script))


_RUNNING = 'sightline_requests_running{model="fake"} 1.0'
_LONG = "[[fake: slow 0.5]] " + "word " * 400
"""A question whose answer takes minutes, unless somebody ends it."""
_LAST_ANSWER = "[...document.querySelectorAll('#conversation .bot-row')].at(-1).innerText"


def ask(page: Page, question: str, *pictures: Path) -> str:
    """What stands under the question when all is known of it."""
    before = len(answers(page))
    if pictures:
        page.drop("#composer textarea", *pictures)
        page.until(f"document.querySelectorAll('#composer .thumbnail-image').length == {len(pictures)}")
    page.write("#composer textarea", question)
    page.press_enter()
    page.until(f"document.querySelectorAll('#conversation .bot-row').length == {before + 1}")
    page.until(f"{_LAST_ANSWER}.includes(' in all')")
    page.until("!document.querySelector('#composer .stop-button')")
    return answers(page)[-1]


def choose(page: Page, model: str) -> None:
    page.click("#model input")
    option = f"[...document.querySelectorAll('[role=option]')].find(o => o.innerText.includes({json.dumps(model)}))"
    page.until(f"!!{option}")
    page.run(f"{option}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
    page.until(f"document.querySelector('#model input').value.startsWith({json.dumps(model)})")


def test_a_picture_is_dropped_and_seen(page: Page) -> None:
    assert page.run("document.querySelector('#model input').value") == "peek · sees pictures"
    said = ask(page, "What colour is the circle?", RED)
    assert said.startswith("red")
    assert re.search(r"1 picture, 48 tokens · \d+ tokens in, \d out · first after .* in all", said)
    assert "circle" in ask(page, "What shape is it?"), "a follow-up, about the same picture"
    said = ask(page, "What is in the second picture?", STAR, BLUE)
    assert "3 pictures" in said


def test_the_report_tells_sizes_and_code(page: Page) -> None:
    ask(page, "What colour is the circle?", RED)
    assert "224 × 168" not in page.text()
    page.run("document.querySelector('#conversation .thought-group .title').click()")
    page.until("document.body.innerText.includes('224 × 168')")
    text = page.text()
    assert "480 × 360" in text
    assert re.search(r"request req_\w+", text)
    assert "$(base64 < ./red-circle.png" in text
    assert "picture('red-circle.png')" in text
    assert page.run("document.querySelectorAll('#conversation .thought-group .code_wrap button').length") >= 2, (
        "to copy"
    )


def test_two_pictures_in_one_question(page: Page) -> None:
    choose(page, "fake")
    ask(page, "hello", RED, BLUE)
    page.until(r"/I see 2 pictures: 480x360 .*; 400x400 /.test(document.body.innerText)")


def test_examples_are_a_click_and_right(browser: Browser, server: str) -> None:
    right = {"colour": "red", "Where": "centre", "triangles": "3", "Describe": "A blue square."}
    for word, answer in right.items():
        with browser.page() as page:
            opened(page, f"{server}/ui/")
            example = (
                f"[...document.querySelectorAll('#conversation button')].find(b => b.innerText.includes('{word}'))"
            )
            page.until(f"!!{example}")
            page.run(f"{example}.click()")
            page.until("document.body.innerText.includes(' in all')")
            assert answers(page)[-1].startswith(answer)


def test_parameters_reach_the_model(page: Page) -> None:
    choose(page, "fake")
    page.click(".sidebar .toggle-button")
    page.write("#max-tokens input", "3")
    page.run("document.activeElement.blur()")
    assert ", 3 out" in ask(page, "hello")


def test_no_word_of_a_quick_answer_is_lost(page: Page) -> None:
    """All its words come at once, as many as the page is told of between two drawings, one more, one less. And the next
    question is asked as soon as the page lets it."""
    choose(page, "fake")
    for count in range(8, 24):
        words = " ".join(f"w{number}" for number in range(count))
        assert ask(page, f"[[fake: say {words}]]").startswith(f"{words}\n")


def test_an_address_is_the_servers_to_refuse(page: Page) -> None:
    fetched: list[str] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        page.click("#more > button")
        page.write("#urls textarea", f"http://127.0.0.1:{elsewhere.server_port}/secret.png")
        said = ask(page, "What is it?")
        elsewhere.shutdown()
    assert "invalid_image_url" in said
    assert re.search(r"status 400 .* request req_\w+", said)
    assert not fetched, "neither by the page nor by the browser"
    assert page.run("document.querySelector('#urls textarea').value") == ""
    assert "red" in ask(page, "What colour is the circle?", RED), "and the conversation goes on"


def test_stop_ends_the_engines_work(page: Page, server: str) -> None:
    def running() -> bool:
        return _RUNNING in read(f"{server}/metrics")

    choose(page, "fake")
    page.write("#composer textarea", _LONG)
    page.press_enter()
    page.until("document.querySelector('#conversation .bot-row')?.innerText.length > 20")
    until(running)
    page.click("#composer .stop-button")
    page.until("document.body.innerText.includes('Stopped')")
    until(lambda: not running(), timeout_s=60)
    assert "480x360" in ask(page, "hello", RED), "and the next question is answered"


def test_a_closed_tab_ends_the_engines_work(browser: Browser, server: str) -> None:
    def running() -> bool:
        return _RUNNING in read(f"{server}/metrics")

    with browser.page() as page:
        opened(page, f"{server}/ui/")
        choose(page, "fake")
        page.write("#composer textarea", _LONG)
        page.press_enter()
        until(running)
    until(lambda: not running(), timeout_s=60)


def test_nothing_is_asked_of_anybody_else(page: Page, server: str) -> None:
    choose(page, "fake")
    ask(page, "[[fake: say ![a](http://192.0.2.1/a.png) <img src=http://192.0.2.1/b.png>]]", RED)
    foreign = [url for url in page.requests if not url.startswith((server, "data:", "blob:"))]
    assert not [url for url in foreign if "192.0.2.1" not in url], "nor for fonts, scripts, statistics"
    assert page.run("[...document.images].every(i => !i.src.includes('192.0.2.1') || i.naturalWidth == 0)")
    assert "Content Security Policy" in "".join(page.problems) or not foreign


def test_a_photograph_is_taken_and_seen(page: Page) -> None:
    choose(page, "fake")
    page.click("#more > button")
    page.click("#camera button:not(.upload-container)")  # Chromium's stand-in for a camera is green
    page.until("document.querySelector('#camera video')?.videoWidth > 0")
    page.write("#composer textarea", "hello")
    page.click("#camera [aria-label='capture photo']")
    page.until("document.querySelectorAll('#composer .thumbnail-image').length == 1")
    assert page.run("document.querySelector('#composer textarea').value") == "hello"
    assert re.search(r"I see 1 picture: \d{3,}x\d{3,} .*green", ask(page, "hello"))
    page.until("document.querySelectorAll('#composer .thumbnail-image').length == 0")
    page.until("!document.querySelector('#camera img[src]')")


def test_a_file_that_is_too_large_is_refused_before_it_is_asked(page: Page, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    large.write_bytes(RED.read_bytes() + bytes(21 * 2**20))
    page.drop("#composer textarea", large)
    page.until("document.body.innerText.includes('exceed the maximum allowed size of 20')")


def test_gradio_does_no_more_than_the_page_needs(server: str) -> None:
    for path in (
        "docs", "openapi.json", "monitoring", "login", "info", "gradio_api/info", "gradio_api/openapi.json",
        "gradio_api/proxy=http://127.0.0.1/", "gradio_api/vibe-code", "gradio_api/runs", "gradio_api/mcp",
        "gradio_api/run/ask", "gradio_api/call/ask", "custom_component/a", "gradio_api/deep_link", "assets/../config",
    ):  # fmt: skip
        assert status(f"{server}/ui/{path}") == 404, path
    for path in ("/etc/passwd", str(ROOT / "pyproject.toml"), "/proc/self/environ", "http://127.0.0.1/"):
        assert status(f"{server}/ui/gradio_api/file={path}") in (403, 404), path
    assert status(f"{server}/ui/", Host="rebound.example") == 421


def test_no_address_is_fetched_for_a_made_up_request(server: str) -> None:
    """A browser's request may name a file by its URL, and Gradio would download it."""
    with urllib.request.urlopen(f"{server}/ui/config", timeout=60) as reply:
        config = json.load(reply)
    kinds = {component["id"]: component["type"] for component in config["components"]}
    tried = 0
    for event in config["dependencies"]:
        if not event["inputs"] or not event["backend_fn"]:
            continue
        for place, component in enumerate(event["inputs"]):
            if kinds[component] == "state":
                continue
            file = {"path": "http://192.0.2.1/x.png", "meta": {"_type": "gradio.FileData"}}
            data: list[Any] = [None] * len(event["inputs"])
            data[place] = {"text": "", "files": [file]} if kinds[component] == "multimodaltextbox" else file
            session = f"s{event['id']}x{place}"
            body = {"data": data, "fn_index": event["id"], "session_hash": session}
            headers = {"content-type": "application/json"}
            request = urllib.request.Request(f"{server}/ui/gradio_api/queue/join", json.dumps(body).encode(), headers)
            urllib.request.urlopen(request, timeout=60).close()
            with urllib.request.urlopen(
                f"{server}/ui/gradio_api/queue/data?session_hash={session}", timeout=60
            ) as told:
                said = told.read().decode()
            assert '"success":false' in said, (kinds[component], said)
            if place == 0:
                assert "downloads nothing" in said
                tried += 1
    assert tried >= 1


def test_a_server_that_is_stopped_does_not_wait_for_open_pages(browser: Browser, state: Path) -> None:
    with browser.page() as page, command("ui", "--engine", "fake", "--model", "fake", state=state) as url:
        opened(page, f"{url}/ui/")
        until(lambda: any("/heartbeat/" in request for request in page.requests))
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 28, "not its 30 s of grace"


def test_a_server_of_several_processes_has_the_page(browser: Browser, state: Path) -> None:
    """What it knows of a conversation is in one of them, and a browser's requests come to any."""
    arguments = ["--engine", "fake", "--model", "fake", "--ui", "--workers", "3"]
    with browser.page() as page, command("serve", *arguments, state=state) as url:
        opened(page, f"{url}/ui/")
        assert "480x360" in ask(page, "hello", RED)
        assert "480x360" in ask(page, "and now?"), "the same conversation"
        assert "400x400" in ask(page, "hello", BLUE)
        assert status(f"{url}/ui/docs") == status(f"{url}/ui/gradio_api/info") == 404
        page.write("#composer textarea", _LONG)
        page.press_enter()
        page.until("document.querySelectorAll('#conversation .bot-row').length == 4")
        page.click("#composer .stop-button")
        page.until("document.body.innerText.includes('Stopped')")
        until(lambda: _RUNNING not in read(f"{url}/metrics"), timeout_s=60)
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 28, "it does not wait for open pages"


def test_dark_and_light(browser: Browser, server: str) -> None:
    def brightness(page: Page) -> float:
        script = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"
        return sum(map(float, page.run(script)[:3]))

    for scheme, is_bright in (("dark", False), ("light", True)):
        with browser.page() as page:
            page.prefer(scheme)
            opened(page, f"{server}/ui/")
            assert (brightness(page) > 380) is is_bright


def test_on_a_phone(browser: Browser, server: str) -> None:
    with browser.page() as page:
        page.resize(360, 640, phone=True)
        opened(page, f"{server}/ui/")
        page.until("document.querySelectorAll('#conversation .example').length == 4")
        assert page.run("document.querySelector('#conversation h3').getBoundingClientRect().top") > 0, "all can be seen"
        assert ask(page, "What colour is the circle?", RED).startswith("red")
        page.run("document.querySelector('#conversation .thought-group .title').click()")
        page.until("document.body.innerText.includes('224 × 168')")
        assert page.run("document.querySelector('#conversation th').getBoundingClientRect().height") < 60, "a line"
        assert page.run("document.documentElement.scrollWidth") <= 360, "nothing is cut off at the side"
        assert page.run("document.querySelector('#composer').getBoundingClientRect().bottom") <= 640
        page.click("#more > button")
        page.until("document.querySelector('#urls')?.checkVisibility()")
        page.until("document.querySelector('#composer').getBoundingClientRect().bottom <= 640")


def test_with_keys_the_page_asks_for_one(browser: Browser, state: Path) -> None:
    keys = state / "keys.db"
    create = [sys.executable, "-m", "sightline.cli", "keys", "create", "reader", "--keys", str(keys)]
    said = subprocess.run(create, capture_output=True, text=True, timeout=60, check=True, cwd=ROOT).stdout
    key = re.search(r"^sl-\S+", said, re.MULTILINE)
    assert key is not None, said
    with command("serve", "--engine", "fake", "--model", "fake", "--ui", "--keys", str(keys), state=state) as url:
        for path in ("/ui/config", "/ui/gradio_api/startup-events", "/ui/assets/x.js", "/ui/"):
            assert status(url + path) == 401
        with command("ui", "--url", url, state=state) as standalone:
            for place in (url, standalone):
                with browser.page() as page:
                    sign_in(page, f"{place}/ui/", key[0])


def sign_in(page: Page, url: str, key: str) -> None:
    page.open(url)
    page.until("!!document.querySelector('input[name=key]')")
    page.write("input[name=key]", "sl-wrong")
    page.press_enter()
    page.until("document.body.innerText.includes('not taken')")
    page.write("input[name=key]", key)
    page.press_enter()
    page.until("document.querySelector('#model input')?.value.length > 0")
    assert "480x360" in ask(page, "hello", RED)
    assert page.run("document.cookie") == "", "out of reach of scripts"
    page.run("document.querySelector('#conversation .thought-group .title').click()")
    page.until("document.body.innerText.includes('$SIGHTLINE_API_KEY')")
    assert key not in page.run("document.documentElement.outerHTML")
