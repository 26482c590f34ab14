"""Gradio as an ASGI application that does no more than the page needs: no telemetry, no downloads, none of the routes
that the page does not use, nothing that a browser would load from elsewhere."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from sightline.errors import UnsupportedFeature
from sightline.ui.asking import Connect
from sightline.ui.sign_in import ROOT

_ROUTES = re.compile(
    r"/|/config|/theme\.css|/manifest\.json|/favicon\.ico|/(?:assets|static|svelte)/[^?]*"
    r"|/gradio_api/(?:queue/(?:join|data)|cancel|reset|upload|upload_progress|heartbeat/[A-Za-z0-9]+|startup-events|file=/.*)"
)
"""What the page's scripts ask for, below its root. Gradio has more: proxies, recordings, an editor of its own code."""
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Gradio's scripts need what is inline; what a model writes must not make a browser ask other servers for anything."""
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


_HEARTBEAT = "/gradio_api/heartbeat/"
"""A response that ends when its page is closed."""


class Application:
    """The page below `ROOT`. `lifespan` runs around its first and last request."""

    def __init__(self, connect: Connect, *, max_file_bytes: int) -> None:
        """Raises `UnsupportedFeature` where Gradio is not installed."""
        self._folder = tempfile.TemporaryDirectory(prefix="sightline-ui-")  # what is uploaded; nobody else may read it
        self._app = _to_gradio(connect, self._folder.name, max_file_bytes)
        self._heartbeats = Heartbeats()

    def end(self) -> None:
        self._heartbeats.end()

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        try:
            async with self._app.router.lifespan_context(self._app):
                yield
        finally:
            self._folder.cleanup()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises `HTTPException` 404 for a path that the page does not have."""
        verify(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        below = f"{ROOT}{_below(scope)}"
        scope = {**scope, "path": below, "raw_path": below.encode()}
        await self._heartbeats.run(scope, self._app(scope, receive, send_with_headers))


class Heartbeats:
    """Responses that end when their page is closed, and that no server waits for when it is told to stop."""

    def __init__(self) -> None:
        self._beating: set[asyncio.Task[None]] = set()

    async def run(self, scope: Scope, answered: Coroutine[Any, Any, None]) -> None:
        if not _below(scope).startswith(_HEARTBEAT):
            await answered
            return
        task = asyncio.create_task(answered)
        self._beating.add(task)
        task.add_done_callback(self._beating.discard)
        with suppress(asyncio.CancelledError):
            await task

    def end(self) -> None:
        for task in self._beating:
            task.cancel()


def verify(scope: Scope) -> None:
    """Raises `HTTPException` 404 for a path that the page does not have."""
    path = _below(scope)
    if _ROUTES.fullmatch(path) is None or ".." in path:
        raise HTTPException(404, "The page has nothing there.")


def _below(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(ROOT) or "/"


def verify_installed() -> None:
    """Raises `UnsupportedFeature` where Gradio is not installed. Loads nothing."""
    if importlib.util.find_spec("gradio") is None:
        raise UnsupportedFeature(
            "The page needs Gradio, which is not installed: pip install 'sightline[ui]'.", param="ui"
        )


def _to_gradio(connect: Connect, folder: str, max_file_bytes: int) -> Any:
    verify_installed()
    os.environ |= {"GRADIO_TEMP_DIR": folder, "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    import fastapi  # type: ignore[import-not-found,unused-ignore]
    import gradio  # type: ignore[import-not-found,unused-ignore]

    from sightline.ui import page

    gradio.processing_utils.async_ssrf_protected_download = _download_nothing
    gradio.processing_utils.save_url_to_cache = _download_nothing
    return gradio.mount_gradio_app(
        fastapi.FastAPI(openapi_url=None),
        page.to_page(connect),
        path=ROOT,
        footer_links=[],
        run_history=False,
        show_error=True,
        max_file_size=max_file_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=page.theme(),
        css=page.CSS,
        head=page.HEAD,
    )


def _download_nothing(*_: Any, **__: Any) -> Any:
    """In the place of Gradio's downloads: it would fetch what a browser's request names, past the server's policy."""
    raise ValueError("The page downloads nothing. The server fetches pictures by their addresses, where it may.")
