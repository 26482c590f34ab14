"""Keys on the page: who opens it on a server with keys is asked for one, which a cookie then holds.

A browser cannot send a header with the address that one types. So the key travels in a cookie, for the paths of the
page only, out of reach of scripts (HttpOnly) and of other sites (SameSite=Strict), and becomes the header of the API
here; everything behind sees a client with a key, or without one, and decides as ever.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from importlib.resources import files
from string import Template
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "sightline_key"
ROOT = "/ui"
"""Where the page is, on whatever server."""
_SIGN_IN = f"{ROOT}/sign-in"
_MAX_FORM_BYTES = 4096
_KEY = re.compile(r"[\x21-\x7e]{1,512}")
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # without one, the form would come from the origin "null"
}

Admits = Callable[[Scope, str | None], Awaitable[bool]]
"""Whether the server takes a key, or lets people in without one (None)."""


class SignIn:
    """Around an application that has the page, or is it."""

    def __init__(self, app: ASGIApp, admits: Admits) -> None:
        self._app = app
        self._admits = admits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_pages(scope["path"]):
            await self._app(scope, receive, send)
            return
        scope = {**scope, "headers": to_headers(scope)}
        answer = await self._answer(scope, receive)
        await (answer or self._app)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response | None:
        """None: it is not for us."""
        if scope["path"] == _SIGN_IN and scope["method"] == "POST":
            return await self._sign_in(scope, receive)
        if scope["path"] in (ROOT, f"{ROOT}/") and not await self._admits(scope, key_of(scope)):
            return _form("")
        return None

    async def _sign_in(self, scope: Scope, receive: Receive) -> Response:
        key = None if _is_foreign(scope) else await _read_key(receive)
        if key is None or not await self._admits(scope, key):
            return _form("This key is not taken here.")
        answer = RedirectResponse(f"{ROOT}/", 303, headers=_HEADERS)
        secure = scope.get("scheme") == "https"
        answer.set_cookie(COOKIE, key, path=ROOT, httponly=True, samesite="strict", secure=secure)
        return answer


def is_pages(path: str) -> bool:
    return path == ROOT or path.startswith(f"{ROOT}/")


def key_of(scope: Scope) -> str | None:
    """The key in the page's cookie."""
    cookie: SimpleCookie = SimpleCookie()
    for name, value in scope["headers"]:
        if name == b"cookie":
            try:
                cookie.load(value.decode("latin-1"))
            except CookieError:
                continue
    key = cookie[COOKIE].value if COOKIE in cookie else ""
    return key if _KEY.fullmatch(key) else None


def to_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """The request's, with the cookie's key where it names none itself."""
    headers: list[tuple[bytes, bytes]] = list(scope["headers"])
    key = key_of(scope)
    if key is None or any(name == b"authorization" for name, _ in headers):
        return headers
    return [*headers, (b"authorization", f"Bearer {key}".encode("ascii"))]


def _is_foreign(scope: Scope) -> bool:
    """Sent by a page of another site, which would have its reader ask with a key of that site's choice."""
    headers = {name: value.lower() for name, value in scope["headers"]}
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != headers.get(b"host")


async def _read_key(receive: Receive) -> str | None:
    body = b""
    more = True
    while more:
        message = await receive()
        if message["type"] != "http.request" or len(body) + len(message.get("body", b"")) > _MAX_FORM_BYTES:
            return None
        body += message.get("body", b"")
        more = message.get("more_body", False)
    (key,) = parse_qs(body.decode("latin-1")).get("key", [""])[:1]
    return key.strip() if _KEY.fullmatch(key.strip()) else None


def _form(problem: str) -> Response:
    """401 for programs, a form for people."""
    page = Template(files("sightline.ui").joinpath("sign_in.html").read_text("utf-8"))
    return HTMLResponse(page.substitute(action=_SIGN_IN, problem=problem), 401, headers=_HEADERS)
