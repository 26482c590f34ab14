"""Where the page is: at `/ui` of a server, or an application of its own for a server elsewhere."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from sightline.access.gate import Gate
from sightline.api.app import create_app
from sightline.api.dialect import Dialect
from sightline.api.shared import ALONE, Shared
from sightline.client import ApiError, AsyncClient, ClientError
from sightline.config import ImageLimits, Settings
from sightline.service import Service
from sightline.ui.application import Application
from sightline.ui.asking import Server
from sightline.ui.inside import Inside
from sightline.ui.sign_in import ROOT, SignIn, key_of

_NO_KEY: Final = "none"
"""Sent where the reader has none, so that the client does not take one from the environment: it is not theirs."""
_METHODS: Final = ("GET", "HEAD", "POST")


@dataclass(frozen=True, slots=True)
class Page:
    app: ASGIApp
    server_url: str | None
    """Of a server elsewhere; None: it is this one."""
    _application: Shown

    def end(self) -> None:
        """Closes the connections that open pages hold all the time. Called when the server is told to stop: it would
        wait for them."""
        self._application.end()


class Shown(Protocol):
    """Gradio, in this process (`Application`) or in another one of the server's."""

    def end(self) -> None: ...

    def lifespan(self) -> AbstractAsyncContextManager[None]: ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def to_server_page(
    service: Service,
    settings: Settings,
    gate: Gate | None = None,
    shared: Shared = ALONE,
    elsewhere: Shown | None = None,
) -> Page:
    """The server's application, with the page at `/ui`. `elsewhere`: where Gradio is; None: here. Raises
    `UnsupportedFeature` where it is not installed."""

    def connect(reader: HTTPConnection) -> Server:
        return _inside(edge, reader)

    application = elsewhere or Application(connect, max_file_bytes=settings.images.max_bytes)
    edge = create_app(service, settings, more=[Dialect(_routes(application), name="none")], gate=gate, shared=shared)

    async def admits(scope: Scope, key: str | None) -> bool:
        return await _admits(_inside(edge, HTTPConnection(scope), key))

    return Page(_Living(SignIn(edge, admits), application), None, application)


def to_application(edge: ASGIApp, settings: Settings) -> Application:
    """Gradio alone, whose readers have been let in elsewhere, for the server that `edge` is. Raises
    `UnsupportedFeature` where it is not installed."""
    return Application(lambda reader: _inside(edge, reader), max_file_bytes=settings.images.max_bytes)


def to_standalone(url: str | None, api_key: str | None, allowed_hosts: Sequence[str]) -> Page:
    """The page for a server at `url` (its `/v1`, or the address without it; None: as `sightline.Client` finds it).
    `api_key` is used for readers who have given none. Raises `UnsupportedFeature` and `ClientError`."""
    shown = AsyncClient(url).base_url

    def to_server(key: str | None) -> Server:
        known = key or api_key
        return Server(AsyncClient(shown, api_key=known or _NO_KEY, max_retries=0), shown, known is not None)

    async def admits(_: Scope, key: str | None) -> bool:
        return await _admits(to_server(key))

    application = Application(lambda reader: to_server(key_of(reader.scope)), max_file_bytes=ImageLimits().max_bytes)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with application.lifespan():
            yield

    routes = [Route("/", _to_page), *_routes(application)]
    router = Router(routes, redirect_slashes=False, lifespan=lifespan)
    return Page(TrustedHostMiddleware(SignIn(router, admits), list(allowed_hosts)), shown, application)


def _routes(application: Shown) -> list[Route]:
    pages = [Route(path, application, methods=_METHODS) for path in (f"{ROOT}/", f"{ROOT}/{{path:path}}")]
    return [Route(ROOT, _to_page), *pages]


async def _to_page(_: HTTPConnection) -> RedirectResponse:
    return RedirectResponse(f"{ROOT}/")


def _inside(edge: ASGIApp, reader: HTTPConnection, key: str | None = None) -> Server:
    """The server in this process, asked under the name that the reader's browser knows it by."""
    url = f"{reader.url.scheme}://{reader.headers.get('host', 'localhost')}/v1"
    key = key or key_of(reader.scope)
    client = AsyncClient(url, api_key=key or _NO_KEY, max_retries=0, transport=Inside(edge, reader.scope))
    return Server(client, url, key is not None)


async def _admits(server: Server) -> bool:
    """Whether the server would list its models. What else may be wrong is for the page to tell."""
    async with server.client as client:
        try:
            await client.list_models()
        except ApiError as error:
            return error.status != 401
        except ClientError:
            return True
    return True


class _Living:
    """An application whose lifespan includes the page's."""

    def __init__(self, app: ASGIApp, application: Shown) -> None:
        self._app = app
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        async with self._application.lifespan():
            await self._app(scope, receive, send)
