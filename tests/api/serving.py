"""An application behind a real socket, as `sightline serve` puts it there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp

from sightline.server import Endpoint, Server


@contextmanager
def serving(app: ASGIApp) -> Iterator[int]:
    """Gives the port. The server runs in a thread of its own; at the end it has stopped."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    server = Server([Endpoint(app, [listener])])
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert server.started.wait(30)
    try:
        yield port
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()
