"""A headless Chromium, driven over the pipe of its DevTools protocol: no package, no port, no driver program.

Source of the messages: Chrome DevTools Protocol (https://chromedevtools.github.io/devtools-protocol/). Over the pipe
each is a line of JSON that ends with a NUL.
"""

from __future__ import annotations

import base64
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_QUIET = [
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream", "--hide-scrollbars", "--remote-debugging-pipe",
]  # fmt: skip


class Page:
    """A tab. What it asks any server for is in `requests`."""

    def __init__(self, send: Callable[..., dict[str, Any]]) -> None:
        self._send = send
        self.requests: list[str] = []
        self.problems: list[str] = []
        """Errors of its scripts, and what its security policy kept from loading."""

    def on_event(self, event: Mapping[str, Any]) -> None:
        match event:
            case {"method": "Network.requestWillBeSent", "params": {"request": {"url": url}}}:
                self.requests.append(url)
            case {"method": "Log.entryAdded", "params": {"entry": {"level": "error", "text": text}}}:
                self.problems.append(text)
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self.problems.append(details.get("exception", {}).get("description", details["text"]))

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._send(method, params)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        reply = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in reply:
            raise AssertionError(f"{script}: {reply['exceptionDetails']}")
        return reply["result"].get("value")

    def until(self, script: str, timeout_s: float = 60.0) -> Any:
        """The value of an expression once it is true. While a page is being loaded it may well fail."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                value = self.run(script)
            except AssertionError:
                value = None
            if value:
                return value
            assert time.monotonic() < deadline, f"never: {script}; the page says:\n{self.text()}\n{self.problems}"
            time.sleep(0.05)

    def text(self) -> str:
        return str(self.run("document.body?.innerText"))

    def at(self, selector: str) -> tuple[float, float]:
        """The middle of an element that can be seen."""
        script = f"(e => {{ if (!e) return null; e.scrollIntoView({{block: 'nearest'}}); const r = e.getBoundingClientRect(); return r.width ? [r.x + r.width / 2, r.y + r.height / 2] : null }})(document.querySelector({json.dumps(selector)}))"  # noqa: E501
        x, y = self.until(script)
        return x, y

    def click(self, selector: str) -> None:
        x, y = self.at(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, selector: str, text: str) -> None:
        self.click(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).select?.()")
        self.call("Input.insertText", text=text)

    def press_enter(self) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r"
            )

    def drop(self, selector: str, *paths: Path) -> None:
        """Files, from the desktop onto an element."""
        x, y = self.at(selector)
        data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )  # fmt: skip

    def prefer(self, scheme: str) -> None:
        """`dark` or `light`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


class Browser:
    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4.
        command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "chromium", CHROMIUM, *_QUIET]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={profile}"], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self._out = os.fdopen(ours_out, "wb", buffering=0)
        self._in = os.fdopen(ours_in, "rb")
        self._replies: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._next = 0
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        left = b""
        while piece := os.read(self._in.fileno(), 65536):
            *messages, left = (left + piece).split(b"\0")
            for raw in messages:
                message = json.loads(raw)
                if "id" in message:
                    self._replies[message["id"]].put(message)
                elif message.get("sessionId") in self._pages:
                    self._pages[message["sessionId"]].on_event(message)

    def call(self, method: str, params: Mapping[str, Any], session: str | None = None) -> dict[str, Any]:
        self._next += 1
        number = self._next
        self._replies[number] = queue.Queue()
        message = {"id": number, "method": method, "params": params, **({"sessionId": session} if session else {})}
        self._out.write(json.dumps(message).encode() + b"\0")
        answer = self._replies[number].get(timeout=60)
        del self._replies[number]
        assert "error" not in answer, f"{method}: {answer['error']}"
        return dict(answer["result"])

    @contextmanager
    def page(self) -> Iterator[Page]:
        """A tab with a profile of its own, without cookies."""
        context = self.call("Target.createBrowserContext", {})["browserContextId"]
        target = self.call("Target.createTarget", {"url": "about:blank", "browserContextId": context})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(lambda method, params: self.call(method, params, session))
        for domain in ("Network", "Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.resize(1100, 800)
        try:
            yield page
        finally:
            self.call("Target.disposeBrowserContext", {"browserContextId": context})

    def close(self) -> None:
        self.call("Browser.close", {})
        self._process.wait(30)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()
