"""An application behind a real socket, as `sightline serve` puts it there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import openai
from starlette.types import ASGIApp

from sightline.api.app import create_app
from sightline.config import HttpLimits, Settings
from sightline.server import Endpoint, Server
from sightline.server.tls import Certificate
from sightline.service import Service


@contextmanager
def serving(app: ASGIApp, certificate: Certificate | None = None, **limits: Any) -> Iterator[int]:
    """Gives the port. The server runs in a thread of its own; at the end it has stopped. `limits`: of `HttpLimits`."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    server = Server([Endpoint(app, [listener], certificate)], limits=HttpLimits(**limits))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.started.wait(30)
    try:
        yield port
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def server_of(settings: Settings) -> Iterator[int]:
    """A server of these settings, its models loaded; gives the port."""
    with serving(create_app(Service(settings), settings, wait=True)) as port:
        yield port


def sdk(port: int) -> openai.OpenAI:
    """OpenAI's own client, which never asks twice."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=30)
