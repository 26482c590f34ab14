"""`sightline top`: what a server is doing, now, in the terminal. From `/metrics`, which any server of ours has."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import httpcore2 as http

from sightline.client.transport import NETWORK_ERRORS
from sightline.client.wire import to_headers
from sightline.config import DEFAULT_URL, environment
from sightline.errors import InvalidRequest

if TYPE_CHECKING:  # rich takes a while, which other commands need not wait for
    from rich.console import RenderableType

    from sightline.cli.top_figures import Frame, Scrape

_WINDOW_S: Final = 60.0
"""Of what quantiles and shares are taken."""
_TIMEOUT_S: Final = 5.0
_MAX_BYTES: Final = 16 * 1024 * 1024


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--url",
        default=environment("URL") or DEFAULT_URL,
        help=f"the server, or its admin listener (default: {DEFAULT_URL}); its key is SIGHTLINE_API_KEY",
    )
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="seconds between frames (default: 2)")
    parser.add_argument("--once", action="store_true", help="print one frame, of one interval, and end")
    parser.add_argument("--json", action="store_true", help="print each frame as a line of JSON")


def run(args: argparse.Namespace) -> int:
    """With `--once`, 1 where the server does not tell; without, it keeps trying until it is interrupted."""
    if not 0.1 <= args.interval <= 3600:
        raise InvalidRequest("--interval takes 0.1 to 3600 seconds.", param="interval")
    top = Top(Server(args.url))
    if args.once:
        return _once(top, args.interval, as_json=args.json)
    with contextlib.suppress(KeyboardInterrupt):
        _keep(top, args.interval, as_json=args.json)
    return 0


def _once(top: Top, interval: float, *, as_json: bool) -> int:
    top.scrape()
    if top.problem is None:
        time.sleep(interval)
        top.scrape()
    if top.frame is None or top.problem is not None:
        print(f"sightline: {top.problem}", file=sys.stderr)
        return 1
    if as_json:
        print(to_json(top.frame))
    else:
        from rich.console import Console

        console = Console()
        console.print(top.view(console.width))
    return 0


def _keep(top: Top, interval: float, *, as_json: bool) -> None:
    if as_json:
        while True:
            top.scrape()
            if top.problem is not None:
                print(f"sightline: {top.problem}", file=sys.stderr)
            elif top.frame is not None:
                print(to_json(top.frame), flush=True)
            time.sleep(interval)
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            due = time.monotonic() + interval
            top.scrape()
            while (left := due - time.monotonic()) > 0:  # drawn in between too, for a terminal that changes its size
                live.update(top.view(console.width), refresh=True)
                time.sleep(min(0.25, left))


def to_json(frame: Frame) -> str:
    return json.dumps(dataclasses.asdict(frame), separators=(",", ":"))


class Top:
    """The scrapes of the last minute, and what they say."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.frame: Frame | None = None
        """None until there were two scrapes."""
        self.problem: str | None = None
        """Why the last scrape failed."""
        self._scrapes: deque[Scrape] = deque()

    def scrape(self) -> None:
        """Never raises for what a server does: `problem` says it."""
        try:
            now = self.server.scrape()
        except Unreadable as error:
            self.problem = str(error)
            return
        self.problem = None
        from sightline.cli.top_figures import to_frame

        if self._scrapes:
            self.frame = to_frame(now, self._scrapes[-1], self._scrapes[0], wall=time.time())
        self._scrapes.append(now)
        while now.at - self._scrapes[0].at > _WINDOW_S and len(self._scrapes) > 2:
            self._scrapes.popleft()

    def view(self, width: int) -> RenderableType:
        from sightline.cli.top_view import to_problem, to_view

        if self.frame is not None:
            problem = None if self.problem is None else f"{self.problem} Trying again."
            return to_view(self.frame, self.server.url, width, problem)
        return to_problem(f"{self.problem} Trying again.") if self.problem else "Asking the server …"


class Unreadable(Exception):
    """The server does not tell; the message says why."""


class Server:
    """Where figures come from."""

    def __init__(self, url: str) -> None:
        """Raises `InvalidRequest` for what is no address."""
        parts = urlsplit(url)
        try:
            port_is_one = parts.port is None or parts.port > 0
        except ValueError:
            port_is_one = False
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or not port_is_one:
            raise InvalidRequest(f"{url!r} is no address of a server; it looks like {DEFAULT_URL}.", param="url")
        self.url = url.rstrip("/").removesuffix("/v1")
        self._headers: dict[bytes | str, bytes | str] = {
            **to_headers(environment("API_KEY")),
            "Host": parts.netloc.rpartition("@")[2],
        }
        self._pool = http.ConnectionPool(max_connections=1, keepalive_expiry=4.0)

    def scrape(self) -> Scrape:
        """Raises `Unreadable`."""
        from sightline.cli.top_figures import Scrape

        status, text = self._get("/metrics")
        if status != 200:
            raise Unreadable(self._refused(status))
        at = time.monotonic()
        try:
            return Scrape(text.decode(), at, self._models())
        except (ValueError, KeyError, TypeError):
            raise Unreadable(f"What {self.url}/metrics tells is not from a Sightline server.") from None

    def _models(self) -> Any:
        """What `/v1/models` answers; None where it does not, as an admin listener."""
        status, body = self._get("/v1/models")
        return json.loads(body) if status == 200 else None

    def _get(self, path: str) -> tuple[int, bytes]:
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), _TIMEOUT_S)
        request = http.Request("GET", self.url + path, headers=self._headers, extensions={"timeout": timeouts})
        try:
            response = self._pool.handle_request(request)
            try:
                body = bytearray()
                for piece in response.iter_stream():
                    body += piece
                    if len(body) > _MAX_BYTES:
                        raise Unreadable(f"{self.url}{path} tells more than it may.")
            finally:
                response.close()
        except NETWORK_ERRORS as error:
            away = isinstance(error, http.ConnectError | http.ConnectTimeout | OSError)
            why = "No server answers at" if away else "The connection broke to"
            raise Unreadable(f"{why} {self.url}.") from None
        return response.status, bytes(body)

    def _refused(self, status: int) -> str:
        match status:
            case 401:
                return f"{self.url}/metrics asks for a key: set SIGHTLINE_API_KEY to that of an admin."
            case 403:
                return f"The key in SIGHTLINE_API_KEY may not read {self.url}/metrics: it takes that of an admin."
            case 404:
                return f"There is no /metrics at {self.url}: if the server has an admin listener, name that."
            case 421:
                return f"{self.url} does not answer under that name: see allowed_hosts."
        return f"{self.url}/metrics answers {status}."
